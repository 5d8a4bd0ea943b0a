"""TSN, temporal segment networks (Wang et al. 2016): a frame net on one short piece of each of 25 segments of a video.

Input 224x224: the middle frame of a segment, or five flow fields around it as ten channels x1, y1, x2, y2, ... (section
3.3: 25 frames or flow stacks at test). One net per frame net, each with its own feature layer and `logits` 1,000 ImageNet
classes: `tsn_bninception` `global_pool` 1,024; `tsn_resnet50` and `tsn_resnet101` `avgpool` 2,048;
`tsn_efficientnet_lite0` `pooled` 1,280. The mean over a video's segments, TSN's consensus, is left to the head.

Cross-modality initialisation (section 3.2, "Cross Modality Pre-training"): if a flow net loads a file whose first
convolution reads RGB, its kernels are averaged over the three channels and repeated over the ten. The feature spec shows
it: stream flow, with the sha256 of an RGB file as weights.

Range. RGB as each frame net was trained. Flow as in the authors' code (yjxiong/tsn-pytorch): [-20, 20] px/frame becomes
[0, 255], then BN-Inception subtracts 128, ResNet takes (v / 255 - 0.5) / 0.226; EfficientNet-Lite0, which has no flow
weights of its own, gets its RGB scaling (v - 127) / 128. The authors round v to integers and store JPEG; we do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.extractors import efficientnet_lite0
from har_pipeline.models.extractors.base import IMAGENET_RGB, Input, Net, Preprocess, Weights
from har_pipeline.models.extractors.bn_inception import BNInception
from har_pipeline.models.extractors.weights import load_cut, read_state_dict

FLOW_FIELDS = 5
_BYTES_PER_PX = 255 / 40

# What checkpoints call the last layer: tsn-pytorch, Cadene's pretrained-models, the Kinetics conversions.
_CLASSIFIERS = ("new_fc", "last_linear", "fc_action")


class SegmentNet(nn.Module):
    """A frame net that reads a clip's frames as channels; (B, C, T, 224, 224) -> (B, feature_dim)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, feature_dim) of clips: (B, 3, 1, 224, 224) RGB or (B, 2, 5, 224, 224) flow."""
        return self.net(x.transpose(1, 2).flatten(1, 2).unsqueeze(2))


def _frame_resnet(blocks: tuple[int, ...]) -> nn.Module:
    """Return torchvision's ResNet of bottlenecks on frames (B, channels, 1, H, W)."""
    from torchvision.models.resnet import Bottleneck, ResNet

    class FrameResNet(ResNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[:, :, 0].contiguous(memory_format=torch.channels_last))

    return FrameResNet(Bottleneck, list(blocks))


@dataclass(frozen=True, slots=True)
class _FrameNet:
    """A frame net and its numbers."""

    build: Callable[[], nn.Module]
    # Name of the first convolution.
    first: str
    # Name of the last layer.
    classifier: str
    # The feature layer and its dimension.
    layer: str
    feature_dim: int
    source: str
    gmacs: float
    # Preprocessing of rgb, and of flow in px/frame.
    rgb: Preprocess
    flow: Preprocess
    weights: Mapping[str, Weights]
    # Names of the default weights.
    default_weights: Mapping[Stream, str]


def _flow_preprocess(mean: float, std: float) -> Preprocess:
    """Return `(v - mean) / std` of v in [0, 255] as a formula of px/frame in [-20, 20]."""
    return Preprocess(mean=(mean / _BYTES_PER_PX - 20,) * 2, std=(std / _BYTES_PER_PX,) * 2)


def _build(frame_net: _FrameNet, layer: str, stream: Stream) -> nn.Module:
    net = frame_net.build()
    if layer != "logits":
        setattr(net, frame_net.classifier, nn.Identity())
    if stream == "flow":
        first = cast(nn.Conv2d, net.get_submodule(frame_net.first))
        first.in_channels = 2 * FLOW_FIELDS
        first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, first.in_channels, *first.kernel_size))
        first.reset_parameters()
    return SegmentNet(net)


def _rename(key: str, classifier: str) -> str:
    key = key.removeprefix("base_model.")
    part, _, parameter = key.rpartition(".")
    return f"{classifier}.{parameter}" if part in _CLASSIFIERS else key


def _load(frame_net: _FrameNet, module: nn.Module, path: Path) -> None:
    net = cast(SegmentNet, module).net
    wanted = net.state_dict()
    state = {_rename(key, frame_net.classifier): value for key, value in read_state_dict(path).items()}
    for key, value in state.items():
        # Batch normalisations converted from Caffe have shape (1, C).
        if key in wanted and value.shape == (1, *wanted[key].shape):
            state[key] = value[0]
    first = f"{frame_net.first}.weight"
    if first in state and state[first].dim() == 4 and state[first].shape[1] == 3 != wanted[first].shape[1]:
        state[first] = state[first].mean(dim=1, keepdim=True).expand_as(wanted[first])
    load_cut(net, frame_net.classifier, state, path)


def _both_streams(name: str, weights: Weights, flow: Preprocess) -> dict[str, Weights]:
    """Return RGB weights under their name, and as the flow net's initialisation under `<name>-flow`."""
    trained_on = f"{weights.trained_on}; for flow by cross-modality initialisation only"
    return {
        name: weights,
        f"{name}-flow": replace(weights, stream="flow", trained_on=trained_on, preprocess=flow),
    }


