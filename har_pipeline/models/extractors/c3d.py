"""C3D (Tran et al. 2015): eight 3x3x3 convolutions and two linear layers over 16 frames; the clips of Lakhal 2018.

Input 16x112x112, cut from frames stretched to 171x128. Layers: `pool5` 512x1x4x4 flattened channel first to 8,192, `fc6`
(the paper's descriptor) and `fc7` 4,096 after ReLU, `logits` 487 Sports-1M classes, for files that hold that `fc8`.

Two kinds of weights files are read, each with the preprocessing of its training:
- the common Sports-1M dict (`conv1.weight` ... `fc8.bias`), converted from the authors' Caffe net: BGR, minus the
  Sports-1M mean per channel (90.25, 97.66, 101.41: the mean of the authors' mean cube; issue 1 of DavideA/c3d-pytorch).
  The authors subtract the cube itself: see `read_mean_cube`.
- mmaction2's (`backbone.conv1a.conv.weight` ..., or without `backbone.`): RGB minus (104, 117, 128), as in its
  configuration c3d_sports1m_pretrained.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.records import ClipSpec
from har_pipeline.models.extractors.base import Input, Net, Preprocess, Weights
from har_pipeline.models.extractors.weights import load_strictly, read_state_dict

SPORTS1M_BGR = Preprocess(mean=(90.25, 97.66, 101.41), std=(1.0, 1.0, 1.0), bgr=True)
MMACTION2_RGB = Preprocess(mean=(104.0, 117.0, 128.0), std=(1.0, 1.0, 1.0))

_CONVOLUTIONS = {
    "conv1": (3, 64),
    "conv2": (64, 128),
    "conv3a": (128, 256),
    "conv3b": (256, 256),
    "conv4a": (256, 512),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}

# The max pool after a convolution; the first keeps time, the last pads 7x7 to 8x8 as Caffe's rounding up did.
_POOL_AFTER = {"conv1": "pool1", "conv2": "pool2", "conv3b": "pool3", "conv4b": "pool4", "conv5b": "pool5"}
_LINEARS = {"fc6": (8192, 4096), "fc7": (4096, 4096), "fc8": (4096, 487)}
_LINEARS_OF_LAYER = {"pool5": 0, "fc6": 1, "fc7": 2, "logits": 3}
_MMACTION2_NAMES = {"conv1a": "conv1", "conv2a": "conv2", "cls_head.fc_cls": "fc8"}
_SIZE, _CUBE = 112, (3, 16, 128, 171)


class C3D(nn.Module):
    """C3D up to one layer; (B, 3, 16, 112, 112) -> (B, feature_dim)."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        for name, (inputs, outputs) in _CONVOLUTIONS.items():
            self.add_module(name, nn.Conv3d(inputs, outputs, 3, padding=1))
            if name in _POOL_AFTER:
                window = (1, 2, 2) if name == "conv1" else (2, 2, 2)
                padding = (0, 1, 1) if name == "conv5b" else (0, 0, 0)
                self.add_module(_POOL_AFTER[name], nn.MaxPool3d(window, padding=padding))
        for name, (inputs, outputs) in list(_LINEARS.items())[: _LINEARS_OF_LAYER[layer]]:
            self.add_module(name, nn.Linear(inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, feature_dim) of clips (B, 3, 16, 112, 112)."""
        for name, part in self.named_children():
            if name == "fc6":
                x = x.flatten(1)
            x = part(x)
            if name in _CONVOLUTIONS or name in ("fc6", "fc7"):
                x = F.relu(x, inplace=True)
        return x.flatten(1)


def _is_mmaction2(state: dict[str, torch.Tensor]) -> bool:
    return any(key.endswith("conv1a.conv.weight") for key in state)


def _rename_mmaction2(key: str) -> str:
    part, parameter = key.removeprefix("backbone.").rsplit(".", 1)
    part = part.removesuffix(".conv")
    return f"{_MMACTION2_NAMES.get(part, part)}.{parameter}"


def _load(module: nn.Module, path: Path) -> None:
    state = read_state_dict(path)
    if _is_mmaction2(state):
        state = {_rename_mmaction2(key): value for key, value in state.items()}
    # Linear layers after the chosen one are ignored: features do not depend on the file's classes.
    unused = set(_LINEARS) - {name for name, _ in module.named_children()}
    load_strictly(module, {key: value for key, value in state.items() if key.split(".")[0] not in unused}, path)


def _file_preprocess(path: Path) -> Preprocess:
    return MMACTION2_RGB if _is_mmaction2(read_state_dict(path)) else SPORTS1M_BGR


def read_mean_cube(path: Path) -> np.ndarray:
    """Return the mean of the training clips, (3, 16, 112, 112) float32 in 0-255 units, to be subtracted from a clip.

    path: a `.npy` of shape (3, 16, 128, 171), (1, 3, 16, 128, 171) or (16, 128, 171, 3), as published for Sports-1M; its
    centre is cut out as from the frames. Channels keep the file's order, BGR for Sports-1M.
    Raises: WeightsError if the file is missing, not a plain array of numbers, of another shape, or not finite.
    Source: Tran et al. 2015, the authors' code (sport1m_train16_128_mean).
    """
    try:
        # Mapped, so that a header cannot ask for more memory than the file has.
        cube = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # bytes that are no array can break the reader anywhere
        raise WeightsError(
            f"{path}: not a readable .npy array ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from error
    if not isinstance(cube, np.ndarray) or cube.dtype.kind not in "fiu":
        raise WeightsError(f"{path}: not a .npy array of real numbers")
    if cube.shape == (1, *_CUBE):
        cube = cube[0]
    elif cube.shape == (*_CUBE[1:], 3):
        cube = cube.transpose(3, 0, 1, 2)
    if cube.shape != _CUBE:
        raise WeightsError(
            f"{path}: a mean cube has shape (3, 16, 128, 171), (1, 3, 16, 128, 171) or (16, 128, 171, 3), not {cube.shape}"
        )
    top, left = (_CUBE[2] - _SIZE) // 2, (_CUBE[3] - _SIZE) // 2
    cube = np.ascontiguousarray(cube[:, :, top : top + _SIZE, left : left + _SIZE], dtype=np.float32)
    if not np.isfinite(cube).all():
        raise WeightsError(f"{path}: the mean cube holds non-finite values")
    return cube


_FEATURE_LAYERS = ("pool5", "fc6", "fc7")
_MMACTION2 = "https://download.openmmlab.com/mmaction"

NET = Net(
    name="c3d",
    source="Tran et al. 2015, C3D",
    inputs={
        "rgb": Input(
            clips=ClipSpec(sampling="dense", num_clips=None, clip_len=16, clip_stride=8),  # Lakhal 2018, section 4
            clip_lens=(16, 16),
            resize="stretch-171x128-center112",
            weights="sports1m",
        )
    },
    layers={"pool5": 8192, "fc6": 4096, "fc7": 4096, "logits": 487},
    default_layer="fc6",
    gmacs=38.5,
    weights={
        "sports1m": Weights(
            url="http://imagelab.ing.unimore.it/files/c3d_pytorch/c3d.pickle",
            sha256="",
            licence="MIT (the port DavideA/c3d-pytorch)",
            trained_on="Sports-1M, the authors' Caffe net, converted",
            preprocess=SPORTS1M_BGR,
        ),
        "sports1m-mmaction2": Weights(
            url=f"{_MMACTION2}/recognition/c3d/c3d_sports1m_pretrain_20201016-dcc47ddc.pth",
            sha256="dcc47ddc",
            licence="Apache-2.0 (mmaction2)",
            trained_on="Sports-1M",
            preprocess=MMACTION2_RGB,
            layers=_FEATURE_LAYERS,
        ),
        "ucf101-mmaction2": Weights(
            url=f"{_MMACTION2}/v1.0/recognition/c3d/c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb/"
            "c3d_sports1m-pretrained_8xb30-16x1x1-45e_ucf101-rgb_20220811-31723200.pth",
            sha256="31723200",
            licence="Apache-2.0 (mmaction2)",
            trained_on="Sports-1M, then UCF-101 split 1",
            preprocess=MMACTION2_RGB,
            layers=_FEATURE_LAYERS,
        ),
    },
    build=lambda layer, stream: C3D(layer),
    load=_load,
    file_preprocess=lambda path, stream: _file_preprocess(path),
    bf16_is_close=False,  # not measured: the weights' server did not answer
)
