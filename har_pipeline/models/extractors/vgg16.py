"""VGG16 (Simonyan and Zisserman 2015, configuration D): the frame features of Orozco 2020, section 2.1.

Input 224x224. Layers: `pool5` 7x7x512 flattened channel first to 25,088 (the paper's "layer 10" must be this one, Keras's
block5_pool: section 3 gives 7x7x512 = 25088), `pool5_avg` its mean over space (512), `fc6` and `fc7` 4,096 after ReLU. The
tokens of `pool5` are its 49 positions, 512 values each. Keras flattens pool5 channel last; a head learns the same from either
order.

Weights: `keras` are those that Keras ships and Orozco used, the authors' own Caffe weights: BGR minus (103.939, 116.779,
123.68). `oxford` is torchvision's port of the base net of amdegroot/ssd.pytorch, trained with the authors' scaling of pixels;
whether its convolutions are the authors' own is not said there. `imagenet` is torchvision's own training.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from har_pipeline.core.errors import WeightsError
from har_pipeline.models.extractors.base import (
    FRAMES,
    IMAGENET_RGB,
    Input,
    Net,
    Preprocess,
    Tokens,
    Weights,
    of_unit_range,
)
from har_pipeline.models.extractors.weights import load_strictly, read_state_dict

if TYPE_CHECKING:
    from torchvision.models import VGG

# Keras's mode "caffe"; the authors' own means.
KERAS_BGR = Preprocess(mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0), bgr=True)
# The means with which torchvision's port is fed, the authors' in units of 255.
_SCALED_AS_AUTHORS = of_unit_range((0.48235, 0.45882, 0.40784), (1 / 255,) * 3)
_CONV_LAYERS = ("pool5", "pool5_avg")


def _whole_net() -> VGG:
    from torchvision.models import vgg16

    return vgg16(weights=None)


class VGG16(nn.Module):
    """VGG16 up to one layer; (B, 3, 1, 224, 224) -> (B, feature_dim). tokens: pool5 as (B, 49, 512)."""

    def __init__(self, layer: str, *, tokens: bool = False) -> None:
        super().__init__()
        net = _whole_net()
        self.layer, self.tokens = layer, tokens
        self.features = net.features
        # The head's linear layers are numbered as in torchvision: 0 = fc6, 3 = fc7; dropout is off in evaluation.
        self.classifier = {"fc6": net.classifier[:2], "fc7": net.classifier[:5]}.get(layer, nn.Sequential())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, feature_dim) for frames (B, 3, 1, 224, 224)."""
        x = self.features(x[:, :, 0].contiguous(memory_format=torch.channels_last))
        if self.tokens:
            return x.flatten(2).transpose(1, 2)
        if self.layer == "pool5_avg":
            return x.mean(dim=(2, 3))
        return self.classifier(x.flatten(1))


def _load(module: nn.Module, path: Path) -> None:
    state = _read_keras(path) if path.suffix == ".h5" else read_state_dict(path)
    # Parts after the layer are ignored; nothing before it may be missing.
    wanted = module.state_dict().keys()
    load_strictly(module, {key: value for key, value in state.items() if key in wanted}, path)


