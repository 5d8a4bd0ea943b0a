from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from malice import Malice, malicious_pickle
from safetensors.torch import save_file
from torch import nn

from har_pipeline.core.errors import ExtractionError, UsageError, WeightsError
from har_pipeline.core.files import cached_weights
from har_pipeline.core.known_files import remember
from har_pipeline.models.extractors import build_extractor
from har_pipeline.models.extractors import weights as weights_module
from har_pipeline.models.extractors.nets import all_nets, find_net
from har_pipeline.models.extractors.tsn import SegmentNet
from har_pipeline.models.extractors.vgg16 import VGG16
from har_pipeline.models.extractors.weights import PREFIXES, load_strictly, read_state_dict, weights_with_hash


def test_bad_weights_give_clear_errors(tmp_path: Path) -> None:
    text = tmp_path / "weights.pth"
    text.write_text("not a weights file")
    with pytest.raises(WeightsError, match=r"weights\.pth: not a readable weights file"):
        build_extractor("vgg16", weights=str(text), device="cpu")
    with pytest.raises(UsageError, match="neither a file nor one of imagenet, oxford, keras, random"):
        build_extractor("vgg16", weights="imagnet", device="cpu")
    with pytest.raises(WeightsError, match="end before layer fc6"):
        build_extractor("vgg16", layer="fc6", weights="oxford", device="cpu")
    state = VGG16("pool5").state_dict()
    torch.save({k: v for k, v in state.items() if k != "features.28.bias"}, text)
    with pytest.raises(WeightsError, match=r"features\.28\.bias"):
        build_extractor("vgg16", weights=str(text), device="cpu")
    data = text.read_bytes()
    text.write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="not a readable weights file"):
        build_extractor("vgg16", weights=str(text), device="cpu")


class _Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('os').mkdir('pickle_ran')",))


def test_no_pickled_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": _Malice()}, "evil.pth")
    with pytest.raises(WeightsError):
        build_extractor("vgg16", weights="evil.pth", device="cpu")
    assert not Path("pickle_ran").exists()


def test_a_file_with_another_hash_than_the_published_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))
    cached = cached_weights("vgg16-397923af.pth")
    cached.write_bytes(b"tampered")
    with pytest.raises(WeightsError, match="is not the published 397923af"):
        build_extractor("vgg16", device="cpu")
    cached_weights("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5").write_bytes(b"tampered")
    with pytest.raises(WeightsError, match=r"notop\.h5: its md5 is not the published one"):
        build_extractor("vgg16", weights="keras", device="cpu")


def test_an_unusable_cache_ends_in_a_line_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("HAR_CACHE", str(tmp_path / "taken"))
    with pytest.raises(WeightsError, match=r"cannot be used as the cache of weights .* set HAR_CACHE"):
        build_extractor("vgg16", device="cpu")


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(weights_module.pooch, "retrieve", no_network)
    with pytest.raises(WeightsError, match=r"cannot download .*vgg16-397923af\.pth.*--weights PATH"):
        build_extractor("vgg16", device="cpu")


