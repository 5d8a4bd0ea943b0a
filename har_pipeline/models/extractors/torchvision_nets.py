"""The clip nets of torchvision: R3D-18, MC3-18 and R(2+1)D-18 (Tran et al. 2018), S3D (Xie et al. 2018), Video Swin-T
(Liu et al. 2022), all trained on Kinetics-400.

Layers: `pooled`, the mean over time and space of the last map (512, 1,024 for S3D, 768 for Swin), and `logits` 400. Urls,
sizes and the range of the input, (x / 255 - mean) / std, are those of torchvision's weights entries, and so are the clips:
as many frames, and clips of a video, as its accuracies are stated for. They are stated for 15 frames/s, which is why every
second frame is taken; where videos are not near 30 frames/s, resample them. torchvision resizes without antialiasing, we
with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from torchvision.models import WeightsEnum, video

from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.extractors.base import Input, Net, Preprocess, Weights
from har_pipeline.models.extractors.weights import load_cut, read_state_dict


@dataclass(frozen=True, slots=True)
class _Row:
    """A builder of torchvision.models.video. classifier: the name of its last layer.

    clip_len, num_clips: frames of a clip and clips of a video; shortest: the fewest frames that pass its pools.
    """

    source: str
    published: WeightsEnum
    classifier: str
    feature_dim: int
    gmacs: float
    clip_len: int = 16
    num_clips: int = 5
    shortest: int = 1


_TRAN = "Tran et al. 2018, A Closer Look at Spatiotemporal Convolutions"


_LIU = "Liu et al. 2022, Video Swin Transformer"


_ROWS = {
    "r3d_18": _Row(_TRAN, video.R3D_18_Weights.KINETICS400_V1, "fc", 512, 40.7),
    "mc3_18": _Row(_TRAN, video.MC3_18_Weights.KINETICS400_V1, "fc", 512, 43.3),
    "r2plus1d_18": _Row(_TRAN, video.R2Plus1D_18_Weights.KINETICS400_V1, "fc", 512, 40.5),
    "s3d": _Row(
        "Xie et al. 2018, S3D", video.S3D_Weights.KINETICS400_V1, "classifier", 1024, 143.8, 128, 1, shortest=13
    ),
    "swin3d_t": _Row(_LIU, video.Swin3D_T_Weights.KINETICS400_V1, "head", 768, 87.8, 32, 12),
}


_LONGEST = 1000  # a bound, not a limit of the nets


def _build(name: str, row: _Row, layer: str, stream: Stream) -> nn.Module:
    net: nn.Module = getattr(video, name)(weights=None)
    if layer != "logits":
        setattr(net, row.classifier, nn.Identity())
    return net


def _load(row: _Row, module: nn.Module, path: Path) -> None:
    load_cut(module, row.classifier, read_state_dict(path), path)


def _resize_mode(resized: list[int], cropped: list[int]) -> str:
    scaled = f"short{resized[0]}" if len(resized) == 1 else f"stretch-{resized[1]}x{resized[0]}"  # (height, width)
    return f"{scaled}-center{cropped[0]}"


def _net(name: str, row: _Row) -> Net:
    transforms = row.published.transforms()
    preprocess = Preprocess(
        mean=tuple(255 * value for value in transforms.mean), std=tuple(255 * value for value in transforms.std)
    )
    read = Input(
        clips=ClipSpec(sampling="uniform", num_clips=row.num_clips, clip_len=row.clip_len, frame_interval=2),
        clip_lens=(row.shortest, _LONGEST),
        resize=_resize_mode(transforms.resize_size, transforms.crop_size),
        weights="kinetics",
    )
    weights = Weights(
        url=row.published.url,
        sha256=row.published.url.removesuffix(".pth").rsplit("-", 1)[1],
        licence="BSD-3-Clause (torchvision)",
        trained_on="Kinetics-400, torchvision",
        preprocess=preprocess,
    )
    return Net(
        name=name,
        source=row.source,
        input_size=transforms.crop_size[0],
        inputs={"rgb": read},
        layers={"pooled": row.feature_dim, "logits": 400},
        default_layer="pooled",
        gmacs=row.gmacs,
        weights={"kinetics": weights},
        build=partial(_build, name, row),
        load=partial(_load, row),
        file_preprocess=lambda path, stream: preprocess,
        bf16_is_close=False,
    )


NETS = tuple(_net(name, row) for name, row in _ROWS.items())
