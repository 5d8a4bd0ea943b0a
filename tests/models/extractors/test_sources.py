"""How every weights set is fed, against its source: what torchvision, PyTorchVideo and Keras state, or the authors' code."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import ResNet50_Weights, ResNet101_Weights, VGG16_Weights, WeightsEnum, video
from torchvision.transforms import InterpolationMode

from har_pipeline.models.extractors.nets import all_nets, find_net

Numbers = tuple[str, tuple[float, ...], tuple[float, ...]]  # order of the channels, means, deviations

TORCHVISION: dict[tuple[str, str], WeightsEnum] = {
    ("vgg16", "imagenet"): VGG16_Weights.IMAGENET1K_V1,
    ("vgg16", "oxford"): VGG16_Weights.IMAGENET1K_FEATURES,
    ("tsn_resnet50", "imagenet"): ResNet50_Weights.IMAGENET1K_V1,
    ("tsn_resnet50", "imagenet-v2"): ResNet50_Weights.IMAGENET1K_V2,
    ("tsn_resnet101", "imagenet"): ResNet101_Weights.IMAGENET1K_V1,
    ("tsn_resnet101", "imagenet-v2"): ResNet101_Weights.IMAGENET1K_V2,
    ("r3d_18", "kinetics"): video.R3D_18_Weights.KINETICS400_V1,
    ("mc3_18", "kinetics"): video.MC3_18_Weights.KINETICS400_V1,
    ("r2plus1d_18", "kinetics"): video.R2Plus1D_18_Weights.KINETICS400_V1,
    ("s3d", "kinetics"): video.S3D_Weights.KINETICS400_V1,
    ("swin3d_t", "kinetics"): video.Swin3D_T_Weights.KINETICS400_V1,
}
PYTORCHVIDEO = ("i3d_r50", "slow_r50", "r2plus1d_r50", "csn_r101", "x3d_m", "mvit_base_16x4")

# Written in the sources, of which no package is installed. Flow: (v - mean) / deviation of v in 0-255, which stands for -20
# to 20 px/frame, so v = 127.5 + 6.375 flow.
MMACTION2 = (
    "rgb",
    (104.0, 117.0, 128.0),
    (1.0, 1.0, 1.0),
)  # configs/recognition/c3d: mean, std of its data preprocessor
CAFFE = ("bgr", (104.0, 117.0, 128.0), (1.0, 1.0, 1.0))  # tsn-pytorch and pretrained-models.pytorch, BN-Inception
LITE = ("rgb", (127.0,) * 3, (128.0,) * 3)  # tensorflow/tpu, efficientnet/lite: MEAN_RGB, STDDEV_RGB
UNIT = ("rgb", (127.5,) * 3, (127.5,) * 3)  # pytorch-i3d: 2 (x / 255) - 1


def of_flow(mean: float, std: float) -> Numbers:
    return ("flow", ((mean - 127.5) / 6.375,) * 2, (std / 6.375,) * 2)


AUTHORS: dict[tuple[str, str], Numbers] = {
    ("c3d", "sports1m"): ("bgr", (90.25, 97.66, 101.41), (1.0, 1.0, 1.0)),  # issue 1 of DavideA/c3d-pytorch
    ("c3d", "sports1m-mmaction2"): MMACTION2,
    ("c3d", "ucf101-mmaction2"): MMACTION2,
    ("efficientnet_lite0", "imagenet"): LITE,
    ("tsn_efficientnet_lite0", "imagenet"): LITE,
    ("tsn_efficientnet_lite0", "imagenet-flow"): of_flow(127, 128),
    ("i3d", "kinetics-rgb"): UNIT,
    ("i3d", "charades-rgb"): UNIT,
    ("i3d", "kinetics-flow"): ("flow", (0.0, 0.0), (20.0, 20.0)),  # kinetics-i3d: cut at 20 px/frame, then in [-1, 1]
    ("i3d", "charades-flow"): ("flow", (0.0, 0.0), (20.0, 20.0)),
    ("tsn_bninception", "kinetics-rgb"): CAFFE,
    ("tsn_bninception", "imagenet"): CAFFE,
    ("tsn_bninception", "kinetics-flow"): of_flow(128, 1),  # tsn-pytorch: input_mean [128] for flow
    ("tsn_bninception", "imagenet-flow"): of_flow(128, 1),
    # tsn-pytorch: input_mean [0.5], input_std the mean of the three.
    **{
        (net, weights): of_flow(0.5 * 255, float(np.mean([0.229, 0.224, 0.225])) * 255)
        for net in ("tsn_resnet50", "tsn_resnet101")
        for weights in ("imagenet-flow", "imagenet-v2-flow")
    },
}


def of_torchvision(weights: WeightsEnum) -> Numbers:
    transforms = weights.transforms()
    return "rgb", tuple(255 * v for v in transforms.mean), tuple(255 * v for v in transforms.std)


def of_pytorchvideo() -> Numbers:
    """The defaults of its `create_video_transform`, read from the file: its transforms cannot be imported any more."""
    package = find_spec("pytorchvideo")
    if package is None or package.origin is None:
        pytest.skip("PyTorchVideo is not installed")
    tree = ast.parse((Path(package.origin).parent / "transforms/transforms_factory.py").read_text())
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "create_video_transform")
    names = [argument.arg for argument in function.args.args][-len(function.args.defaults) :]
    defaults = dict(zip(names, function.args.defaults, strict=True))
    mean, std = (ast.literal_eval(defaults[name]) for name in ("video_mean", "video_std"))
    return "rgb", tuple(255 * v for v in mean), tuple(255 * v for v in std)


SOURCES: dict[tuple[str, str], Callable[[], Numbers]] = {
    **{key: lambda entry=entry: of_torchvision(entry) for key, entry in TORCHVISION.items()},  # type: ignore[misc]
    **{(net, "kinetics"): of_pytorchvideo for net in PYTORCHVIDEO},
    **{key: lambda numbers=numbers: numbers for key, numbers in AUTHORS.items()},  # type: ignore[misc]
}
KERAS = ("vgg16", "keras")
# Not published: `har train-video` makes them.
OURS = ("convnet3d", "trained")
ALL = [(net.name, weights) for net in all_nets().values() for weights in net.weights]


def test_every_weights_set_has_a_source() -> None:
    assert {*SOURCES, KERAS, OURS} == set(ALL)


@pytest.mark.parametrize(("net", "weights"), SOURCES)
def test_means_deviations_and_channel_order_are_the_sources(net: str, weights: str) -> None:
    order, mean, std = SOURCES[net, weights]()
    ours = find_net(net).weights[weights].preprocess
    assert (("bgr" if ours.bgr else "rgb") if len(ours.mean) == 3 else "flow") == order
    assert ours.mean == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert ours.std == pytest.approx(std, rel=1e-6)


def test_keras_weights_are_fed_as_keras_feeds_them() -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    vgg16 = pytest.importorskip("keras").applications.vgg16
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 5, 4, 3), dtype=np.uint8)
    expected = vgg16.preprocess_input(frames.astype(np.float32))
    weights = find_net("vgg16").weights["keras"]
    ours = weights.preprocess(torch.from_numpy(frames), torch.float32).permute(0, 2, 3, 4, 1)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)
    source = Path(vgg16.VGG16.__code__.co_filename).read_text()
    assert weights.md5 in source
    assert weights.url.rsplit("/", 1)[1] in source


@pytest.mark.parametrize(("net", "weights"), TORCHVISION)
def test_sizes_and_interpolation_are_torchvisions_where_no_paper_names_others(net: str, weights: str) -> None:
    transforms, read = TORCHVISION[net, weights].transforms(), find_net(net).inputs["rgb"]
    size, crop = transforms.resize_size, transforms.crop_size[0]
    scaled = f"short{size[0]}" if len(size) == 1 else f"stretch-{size[1]}x{size[0]}"
    # Orozco 2020, section 3 (whole frames stretched); Wang 2016, section 4.1 (340x256).
    papers = {"vgg16": "stretch-224", "tsn_resnet50": "stretch-340x256-center224"}
    papers["tsn_resnet101"] = papers["tsn_resnet50"]
    assert read.resize == papers.get(net, f"{scaled}-center{crop}")
    assert find_net(net).inputs["rgb"].shape == (crop, crop)
    # `preprocess.scale_to` interpolates linearly.
    assert transforms.interpolation is InterpolationMode.BILINEAR
