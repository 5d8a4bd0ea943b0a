from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from har_pipeline.core.errors import WeightsError
from har_pipeline.models.extractors import build_extractor
from har_pipeline.models.extractors.c3d import C3D, MMACTION2_RGB, NET, SPORTS1M_BGR, read_mean_cube

# Source: github.com/DavideA/c3d-pytorch, C3D_model.py: the modules that hold the parameters of its c3d.pickle.
SPORTS1M_SHAPES = {
    "conv1": (64, 3, 3, 3, 3),
    "conv2": (128, 64, 3, 3, 3),
    "conv3a": (256, 128, 3, 3, 3),
    "conv3b": (256, 256, 3, 3, 3),
    "conv4a": (512, 256, 3, 3, 3),
    "conv4b": (512, 512, 3, 3, 3),
    "conv5a": (512, 512, 3, 3, 3),
    "conv5b": (512, 512, 3, 3, 3),
    "fc6": (4096, 8192),
    "fc7": (4096, 4096),
    "fc8": (487, 4096),
}
# Source: github.com/open-mmlab/mmaction2, mmaction/models/backbones/c3d.py (each convolution is an mmcv ConvModule, whose
# layer is `conv`), heads/i3d_head.py (`fc_cls`), and the recognizer's `backbone` and `cls_head`.
MMACTION2_NAMES = {
    "conv1": "backbone.conv1a.conv",
    "conv2": "backbone.conv2a.conv",
    "conv3a": "backbone.conv3a.conv",
    "conv3b": "backbone.conv3b.conv",
    "conv4a": "backbone.conv4a.conv",
    "conv4b": "backbone.conv4b.conv",
    "conv5a": "backbone.conv5a.conv",
    "conv5b": "backbone.conv5b.conv",
    "fc6": "backbone.fc6",
    "fc7": "backbone.fc7",
    "fc8": "cls_head.fc_cls",
}
CLIP = (1, 3, 16, 112, 112)


def random_state(classes: int = 487, linears: bool = True) -> dict[str, torch.Tensor]:
    """Random tensors under the Sports-1M keys. The rows of a linear layer repeat, so that files stay small."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in SPORTS1M_SHAPES.items():
        if name.startswith("fc"):
            if not linears:
                continue
            outputs, inputs = (classes, shape[1]) if name == "fc8" else shape
            weight = (torch.randn(1, inputs, generator=generator) * inputs**-0.5).expand(outputs, inputs)
        else:
            outputs = shape[0]
            weight = torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5
        state[f"{name}.weight"] = weight
        state[f"{name}.bias"] = torch.rand(outputs, generator=generator) * 0.1
    return state


def in_mmaction2_names(state: dict[str, torch.Tensor], prefix: bool = True) -> dict[str, torch.Tensor]:
    names = {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in MMACTION2_NAMES.items() for part in ("weight", "bias")
    }
    renamed = {names[key]: value for key, value in state.items()}
    return renamed if prefix else {key.removeprefix("backbone."): value for key, value in renamed.items()}


def second_implementation(x: torch.Tensor, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every layer of C3D from the paper's figure 3, functional calls in a row; all 3x3x3, all pools 2x2x2 but the first."""

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.conv3d(F.pad(x, (1,) * 6), state[f"{name}.weight"], state[f"{name}.bias"]).clamp(min=0)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = F.max_pool3d(conv(x, "conv1"), (1, 2, 2))
    x = F.max_pool3d(conv(x, "conv2"), 2)
    x = F.max_pool3d(conv(conv(x, "conv3a"), "conv3b"), 2)
    x = F.max_pool3d(conv(conv(x, "conv4a"), "conv4b"), 2)
    # After ReLU a border of zeros changes no maximum.
    x = F.max_pool3d(F.pad(conv(conv(x, "conv5a"), "conv5b"), (1, 1, 1, 1)), 2)
    layers = {"pool5": x.flatten(1)}
    layers["fc6"] = linear(layers["pool5"], "fc6").clamp(min=0)
    layers["fc7"] = linear(layers["fc6"], "fc7").clamp(min=0)
    return layers | {"logits": linear(layers["fc7"], "fc8")}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_keys_shapes_and_parameters_are_the_public_ones() -> None:
    """80.0 M parameters with the 487 classes; 78,409,573 with 101, as mmaction2's metafile.yml of C3D states."""
    with torch.device("meta"):
        net = C3D("logits")
    wanted = {f"{k}.weight": s for k, s in SPORTS1M_SHAPES.items()} | {
        f"{k}.bias": s[:1] for k, s in SPORTS1M_SHAPES.items()
    }
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == wanted
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters == 79_991_015
    assert parameters - (487 - 101) * 4097 == 78_409_573