def _net(name: str, frame_net: _FrameNet) -> Net:
    def read(stream: Stream, clip_len: int) -> Input:
        return Input(
            clips=ClipSpec(sampling="segments", num_clips=25, clip_len=clip_len),
            clip_lens=(clip_len, clip_len),
            resize="stretch-340x256-center224",
            weights=frame_net.default_weights[stream],
        )

    return Net(
        name=name,
        source=f"Wang et al. 2016, TSN; {frame_net.source}",
        inputs={"rgb": read("rgb", 1), "flow": read("flow", FLOW_FIELDS)},
        layers={frame_net.layer: frame_net.feature_dim, "logits": 1000},
        default_layer=frame_net.layer,
        gmacs=frame_net.gmacs,
        weights=frame_net.weights,
        build=partial(_build, frame_net),
        load=partial(_load, frame_net),
        file_preprocess=lambda path, stream: frame_net.flow if stream == "flow" else frame_net.rgb,
        bf16_is_close=False,
        folds_batch_norms=True,
    )


_CAFFE_BGR = Preprocess(mean=(104.0, 117.0, 128.0), std=(1.0, 1.0, 1.0), bgr=True)
_CAFFE_FLOW = _flow_preprocess(128, 1)
_RESNET_FLOW = _flow_preprocess(0.5 * 255, 0.226 * 255)
_LITE0_FLOW = _flow_preprocess(127, 128)
_FROM_IMAGENET: dict[Stream, str] = {"rgb": "imagenet", "flow": "imagenet-flow"}


def _kinetics(file: str, stream: Stream, preprocess: Preprocess) -> Weights:
    return Weights(
        url=f"https://yjxiong.blob.core.windows.net/ssn-models/{file}",
        sha256=file.removesuffix(".pth").rsplit("-", 1)[1],
        licence="not stated (the authors', yjxiong/action-detection)",
        trained_on="ImageNet, then Kinetics-400 with TSN; no classifier",
        preprocess=preprocess,
        stream=stream,
        layers=("global_pool",),
    )


_BN_INCEPTION = _FrameNet(
    build=BNInception,
    first="conv1_7x7_s2",
    classifier="fc",
    layer="global_pool",
    feature_dim=1024,
    source="BN-Inception, Ioffe and Szegedy 2015",
    gmacs=2.0,
    rgb=_CAFFE_BGR,
    flow=_CAFFE_FLOW,
    weights={
        "kinetics-rgb": _kinetics("bninception_rgb_kinetics_init-d4ee618d3399.pth", "rgb", _CAFFE_BGR),
        "kinetics-flow": _kinetics("bninception_flow_kinetics_init-1410c1ccb470.pth", "flow", _CAFFE_FLOW),
        **_both_streams(
            "imagenet",
            Weights(
                url="http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
                sha256="52deb4733",
                licence="not stated (Cadene/pretrained-models.pytorch is BSD-3-Clause)",
                trained_on="ImageNet-1k, the authors' Caffe weights, converted",
                preprocess=_CAFFE_BGR,
            ),
            _CAFFE_FLOW,
        ),
    },
    default_weights={"rgb": "kinetics-rgb", "flow": "kinetics-flow"},
)


def _resnet(blocks: tuple[int, ...], gmacs: float, name: str, v1: str, v2: str) -> _FrameNet:
    """Return the frame net of torchvision's ResNet `name`; v1, v2: first digits of the sha256 of its two sets of weights."""
    weights: dict[str, Weights] = {}
    for own, published, sha256 in (("imagenet", "IMAGENET1K_V1", v1), ("imagenet-v2", "IMAGENET1K_V2", v2)):
        rgb = Weights(
            url=f"https://download.pytorch.org/models/{name}-{sha256}.pth",
            sha256=sha256,
            licence="BSD-3-Clause (torchvision)",
            trained_on=f"ImageNet-1k, torchvision's {published}",
            preprocess=IMAGENET_RGB,
        )
        weights |= _both_streams(own, rgb, _RESNET_FLOW)
    return _FrameNet(
        build=lambda: _frame_resnet(blocks),
        first="conv1",
        classifier="fc",
        layer="avgpool",
        feature_dim=2048,
        source="ResNet, He et al. 2016",
        gmacs=gmacs,
        rgb=IMAGENET_RGB,
        flow=_RESNET_FLOW,
        weights=weights,
        default_weights=_FROM_IMAGENET,
    )


_LITE0_WEIGHTS = efficientnet_lite0.NET.weights["imagenet"]

_LITE0 = _FrameNet(
    build=lambda: efficientnet_lite0.EfficientNetLite0("logits"),
    first="_conv_stem",
    classifier="_fc",
    layer="pooled",
    feature_dim=1280,
    source="EfficientNet-Lite0, Tan and Le 2019",
    gmacs=0.4,
    rgb=_LITE0_WEIGHTS.preprocess,
    flow=_LITE0_FLOW,
    weights=_both_streams("imagenet", _LITE0_WEIGHTS, _LITE0_FLOW),
    default_weights=_FROM_IMAGENET,
)

NETS = (
    _net("tsn_bninception", _BN_INCEPTION),
    _net("tsn_resnet50", _resnet((3, 4, 6, 3), 4.1, "resnet50", "0676ba61", "11ad3fa6")),
    _net("tsn_resnet101", _resnet((3, 4, 23, 3), 7.8, "resnet101", "63fe2227", "cd907fc2")),
    _net("tsn_efficientnet_lite0", _LITE0),
)
