"""The clip nets of PyTorchVideo's model zoo, trained on Kinetics-400; they need the extra `video-models` to be built.

I3D-R50 (Carreira and Zisserman 2017 on ResNet-50), Slow-R50 (Feichtenhofer et al. 2019), R(2+1)D-R50 (Tran et al. 2018),
CSN-R101 (Tran et al. 2019), X3D-M (Feichtenhofer 2020) and MViT-B (Fan et al. 2021). Input 224x224, the centre of a short
side of 256, (x / 255 - 0.45) / 0.225; frames and their interval as in the zoo's table ("frame length x sample rate"), ten
clips of a video (MViT: five). Layers: `pooled`, what the last projection reads (2,048; 768 for MViT, its class token), and
`logits` 400, without the softmax that R(2+1)D and X3D end with. The zoo publishes no hashes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from torch import nn

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.extractors.base import Input, Net, Preprocess, Weights
from har_pipeline.models.extractors.weights import load_cut, read_state_dict

_ZOO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics"


_PREPROCESS = Preprocess(mean=(0.45 * 255,) * 3, std=(0.225 * 255,) * 3)


@dataclass(frozen=True, slots=True)
class _Row:
    """A builder of PyTorchVideo's hub. head: the dotted name of its last part, which ends with the projection `proj`.

    clip_lens: the shortest clip that fills the window of its last pool, and a bound; MViT has a place for each frame.
    """

    source: str
    file: str
    clip_len: int
    frame_interval: int
    clip_lens: tuple[int, int]
    gmacs: float
    head: str = "blocks.5"
    feature_dim: int = 2048
    num_clips: int = 10


_ROWS = {
    "i3d_r50": _Row(
        "Carreira and Zisserman 2017, on ResNet-50", "I3D_8x8_R50.pyth", 8, 8, (8, 1000), 28.4, head="blocks.6"
    ),
    "slow_r50": _Row("Feichtenhofer et al. 2019, SlowFast", "SLOW_8x8_R50.pyth", 8, 8, (8, 1000), 41.7),
    "r2plus1d_r50": _Row("Tran et al. 2018, R(2+1)D, on ResNet-50", "R2PLUS1D_16x4_R50.pyth", 16, 4, (13, 1000), 57.5),
    "csn_r101": _Row("Tran et al. 2019, CSN", "CSN_32x2_R101.pyth", 32, 2, (25, 1000), 56.5),
    "x3d_m": _Row("Feichtenhofer 2020, X3D", "X3D_M.pyth", 16, 5, (16, 1000), 4.7),
    "mvit_base_16x4": _Row(
        "Fan et al. 2021, MViT", "MVIT_B_16x4.pyth", 16, 4, (16, 16), 70.6, head="head", feature_dim=768, num_clips=5
    ),
}


def _build(name: str, head_name: str, layer: str, stream: Stream) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # Its dependency fvcore compiles a loss with torch.jit at import, which newer versions of PyTorch warn about.
            warnings.simplefilter("ignore", FutureWarning)
            hub = import_module("pytorchvideo.models.hub")
    except ImportError as error:
        raise ExtractionError(f"{name} is built by PyTorchVideo: pip install 'har-pipeline[video-models]'") from error
    net: nn.Module = getattr(hub, name)(pretrained=False)
    head = net.get_submodule(head_name)
    head.activation = None  # type: ignore[assignment]
    if layer != "logits":
        head.proj = nn.Identity()
    return net


def _load(head_name: str, module: nn.Module, path: Path) -> None:
    load_cut(module, f"{head_name}.proj", read_state_dict(path), path)


def _net(name: str, row: _Row) -> Net:
    clips = ClipSpec(
        sampling="uniform", num_clips=row.num_clips, clip_len=row.clip_len, frame_interval=row.frame_interval
    )
    weights = Weights(
        url=f"{_ZOO}/{row.file}",
        sha256="",
        licence="Apache-2.0 (PyTorchVideo)",
        trained_on="Kinetics-400, PyTorchVideo's model zoo",
        preprocess=_PREPROCESS,
    )
    return Net(
        name=name,
        source=row.source,
        input_size=224,
        inputs={"rgb": Input(clips=clips, clip_lens=row.clip_lens, resize="short256-center224", weights="kinetics")},
        layers={"pooled": row.feature_dim, "logits": 400},
        default_layer="pooled",
        gmacs=row.gmacs,
        weights={"kinetics": weights},
        build=partial(_build, name, row.head),
        load=partial(_load, row.head),
        file_preprocess=lambda path, stream: _PREPROCESS,
        bf16_is_close=False,
    )


NETS = tuple(_net(name, row) for name, row in _ROWS.items())
