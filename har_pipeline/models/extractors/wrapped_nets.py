"""Clip nets of torchvision and of PyTorchVideo's model zoo, trained on Kinetics-400.

torchvision: R3D-18, MC3-18 and R(2+1)D-18 (Tran et al. 2018), S3D (Xie et al. 2018), Video Swin-T (Liu et al. 2022).
PyTorchVideo, which the extra `video-models` installs: I3D-R50 (Carreira and Zisserman 2017 on ResNet-50), Slow-R50
(Feichtenhofer et al. 2019), R(2+1)D-R50 (Tran et al. 2018), CSN-R101 (Tran et al. 2019), X3D-M (Feichtenhofer 2020) and
MViT-B (Fan et al. 2021).

Layers: `pooled`, what the last linear layer reads (the mean over time and space of the last map; MViT: its class token),
and `logits` 400, before the softmax that R(2+1)D-R50 and X3D end with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import nn

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.extractors.base import IMAGENET_RGB, Input, Net, Preprocess, Weights, of_unit_range
from har_pipeline.models.extractors.weights import load_cut, read_state_dict

_LONGEST = 1000  # a bound, not a limit of the nets

# Of torchvision's convolutional clip nets.
_KINETICS_RGB = of_unit_range((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))


def _net(
    name: str,
    source: str,
    build: Callable[[], nn.Module],
    classifier: str,
    feature_dim: int,
    gmacs: float,
    read: Input,
    weights: Weights,
) -> Net:
    """Return the net that `build` makes whole; classifier: the dotted name of its last linear layer."""

    def cut(layer: str, stream: Stream) -> nn.Module:
        net = build()
        if layer != "logits":
            net.set_submodule(classifier, nn.Identity())
        return net

    def load(module: nn.Module, path: Path) -> None:
        load_cut(module, classifier, read_state_dict(path), path)

    return Net(
        name=name,
        source=source,
        inputs={"rgb": read},
        layers={"pooled": feature_dim, "logits": 400},
        default_layer="pooled",
        gmacs=gmacs,
        weights={"kinetics": weights},
        build=cut,
        load=load,
        file_preprocess=lambda path, stream: weights.preprocess,
        bf16_is_close=False,
    )


def _torchvision(
    name: str,
    source: str,
    sha256: str,
    classifier: str,
    feature_dim: int,
    gmacs: float,
    clip_len: int = 16,
    num_clips: int = 5,
    shortest: int = 1,
    resize: str = "stretch-171x128-center112",
    preprocess: Preprocess = _KINETICS_RGB,
) -> Net:
    """Return a net of torchvision.models.video. sha256: the first digits of its weights on Kinetics-400, as published.

    shortest: the fewest frames that pass its pools. Input and clips are those that torchvision states its accuracies for, at
    15 frames/s: of 30 frames/s every second one; but for the number of S3D's. Resample videos of other rates. torchvision
    resizes without antialiasing, we with it.
    """

    def build() -> nn.Module:
        from torchvision.models import video

        net: nn.Module = getattr(video, name)(weights=None)
        return net

    weights = Weights(
        url=f"https://download.pytorch.org/models/{name}-{sha256}.pth",
        sha256=sha256,
        licence="BSD-3-Clause (torchvision)",
        trained_on="Kinetics-400, torchvision",
        preprocess=preprocess,
    )
    read = Input(
        clips=ClipSpec(sampling="uniform", num_clips=num_clips, clip_len=clip_len, frame_interval=2),
        clip_lens=(shortest, _LONGEST),
        resize=resize,
        weights="kinetics",
    )
    return _net(name, source, build, classifier, feature_dim, gmacs, read, weights)


def _pytorchvideo_hub(name: str) -> ModuleType:
    """Return the module whose functions build PyTorchVideo's nets. Raises: ExtractionError if it cannot be imported."""
    try:
        with warnings.catch_warnings():
            # Its dependency fvcore compiles a loss with torch.jit at import; newer versions of PyTorch warn of that.
            warnings.simplefilter("ignore", FutureWarning)
            return import_module("pytorchvideo.models.hub")
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "pytorchvideo":
            raise ExtractionError(f"{name} needs PyTorchVideo: pip install 'har-pipeline[video-models]'") from error
        raise ExtractionError(
            f"{name}: the installed PyTorchVideo cannot be imported ({error}): update it with pip install -U "
            f"'har-pipeline[video-models]', or take a net of torchvision, such as r3d_18, s3d or swin3d_t"
        ) from error