def test_each_stage_has_the_papers_shape() -> None:
    """Tran et al. 2015, section 3.2: pools halve what they cover; 512x1x4x4 at the end."""
    shapes = {}
    with torch.device("meta"):
        net = C3D("logits").eval()
        for name, part in net.named_children():
            part.register_forward_hook(lambda module, x, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
        net(torch.empty(CLIP))
    assert shapes == {
        "conv1": (64, 16, 112, 112),
        "pool1": (64, 16, 56, 56),
        "conv2": (128, 16, 56, 56),
        "pool2": (128, 8, 28, 28),
        "conv3a": (256, 8, 28, 28),
        "conv3b": (256, 8, 28, 28),
        "pool3": (256, 4, 14, 14),
        "conv4a": (512, 4, 14, 14),
        "conv4b": (512, 4, 14, 14),
        "pool4": (512, 2, 7, 7),
        "conv5a": (512, 2, 7, 7),
        "conv5b": (512, 2, 7, 7),
        "pool5": (512, 1, 4, 4),
        "fc6": (4096,),
        "fc7": (4096,),
        "fc8": (487,),
    }


def test_each_layer_agrees_with_a_second_implementation() -> None:
    torch.manual_seed(0)
    whole = C3D("logits").eval()
    x = torch.randn(CLIP) * 60
    with torch.inference_mode():
        wanted = second_implementation(x, whole.state_dict())
        for layer, dim in NET.layers.items():
            net = C3D(layer).eval()
            net.load_state_dict({key: whole.state_dict()[key] for key in net.state_dict()})
            found = net(x)
            assert found.shape == (1, dim)
            assert relative(found, wanted[layer]) < 1e-5, layer


def test_a_batch_of_two_gives_what_each_clip_gives() -> None:
    extractor = build_extractor("c3d", weights="random", device="cpu", precision="fp32")
    clips = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 16, 112, 112, 3), dtype=np.uint8))
    together = extractor(clips)
    assert together.shape == (2, 4096)
    for i in range(2):
        assert relative(extractor(clips[i : i + 1])[0], together[i]) < 1e-5


def test_files_of_both_kinds_load_with_their_preprocessing(tmp_path: Path) -> None:
    """The same tensors under three sets of names arrive as the same net; each is fed as it was trained."""
    state = random_state()
    torch.save(state, tmp_path / "c3d.pickle", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": in_mmaction2_names(state), "meta": {"epoch": 45}}, tmp_path / "mmaction2.pth")
    torch.save(in_mmaction2_names(state, prefix=False), tmp_path / "backbone.pth")
    for name, preprocess in (
        ("c3d.pickle", SPORTS1M_BGR),
        ("mmaction2.pth", MMACTION2_RGB),
        ("backbone.pth", MMACTION2_RGB),
    ):
        assert NET.file_preprocess(tmp_path / name, "rgb") == preprocess
        net = C3D("logits")
        NET.load(net, tmp_path / name)
        for key, value in state.items():
            assert torch.equal(net.state_dict()[key], value), (name, key)


def test_safetensors_load_and_the_input_is_bgr_minus_the_mean(tmp_path: Path) -> None:
    state = random_state(linears=False)
    save_file(state, tmp_path / "c3d.safetensors")
    extractor = build_extractor(
        "c3d", layer="pool5", weights=str(tmp_path / "c3d.safetensors"), device="cpu", precision="fp32"
    )
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 16, 112, 112, 3), dtype=np.uint8))
    red, green, blue = clip.float().unbind(-1)
    x = torch.stack([blue - 90.25, green - 97.66, red - 101.41], 1)
    with torch.inference_mode():
        for name in ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"):
            x = F.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
            if name in ("conv1", "conv2", "conv3b", "conv4b", "conv5b"):
                x = F.max_pool3d(x, (1, 2, 2) if name == "conv1" else 2, padding=(0, 1, 1) if name == "conv5b" else 0)
    assert relative(extractor(clip), x.flatten(1)) < 1e-5


def test_logits_are_those_of_sports1m_only(tmp_path: Path) -> None:
    torch.save(in_mmaction2_names(random_state(classes=101)), tmp_path / "ucf101.pth")
    NET.load(C3D("fc7"), tmp_path / "ucf101.pth")
    with pytest.raises(WeightsError, match=r"ucf101\.pth: does not fit the net: .*of another shape.*fc8"):
        NET.load(C3D("logits"), tmp_path / "ucf101.pth")
    with pytest.raises(WeightsError, match="'ucf101-mmaction2' end before layer logits"):
        build_extractor("c3d", layer="logits", weights="ucf101-mmaction2", device="cpu")


