from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import pictures
from torch import nn

from har_pipeline.core.errors import WeightsError
from har_pipeline.models.extractors import build_extractor
from har_pipeline.models.extractors.base import IMAGENET_RGB
from har_pipeline.models.extractors.vgg16 import VGG16


def test_vgg16_layers_agree_with_torchvision() -> None:
    from torchvision.models import vgg16

    torch.manual_seed(3)
    net = vgg16(weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        pool5 = net.features(x)
        fc6 = net.classifier[:2](pool5.flatten(1))
        fc7 = net.classifier[:5](pool5.flatten(1))
        wanted = {"pool5": pool5.flatten(1), "pool5_avg": pool5.mean(dim=(2, 3)), "fc6": fc6, "fc7": fc7}
        for layer, expected in wanted.items():
            with torch.device("meta"):  # weights that are replaced need not be drawn
                ours = VGG16(layer).eval()
            ours.load_state_dict({k: v for k, v in net.state_dict().items() if k in ours.state_dict()}, assign=True)
            torch.testing.assert_close(ours(x[:, :, None]), expected, rtol=1e-4, atol=1e-5)


def test_vgg16_loads_a_torchvision_file_and_refuses_another(tmp_path: Path) -> None:
    from torchvision.models import resnet18, vgg16

    with torch.device("meta"):
        net = vgg16(weights=None)
    net.to_empty(device="cpu")
    with torch.no_grad():
        net.features[0].weight.normal_()
    torch.save(net.state_dict(), tmp_path / "vgg.pth")
    extractor = build_extractor("vgg16", weights=str(tmp_path / "vgg.pth"), device="cpu", precision="fp32")
    torch.testing.assert_close(
        extractor.module.state_dict()["features.0.weight"], net.state_dict()["features.0.weight"]
    )
    assert extractor.weights.startswith("sha256:")
    assert extractor.preprocess == IMAGENET_RGB
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="does not fit the net"):
        build_extractor("vgg16", weights=str(tmp_path / "resnet.pth"), device="cpu")


def test_vgg16_loads_a_keras_file_with_its_own_preprocessing(tmp_path: Path) -> None:
    """The layers of Keras's file, (H, W, in, out) kernels and a channel-last flattening, give torchvision's numbers."""
    h5py = pytest.importorskip("h5py")
    torch.manual_seed(1)
    wanted = VGG16("fc6").eval()
    convolutions = [m for m in wanted.features if isinstance(m, nn.Conv2d)]
    names = [f"block{b}_conv{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    with h5py.File(tmp_path / "vgg.h5", "w") as file:
        for name, conv in zip(names, convolutions, strict=True):
            file[f"{name}/{name}_W_1:0"] = conv.weight.detach().permute(2, 3, 1, 0).numpy()
            file[f"{name}/{name}_b_1:0"] = conv.bias.detach().numpy()
        linear = wanted.classifier[0]
        kernel = linear.weight.detach().T.reshape(512, 7, 7, 4096).permute(1, 2, 0, 3).reshape(25088, 4096)
        file["fc1/fc1_W_1:0"] = kernel.numpy()
        file["fc1/fc1_b_1:0"] = linear.bias.detach().numpy()
    extractor = build_extractor("vgg16", layer="fc6", weights=str(tmp_path / "vgg.h5"), device="cpu", precision="fp32")
    clips = pictures(1)
    bgr = clips[:, 0].flip(-1).float() - torch.tensor([103.939, 116.779, 123.68])
    with torch.inference_mode():
        expected = wanted(bgr.permute(0, 3, 1, 2)[:, :, None])
    torch.testing.assert_close(extractor(clips), expected, rtol=1e-3, atol=1e-3)


def write_keras(path: Path, change: Callable[[Any], None]) -> None:
    """Write a file as Keras does, of zeros, and change it."""
    h5py = pytest.importorskip("h5py")
    convolutions = [m for m in VGG16("pool5").features if isinstance(m, nn.Conv2d)]
    names = [f"block{b}_conv{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    with h5py.File(path, "w") as file:
        for name, conv in zip(names, convolutions, strict=True):
            outputs, inputs, *size = conv.weight.shape
            file.create_dataset(f"{name}/{name}_W_1:0", (*size, inputs, outputs), "f4")
            file.create_dataset(f"{name}/{name}_b_1:0", (outputs,), "f4")
        change(file)


def replaced(name: str, shape: tuple[int, ...], dtype: str = "f4", **options: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[f"block1_conv1/block1_conv1_{name}_1:0"]
        file.create_dataset(f"block1_conv1/block1_conv1_{name}_1:0", shape, dtype, **options)

    return change


def link_elsewhere(file: Any) -> None:
    import h5py

    del file["block1_conv1"]
    file["block1_conv1"] = h5py.ExternalLink("/etc/hostname", "/a")


def keep_elsewhere(file: Any) -> None:
    replaced("b", (64,), external=[("/etc/hostname", 0, 256)])(file)


@pytest.mark.parametrize(
    "change",
    [
        replaced("W", (10**6, 10**6), chunks=(100, 100)),
        replaced("b", (65,)),
        replaced("b", (64,), "i8"),
        replaced("b", ()),
        link_elsewhere,
        keep_elsewhere,
        lambda file: file.pop("block3_conv2"),
        lambda file: file["block1_conv1"].pop("block1_conv1_b_1:0"),
    ],
)
def test_odd_keras_files_are_one_line_and_nothing_else_is_read(tmp_path: Path, change: Callable[[Any], None]) -> None:
    write_keras(tmp_path / "vgg.h5", change)
    with pytest.raises(WeightsError, match=r"vgg\.h5: not a readable Keras file") as caught:
        build_extractor("vgg16", layer="pool5", weights=str(tmp_path / "vgg.h5"), device="cpu")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"text", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_files_that_are_no_hdf5(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "vgg.h5").write_bytes(content)
    with pytest.raises(WeightsError, match=r"vgg\.h5: not a readable Keras file"):
        build_extractor("vgg16", weights=str(tmp_path / "vgg.h5"), device="cpu")