def _pytorchvideo(
    name: str,
    source: str,
    file: str,
    clip_len: int,
    frame_interval: int,
    clip_lens: tuple[int, int],
    gmacs: float,
    head: str = "blocks.5",
    feature_dim: int = 2048,
    num_clips: int = 10,
) -> Net:
    """Return a net of PyTorchVideo's hub; frames and their interval as in its table ("frame length x sample rate").

    Frames are cut to 224 px, as in its training; the accuracies that the zoo states are, but for MViT's, of three crops of
    256 px. clip_lens: the shortest clip that fills the window of its last pool, and a bound; MViT has a place for each frame.
    head: the dotted name of its last part, which ends with the projection `proj`. The zoo publishes no hashes.
    """

    def build() -> nn.Module:
        net: nn.Module = getattr(_pytorchvideo_hub(name), name)(pretrained=False)
        net.get_submodule(head).activation = None  # type: ignore[assignment]
        return net

    weights = Weights(
        url=f"https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/{file}",
        sha256="",
        licence="Apache-2.0 (PyTorchVideo)",
        trained_on="Kinetics-400, PyTorchVideo's model zoo",
        preprocess=of_unit_range((0.45,) * 3, (0.225,) * 3),
    )
    read = Input(
        clips=ClipSpec(sampling="uniform", num_clips=num_clips, clip_len=clip_len, frame_interval=frame_interval),
        clip_lens=clip_lens,
        resize="short256-center224",
        weights="kinetics",
    )
    net = _net(name, source, build, f"{head}.proj", feature_dim, gmacs, read, weights)
    return replace(net, require=lambda: _pytorchvideo_hub(name))


_TRAN = "Tran et al. 2018, A Closer Look at Spatiotemporal Convolutions"
_R2PLUS1D = "Tran et al. 2018, R(2+1)D, on ResNet-50"
_LIU = "Liu et al. 2022, Video Swin Transformer"

NETS = (
    _torchvision("r3d_18", _TRAN, "b3b3357e", "fc", 512, 40.7),
    _torchvision("mc3_18", _TRAN, "a90a0ba3", "fc", 512, 43.3),
    _torchvision("r2plus1d_18", _TRAN, "91a641e6", "fc", 512, 40.5),
    # Five clips have as many frames as I3D's ten: each spans 255 frames, so that 50 s at 25 frames/s have no gap.
    _torchvision(
        "s3d",
        "Xie et al. 2018, S3D",
        "d76dad2f",
        "classifier",
        1024,
        143.8,
        128,
        shortest=13,
        resize="stretch-256x256-center224",
    ),
    _torchvision(
        "swin3d_t",
        _LIU,
        "7615ae03",
        "head",
        768,
        87.8,
        32,
        12,
        resize="short256-center224",
        preprocess=IMAGENET_RGB,
    ),
    _pytorchvideo(
        "i3d_r50",
        "Carreira and Zisserman 2017, on ResNet-50",
        "I3D_8x8_R50.pyth",
        8,
        8,
        (8, _LONGEST),
        28.4,
        head="blocks.6",
    ),
    _pytorchvideo("slow_r50", "Feichtenhofer et al. 2019, SlowFast", "SLOW_8x8_R50.pyth", 8, 8, (8, _LONGEST), 41.7),
    _pytorchvideo("r2plus1d_r50", _R2PLUS1D, "R2PLUS1D_16x4_R50.pyth", 16, 4, (13, _LONGEST), 57.5),
    _pytorchvideo("csn_r101", "Tran et al. 2019, CSN", "CSN_32x2_R101.pyth", 32, 2, (25, _LONGEST), 56.5),
    _pytorchvideo("x3d_m", "Feichtenhofer 2020, X3D", "X3D_M.pyth", 16, 5, (16, _LONGEST), 4.7),
    _pytorchvideo(
        "mvit_base_16x4", "Fan et al. 2021, MViT", "MVIT_B_16x4.pyth", 16, 4, (16, 16), 70.6, "head", 768, num_clips=5
    ),
)