class _Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('os').mkdir('pickle_ran')",))


def test_bad_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = random_state(linears=False)
    small = {
        key: value if key in ("conv5b.weight",) else value[..., :1].expand_as(value) for key, value in state.items()
    }
    net = C3D("pool5")
    for name, changed, message in (
        (
            "missing.pt",
            {k: v for k, v in small.items() if k != "conv3b.bias"},
            r"missing\.pt: .*missing.*conv3b\.bias",
        ),
        (
            "wrong.pt",
            small | {"conv4a.weight": torch.zeros(512, 256, 1, 3, 3)},
            r"wrong\.pt: .*of another shape.*conv4a",
        ),
        ("extra.pt", small | {"conv6a.weight": torch.zeros(1)}, r"extra\.pt: .*unexpected.*conv6a"),
        ("nan.pt", small | {"conv1.bias": torch.full((64,), torch.inf)}, r"nan\.pt: conv1\.bias holds non-finite"),
        ("evil.pt", {"conv1.bias": _Malice()}, r"evil\.pt: not a readable weights file"),
    ):
        torch.save(changed, name)
        with pytest.raises(WeightsError, match=message):
            NET.load(net, Path(name))
    with pytest.raises(WeightsError, match=r"evil\.pt: not a readable weights file"):
        build_extractor("c3d", weights="evil.pt", device="cpu")
    assert not Path("pickle_ran").exists()
    torch.save(state, "whole.pt")
    save_file(state, "whole.safetensors")
    for name in ("whole.pt", "whole.safetensors"):
        with Path(name).open("r+b") as file:
            file.truncate(Path(name).stat().st_size // 2)
        with pytest.raises(WeightsError, match=f"{name}: not a readable"):
            NET.load(net, Path(name))


def test_a_mean_cube_is_cut_as_the_frames_are(tmp_path: Path) -> None:
    """All three layouts in circulation give the same centre, rows 8 to 119 and columns 29 to 140 of 128x171."""
    cube = np.random.default_rng(0).uniform(60, 130, (3, 16, 128, 171))
    wanted = cube[:, :, 8:120, 29:141].astype(np.float32)
    for name, values in (("plain", cube), ("caffe", cube[None]), ("last", cube.transpose(1, 2, 3, 0))):
        np.save(tmp_path / f"{name}.npy", values)
        found = read_mean_cube(tmp_path / f"{name}.npy")
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, wanted)


def test_bad_mean_cubes_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("small.npy", np.zeros((3, 16, 112, 112), np.float32))
    with pytest.raises(WeightsError, match=r"small\.npy: a mean cube has shape .*not \(3, 16, 112, 112\)"):
        read_mean_cube(Path("small.npy"))
    np.save("nan.npy", np.full((3, 16, 128, 171), np.nan, np.float32))
    with pytest.raises(WeightsError, match=r"nan\.npy: the mean cube holds non-finite"):
        read_mean_cube(Path("nan.npy"))
    np.save("evil.npy", np.array([_Malice()], dtype=object), allow_pickle=True)
    with pytest.raises(WeightsError, match=r"evil\.npy: not a readable \.npy array"):
        read_mean_cube(Path("evil.npy"))
    assert not Path("pickle_ran").exists()
    np.save("text.npy", np.full((3, 16, 128, 171), "a"))
    with pytest.raises(WeightsError, match=r"text\.npy: not a \.npy array of real numbers"):
        read_mean_cube(Path("text.npy"))
    np.savez("many.npz", cube=np.zeros(3))
    with pytest.raises(WeightsError, match=r"many\.npz: not a \.npy array"):
        read_mean_cube(Path("many.npz"))
    np.save("cut.npy", np.zeros((3, 16, 128, 171), np.float32))
    data = Path("cut.npy").read_bytes()
    for length in (len(data) // 2, 0):
        Path("cut.npy").write_bytes(data[:length])
        with pytest.raises(WeightsError, match=r"cut\.npy: not a readable \.npy array"):
            read_mean_cube(Path("cut.npy"))
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 1600000, 128, 171)}"
    Path("lying.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64)
    )
    with pytest.raises(WeightsError, match=r"lying\.npy: not a readable \.npy array"):
        read_mean_cube(Path("lying.npy"))
    with pytest.raises(WeightsError, match=r"none\.npy: not a readable"):
        read_mean_cube(Path("none.npy"))
