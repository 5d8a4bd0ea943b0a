"""The clip nets of torchvision and PyTorchVideo: agreement with their own models, sizes, clips, weights that do not fit."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import video

from har_pipeline.core.errors import ExtractionError, WeightsError
from har_pipeline.models.extractors import build_extractor, find_net
from har_pipeline.models.extractors.base import Extractor

TORCHVISION = {
    "r3d_18": video.R3D_18_Weights,
    "mc3_18": video.MC3_18_Weights,
    "r2plus1d_18": video.R2Plus1D_18_Weights,
    "s3d": video.S3D_Weights,
    "swin3d_t": video.Swin3D_T_Weights,
}
# Millions of parameters, frames and sample rate: PyTorchVideo's docs/source/model_zoo.md; MViT's from its paper, table 4.
PYTORCHVIDEO = {
    "i3d_r50": (28.04, 8, 8),
    "slow_r50": (32.45, 8, 8),
    "r2plus1d_r50": (28.11, 16, 4),
    "csn_r101": (22.21, 32, 2),
    "x3d_m": (3.79, 16, 5),
    "mvit_base_16x4": (36.6, 16, 4),
}


def hub() -> ModuleType:
    pytest.importorskip("pytorchvideo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return import_module("pytorchvideo.models.hub")


@pytest.fixture(params=[*TORCHVISION, *PYTORCHVIDEO])
def name(request: pytest.FixtureRequest) -> str:
    if request.param in PYTORCHVIDEO:
        hub()
    return request.param


def clips(count: int, frames: int, size: int) -> torch.Tensor:
    """(count, frames, size, size, 3) uint8: blobs that move."""
    coarse = torch.rand(count, 3, max(2, frames // 4), 6, 6, generator=torch.Generator().manual_seed(frames))
    smooth = F.interpolate(coarse, size=(frames, size, size), mode="trilinear")
    return (255 * smooth).to(torch.uint8).permute(0, 2, 3, 4, 1)


def load(name: str, weights: Path | str, layer: str | None = None) -> Extractor:
    return build_extractor(name, layer=layer, weights=str(weights), device="cpu", precision="fp32")


def relative(difference: torch.Tensor, to: torch.Tensor) -> float:
    return float(difference.norm() / to.norm())


def build_empty(name: str, layer: str) -> nn.Module:
    """The net without memory; MViT's builder reads values while it builds."""
    if name == "mvit_base_16x4":
        return find_net(name).build(layer, "rgb").eval().to("meta")
    with torch.device("meta"):
        return find_net(name).build(layer, "rgb").eval()


def accepts(module: nn.Module, frames: int, size: int) -> bool:
    try:
        module(torch.empty(1, 3, frames, size, size, device="meta"))
    except RuntimeError:
        return False
    return True


