from __future__ import annotations

from pathlib import Path

import pytest
import torch

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.files import cached_weights
from har_pipeline.models.extractors import build_extractor
from har_pipeline.models.extractors import weights as weights_module
from har_pipeline.models.extractors.vgg16 import VGG16
from har_pipeline.models.extractors.weights import read_state_dict


def test_bad_weights_give_clear_errors(tmp_path: Path) -> None:
    text = tmp_path / "weights.pth"
    text.write_text("not a weights file")
    with pytest.raises(WeightsError, match=r"weights\.pth: not a readable weights file"):
        build_extractor("vgg16", weights=str(text), device="cpu")
    with pytest.raises(WeightsError, match="neither a file nor one of imagenet, oxford, random"):
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