def _read_keras(path: Path) -> dict[str, torch.Tensor]:
    """Return torchvision's keys from Keras's VGG16 HDF5 file (block1_conv1 ... fc2)."""
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(f"{path}: reading Keras files needs h5py: pip install 'har-pipeline[keras]'") from error
    with torch.device("meta"):
        layers = list(_whole_net().features.children())
    convolutions = {i: tuple(m.weight.shape) for i, m in enumerate(layers) if isinstance(m, nn.Conv2d)}
    names = [f"block{block}_conv{i}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    state: dict[str, torch.Tensor] = {}
    try:
        with h5py.File(path, "r") as file:
            groups = _own(file, "model_weights") if "model_weights" in file else file
            for (index, (outputs, inputs, *size)), name in zip(convolutions.items(), names, strict=True):
                kernel, bias = _keras_tensors(_own(groups, name), (*size, inputs, outputs))
                state |= {
                    f"features.{index}.weight": kernel.permute(3, 2, 0, 1).contiguous(),
                    f"features.{index}.bias": bias,
                }
            for index, name, inputs in ((0, "fc1", 25088), (3, "fc2", 4096)):
                if name in groups:
                    kernel, bias = _keras_tensors(_own(groups, name), (inputs, 4096))
                    if index == 0:  # Keras flattens (7, 7, 512), torchvision (512, 7, 7).
                        kernel = kernel.view(7, 7, 512, -1).permute(2, 0, 1, 3).reshape(25088, -1)
                    state |= {f"classifier.{index}.weight": kernel.T.contiguous(), f"classifier.{index}.bias": bias}
    except WeightsError:
        raise
    except Exception as error:  # a file of another kind or a damaged one can break the reader anywhere
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: not a readable Keras file of VGG16 ({first})") from error
    return state


def _own(group: Any, name: str) -> Any:
    """Return a part of a HDF5 group. Raises: ValueError if it is in another file, as links and datasets may say."""
    import h5py

    if not isinstance(group, h5py.Group) or name not in group:
        raise ValueError(f"it has no {name}")
    link, found = group.get(name, getlink=True), None
    if isinstance(link, h5py.HardLink):
        found = group[name]
    if found is None or (isinstance(found, h5py.Dataset) and (found.is_virtual or found.external)):
        raise ValueError(f"{name} is not in the file itself")
    return found


def _keras_tensors(group: Any, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the kernel of a shape and the bias of its last dimension that a layer's group holds; nothing else is read."""
    import h5py

    found: list[Any] = []

    def collect(group: Any, depth: int) -> None:
        if not isinstance(group, h5py.Group) or len(group) > 4 or depth > 4:
            raise ValueError(f"{group.name} is not as Keras writes a layer")
        for name in group:
            part = _own(group, name)
            if isinstance(part, h5py.Dataset):
                found.append(part)
            else:
                collect(part, depth + 1)

    collect(group, 0)
    found.sort(key=lambda part: -part.ndim)
    if [part.shape for part in found] != [shape, shape[-1:]] or any(part.dtype.kind != "f" for part in found):
        shapes = ", ".join(f"{part.dtype} {part.shape}" for part in found[:5])
        raise ValueError(f"{group.name} must hold a kernel {shape} and a bias {shape[-1:]} of floats, not [{shapes}]")
    kernel, bias = (torch.from_numpy(part[...]) for part in found)
    return kernel, bias


NET = Net(
    name="vgg16",
    source="Simonyan and Zisserman 2015, configuration D",
    inputs={"rgb": Input(clips=FRAMES, clip_lens=(1, 1), resize="stretch-224", weights="imagenet")},
    layers={"pool5": 25088, "pool5_avg": 512, "fc6": 4096, "fc7": 4096},
    default_layer="pool5",
    gmacs=15.3,
    weights={
        "imagenet": Weights(
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
            sha256="397923af",
            licence="BSD-3-Clause (torchvision)",
            trained_on="ImageNet-1k, torchvision",
            preprocess=IMAGENET_RGB,
        ),
        "oxford": Weights(
            url="https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",
            sha256="88682ab5",
            licence="CC-BY-4.0 (Oxford VGG)",
            trained_on="ImageNet-1k with the authors' scaling, torchvision's port from ssd.pytorch, convolutions only",
            preprocess=_SCALED_AS_AUTHORS,
            layers=_CONV_LAYERS,
        ),
        "keras": Weights(
            url="https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            sha256="",
            md5="6d6bbae143d832006294945121d1f1fc",
            licence="CC-BY-4.0 (Oxford VGG)",
            trained_on="ImageNet-1k, the authors' Caffe weights as Keras ships them, convolutions only",
            preprocess=KERAS_BGR,
            layers=_CONV_LAYERS,
        ),
    },
    build=lambda layer, stream: VGG16(layer),
    tokens=Tokens(
        layers={"pool5": 512},
        count=lambda layer, clip_len: 49,
        build=lambda layer, stream: VGG16(layer, tokens=True),
    ),
    load=_load,
    bf16_is_close=True,
    file_preprocess=lambda path, stream: KERAS_BGR if path.suffix == ".h5" else IMAGENET_RGB,
)