def test_shapes_gmacs_and_the_clips_that_fit(name: str) -> None:
    net = find_net(name)
    read = net.inputs["rgb"]
    modules = {layer: build_empty(name, layer) for layer in net.layers}
    x = torch.empty(2, 3, read.clips.clip_len, *read.shape, device="meta")
    for layer, dim in net.layers.items():
        with FlopCounterMode(display=False) as counter:
            assert modules[layer](x).shape == (2, dim)
    assert counter.get_total_flops() / 4e9 == pytest.approx(net.gmacs, abs=0.051)
    shortest, longest = read.clip_lens
    assert accepts(modules["pooled"], shortest, net.inputs["rgb"].shape[0])
    assert not accepts(modules["pooled"], shortest - 1, net.inputs["rgb"].shape[0]) or name == "mvit_base_16x4"
    assert accepts(modules["pooled"], longest, net.inputs["rgb"].shape[0])
    assert name != "mvit_base_16x4" or not accepts(modules["pooled"], longest + 1, net.inputs["rgb"].shape[0])


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_rows_are_its_own(name: str) -> None:
    net, published = find_net(name), TORCHVISION[name].KINETICS400_V1
    assert sum(p.numel() for p in build_empty(name, "logits").parameters()) == published.meta["num_params"]
    assert net.weights["kinetics"].url == published.url
    assert published.url.endswith(f"-{net.weights['kinetics'].sha256}.pth")
    small = name.endswith("18")
    clip = clips(1, 2, net.inputs["rgb"].shape[0])
    expected = published.transforms(resize_size=(net.inputs["rgb"].shape[0],) * 2)(clip.permute(0, 1, 4, 2, 3))
    x = net.weights["kinetics"].preprocess(clip, torch.float32)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    resize = {"s3d": "stretch-256x256-center224", "swin3d_t": "short256-center224"}
    assert net.inputs["rgb"].resize == resize.get(name, "stretch-171x128-center112")
    # The documentation of each entry: "accuracies are estimated ... with parameters".
    says = published.meta["_docs"]
    taken = net.inputs["rgb"].clips
    assert "`frame_rate=15`" in says
    # S3D's one clip spans 255 frames only: ours has more of them, for the whole of longer videos.
    assert f"`clips_per_video={1 if name == 's3d' else taken.num_clips}`" in says
    assert f"`clip_len={taken.clip_len}`" in says
    # The cost stated there is that of 16 frames; it grows with the frames.
    assert net.gmacs == pytest.approx(published.meta["_ops"] * taken.clip_len / 16, rel=2e-3)
    assert net.inputs["rgb"].shape[0] == (112 if small else 224)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        *(("r3d_18", 4), ("s3d", 14), ("swin3d_t", 2)),
        # Of the same module as r3d_18, in other blocks.
        *(pytest.param(name, 2, marks=pytest.mark.exhaustive) for name in ("mc3_18", "r2plus1d_18")),
    ],
)
def test_torchvision_nets_agree_with_torchvision(name: str, frames: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = getattr(video, name)(weights=None).eval()
    torch.save(other.state_dict(), tmp_path / "net.pth")
    pooled: list[torch.Tensor] = []
    classifier = {"s3d": "classifier", "swin3d_t": "head"}.get(name, "fc")
    other.get_submodule(classifier).register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    clip = clips(2, frames, find_net(name).inputs["rgb"].shape[0])
    published = TORCHVISION[name].KINETICS400_V1
    with torch.inference_mode():
        transforms = published.transforms(resize_size=(find_net(name).inputs["rgb"].shape[0],) * 2)
        logits = other(transforms(clip.permute(0, 1, 4, 2, 3).contiguous()))
    features = pooled[0].flatten(2).mean(2) if pooled[0].dim() == 5 else pooled[0]
    together = load(name, tmp_path / "net.pth")(clip)
    assert relative(together - features, features) <= 1e-3
    ours = load(name, tmp_path / "net.pth", layer="logits")(clip[:1])
    assert relative(ours - logits[:1], logits[:1]) <= 1e-3
    alone = load(name, tmp_path / "net.pth")(clip[1:])
    assert relative(alone - together[1:], alone) <= 1e-4


@pytest.mark.parametrize("name", PYTORCHVIDEO)
def test_pytorchvideo_rows_are_its_own(name: str) -> None:
    net, (millions, frames, interval) = find_net(name), PYTORCHVIDEO[name]
    paths: dict[str, str] = {}
    module = hub()
    for part in ("resnet", "r2plus1d", "csn", "x3d", "vision_transformers"):
        paths |= getattr(module, part).checkpoint_paths
    assert net.weights["kinetics"].url == paths[name]
    taken = net.inputs["rgb"].clips
    assert (taken.clip_len, taken.frame_interval) == (frames, interval)
    assert sum(p.numel() for p in build_empty(name, "logits").parameters()) / 1e6 == pytest.approx(millions, abs=0.011)
    clip = clips(1, 2, 224)
    expected = (clip.permute(0, 4, 1, 2, 3) / 255 - 0.45) / 0.225  # website/docs/tutorial_torchhub_inference.md
    x = net.weights["kinetics"].preprocess(clip, torch.float32)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    assert net.inputs["rgb"].resize == "short256-center224"


@pytest.mark.parametrize(
    "name",
    [
        *("i3d_r50", "x3d_m", "mvit_base_16x4"),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("slow_r50", "r2plus1d_r50", "csn_r101")),
    ],
)
def test_pytorchvideo_nets_agree_with_pytorchvideo(name: str, tmp_path: Path) -> None:
    """On a checkpoint as the zoo's: what the projection reads, averaged, is `pooled`; R(2+1)D and X3D end in a softmax."""
    torch.manual_seed(0)
    other = getattr(hub(), name)(pretrained=False).eval()
    torch.save({"model_state": other.state_dict(), "cfg": "TRAIN:\n", "epoch": 196}, tmp_path / "net.pyth")
    read: list[torch.Tensor] = []
    (projection,) = (m for k, m in other.named_modules() if k.endswith("proj") and getattr(m, "out_features", 0) == 400)
    projection.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    clip = clips(1, find_net(name).inputs["rgb"].clip_lens[0], 224)
    with torch.inference_mode():
        scores = other((clip.permute(0, 4, 1, 2, 3) / 255 - 0.45) / 0.225)
    features = read[0].flatten(1, -2).mean(1) if read[0].dim() == 5 else read[0]
    ours = load(name, tmp_path / "net.pyth")(clip)
    assert relative(ours - features, features) <= 1e-3
    with torch.inference_mode():
        logits = projection(ours)
    if name in ("r2plus1d_r50", "x3d_m"):
        logits = logits.softmax(1)
    assert relative(logits - scores, scores) <= 1e-3