@pytest.mark.parametrize("content", [b"", b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00exittR.", b"hello,world\n"])
def test_a_file_that_is_no_state_dict_gets_our_own_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pt: ") as caught:
        build_extractor("i3d", weights=str(path), device="cpu")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("content", [b"riding a bike\nplaying cricket\n" * 50, b"RIFF" + bytes(range(256)) * 20])
def test_files_of_another_kind_are_no_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"names\.txt: not a readable weights file"):
        read_state_dict(path)


class Net(nn.Module):
    """A small net with a batch normalisation, whose names have all that wrappers add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)


def prefixed(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value.clone() for key, value in state.items()}


STATE = Net().state_dict()
WRAPPED: dict[str, Any] = {
    "plain": STATE,
    "DataParallel": prefixed(STATE, "module."),
    "compiled twice": prefixed(STATE, "model.module."),
    "inside": {key.replace("conv.", "conv.module."): value for key, value in STATE.items()},
    "lightning": {"state_dict": prefixed(STATE, "model."), "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": {"model": STATE, "args": None},
    "model_state": {"model_state": prefixed(STATE, "module."), "epoch": 1},
    "net": {"net": prefixed(STATE, "net."), "acc": 0.5},
    "nested": {"model": {"state_dict": prefixed(STATE, "module.model.")}},
    "without counters": {key: value for key, value in STATE.items() if "batches" not in key},
    "parameters": dict(Net().named_parameters()) | dict(Net().named_buffers()),
    "half": {key: value.half() if value.is_floating_point() else value for key, value in STATE.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_wrapped_state_dicts_load(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        if not all(isinstance(value, torch.Tensor) for value in WRAPPED[kind].values()):
            pytest.skip("safetensors holds tensors only")
        save_file({key: value.detach().clone() for key, value in WRAPPED[kind].items()}, path)
    else:
        torch.save(WRAPPED[kind], path)
    net = Net()
    load_strictly(net, read_state_dict(path), path)
    for name in ("conv.weight", "norm.running_var"):
        assert net.state_dict()[name].shape == STATE[name].shape
    if kind not in ("half", "parameters"):
        assert torch.equal(net.conv.weight, STATE["conv.weight"])


def test_no_net_has_names_that_are_taken_for_a_wrappers() -> None:
    for net in all_nets().values():
        for stream in net.inputs:
            if net.name.startswith("mvit"):
                continue  # cannot be built without memory; its keys are blocks.<n>. ... as those of its family
            with torch.device("meta"):
                try:
                    module = net.build(net.default_layer, stream)
                except ExtractionError:
                    continue  # its package is not installed
            inner = module.net if isinstance(module, SegmentNet) else module
            keys = list(inner.state_dict())
            assert not any("module" in key.split(".") for key in keys), net.name
            assert not any(all(key.startswith(prefix) for key in keys) for prefix in PREFIXES), net.name


def test_keys_that_differ_are_named_and_counted(tmp_path: Path) -> None:
    many = {f"layer{number}.weight": torch.zeros(2) for number in range(30)}
    with pytest.raises(WeightsError) as caught:
        load_strictly(Net(), many, tmp_path / "net.pt")
    text = str(caught.value)
    assert "net.pt: does not fit the net: 6 missing (conv.weight, conv.bias, norm.weight" in text
    assert "30 unexpected (layer0.weight, layer1.weight, layer2.weight, layer3.weight, layer4.weight, ...)" in text
    reshaped = {**STATE, "conv.weight": torch.zeros(4, 2, 1, 1)}
    with pytest.raises(WeightsError, match=r"1 of another shape \(conv.weight: \(4, 2, 1, 1\), not \(4, 3, 1, 1\)\)"):
        load_strictly(Net(), reshaped, tmp_path / "net.pt")


def compressed(path: Path) -> None:
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")


ODD: dict[str, Any] = {
    "a tensor": torch.zeros(2, 2),
    "a 0-d tensor": torch.tensor(1.0),
    "a list": [torch.zeros(2)],
    "a number": 3,
    "nothing": {},
    "an empty state": {"state_dict": {}},
    "another entry": {**STATE, "epoch": 3},
    "a nested dict": {"conv": {"weight": torch.zeros(2)}},
    "numbered": {0: torch.zeros(2)},
    "sparse": {**STATE, "conv.bias": torch.zeros(4).to_sparse()},
    "infinite": {**STATE, "conv.bias": torch.full((4,), torch.inf)},
    "complex": {**STATE, "conv.bias": torch.zeros(4, dtype=torch.complex64)},
    "whole numbers": {**STATE, "conv.bias": torch.zeros(4, dtype=torch.int8)},
    "0-d": {**STATE, "conv.bias": torch.tensor(1.0)},
    "lying views": {"conv.weight": torch.zeros(1).expand(10**6, 10**6)},
    "twice": {**STATE, **prefixed(STATE, "module.")},
}


@pytest.mark.parametrize("kind", [*ODD, "compressed", "other zip", "header", "folder"])
def test_odd_contents_are_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("net.safetensors" if kind == "header" else "net.pt")
    if kind in ODD:
        torch.save(ODD[kind], path)
    elif kind == "header":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    elif kind == "folder":
        path.mkdir()
    else:
        {"compressed": compressed, "other zip": other_zip}[kind](path)
    with pytest.raises(WeightsError, match=r"net\.(pt|safetensors): ") as caught:
        load_strictly(Net(), read_state_dict(path), path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_a_damaged_header_is_told_before_the_net_is_built(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(WeightsError, match=r"net\.safetensors: not a readable weights file"):
        build_extractor("convnet3d", weights=str(tmp_path / "net.safetensors"), device="cpu", at_once=False)


# Every net and every name; of the net that takes longest to build, the kind of file that it alone has a reader for.
DOORS = [
    pytest.param(net, name, marks=pytest.mark.exhaustive) if net == "vgg16" and name != "evil.h5" else (net, name)
    for net in ("vgg16", "i3d", "c3d", "tsn_bninception", "r3d_18", "efficientnet_lite0")
    for name in ("evil.pth", "evil.pt", "evil.h5", "evil.safetensors", "evil.bin")
]


@pytest.mark.parametrize(("net", "name"), DOORS)
def test_no_door_runs_a_pickle(tmp_path: Path, net: str, name: str) -> None:
    marker = tmp_path / "ran"
    for content in (malicious_pickle(marker), None):
        if content is None:
            torch.save({"state_dict": {"conv1.weight": Malice(marker)}}, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            build_extractor(net, weights=str(tmp_path / name), device="cpu")
    assert not marker.exists()


def test_weights_are_known_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))
    net = find_net("c3d")
    assert weights_with_hash(net.weights, "rgb", "dcc47ddc" + 56 * "0") == "sports1m-mmaction2"
    # Without a published hash only the file tells.
    cached = tmp_path / "weights" / "c3d.pickle"
    sha256 = hashlib.sha256(b"the authors' weights").hexdigest()
    assert weights_with_hash(net.weights, "rgb", sha256) is None
    cached.parent.mkdir()
    cached.write_bytes(b"the authors' weights")
    assert weights_with_hash(net.weights, "rgb", sha256) == "sports1m"
    cached.write_bytes(b"other weights")
    assert weights_with_hash(net.weights, "rgb", sha256) is None
    own = tmp_path / "own.pt"
    own.write_bytes(b"the authors' weights")
    remember(own, sha256)
    assert weights_with_hash(net.weights, "rgb", sha256) == str(own)