def test_x3d_logits_come_before_the_softmax_and_do_not_depend_on_the_batch() -> None:
    hub()
    clip = clips(2, 16, 224)
    pooled, logits = (load("x3d_m", "random", layer=layer) for layer in ("pooled", "logits"))
    together = logits(clip)
    projection = logits.module.get_submodule("blocks.5.proj")
    with torch.inference_mode():
        alone = torch.cat([projection(pooled(clip[i : i + 1])) for i in range(2)])
    assert relative(together - alone, alone) <= 1e-4
    assert together.min() < 0


def test_without_pytorchvideo_its_nets_are_listed_but_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchvideo", None)
    monkeypatch.setitem(sys.modules, "pytorchvideo.models.hub", None)
    # Before the weights are looked for, which are a download.
    monkeypatch.setattr("har_pipeline.models.extractors.build.find_weights", lambda *_: pytest.fail("looked for"))
    with pytest.raises(ExtractionError, match=r"x3d_m needs PyTorchVideo: pip install 'har-pipeline\[video-models\]'"):
        load("x3d_m", "random")
    code = (
        "import sys; sys.modules['pytorchvideo'] = None; from har_pipeline.models.extractors import describe_nets;"
        "print(*(row['net'] for row in describe_nets()))"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert set(listed.stdout.split()) >= {*PYTORCHVIDEO, *TORCHVISION}


def test_a_pytorchvideo_of_another_time_is_told_of_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it imports a module that newer versions of torchvision have dropped."""
    package = tmp_path / "pytorchvideo" / "models"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "hub.py").write_text("import torchvision.transforms.functional_tensor")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytorchvideo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ExtractionError, match=r"slow_r50: .* cannot be imported \(.*functional_tensor.*\): update it .*s3d"
    ):
        load("slow_r50", "random")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytorchvideo"]:
        del sys.modules[name]


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mc3.pth"
    state = video.mc3_18(weights=None).state_dict()
    torch.save({k: v for k, v in state.items() if k != "layer4.1.conv2.1.bias"}, path)
    with pytest.raises(WeightsError, match=r"mc3\.pth: does not fit the net: .*missing.*layer4\.1\.conv2\.1\.bias"):
        load("mc3_18", path)
    torch.save(state | {"layer5.bias": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"unexpected.*layer5\.bias"):
        load("mc3_18", path)
    torch.save(state, path)
    with pytest.raises(WeightsError, match="does not fit the net"):
        load("r3d_18", path)
    torch.save(state | {"fc.weight": torch.zeros(101, 512), "fc.bias": torch.zeros(101)}, path)
    assert load("mc3_18", path).feature_dim == 512
    with pytest.raises(WeightsError, match=r"of another shape.*fc\.weight"):
        load("mc3_18", path, layer="logits")
    path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(WeightsError, match="not a readable weights file"):
        load("mc3_18", path)
    torch.save({"model_state": {"epoch": 3}}, path)
    with pytest.raises(WeightsError, match="holds no state dict of tensors"):
        load("mc3_18", path)
