"""TSN's nets: key names, second implementations, flow stacks, cross-modality initialisation, files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import pictures
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.records import ClipSpec, Stream
from har_pipeline.models.extractors import build_extractor, find_net
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.models.extractors.build import fold_batch_norms
from har_pipeline.models.extractors.tsn import SegmentNet

TSN_NETS = ("tsn_bninception", "tsn_resnet50", "tsn_resnet101", "tsn_efficientnet_lite0")

# Convolutions as `name inputs outputs`, from pretrainedmodels 0.7.4 (Cadene/pretrained-models.pytorch, bninception.py).
BN_INCEPTION_CONVOLUTIONS = """
conv1: 7x7_s2 3 64
conv2: 3x3_reduce 64 64, 3x3 64 192
inception_3a: 1x1 192 64, 3x3_reduce 192 64, 3x3 64 64, double_3x3_reduce 192 64, double_3x3_1 64 96, \
double_3x3_2 96 96, pool_proj 192 32
inception_3b: 1x1 256 64, 3x3_reduce 256 64, 3x3 64 96, double_3x3_reduce 256 64, double_3x3_1 64 96, \
double_3x3_2 96 96, pool_proj 256 64
inception_3c: 3x3_reduce 320 128, 3x3 128 160, double_3x3_reduce 320 64, double_3x3_1 64 96, double_3x3_2 96 96
inception_4a: 1x1 576 224, 3x3_reduce 576 64, 3x3 64 96, double_3x3_reduce 576 96, double_3x3_1 96 128, \
double_3x3_2 128 128, pool_proj 576 128
inception_4b: 1x1 576 192, 3x3_reduce 576 96, 3x3 96 128, double_3x3_reduce 576 96, double_3x3_1 96 128, \
double_3x3_2 128 128, pool_proj 576 128
inception_4c: 1x1 576 160, 3x3_reduce 576 128, 3x3 128 160, double_3x3_reduce 576 128, double_3x3_1 128 160, \
double_3x3_2 160 160, pool_proj 576 128
inception_4d: 1x1 608 96, 3x3_reduce 608 128, 3x3 128 192, double_3x3_reduce 608 160, double_3x3_1 160 192, \
double_3x3_2 192 192, pool_proj 608 128
inception_4e: 3x3_reduce 608 128, 3x3 128 192, double_3x3_reduce 608 192, double_3x3_1 192 256, double_3x3_2 256 256
inception_5a: 1x1 1056 352, 3x3_reduce 1056 192, 3x3 192 320, double_3x3_reduce 1056 160, double_3x3_1 160 224, \
double_3x3_2 224 224, pool_proj 1056 128
inception_5b: 1x1 1024 352, 3x3_reduce 1024 192, 3x3 192 320, double_3x3_reduce 1024 192, double_3x3_1 192 224, \
double_3x3_2 224 224, pool_proj 1024 128
"""


def bn_inception_state(channels: int = 3, classes: int = 1000, caffe: bool = False) -> dict[str, torch.Tensor]:
    """Random tensors under the public key names; caffe: batch normalisations as rows (1, C), as in yjxiong's files."""
    random = torch.Generator().manual_seed(5)
    state: dict[str, torch.Tensor] = {}
    for line in BN_INCEPTION_CONVOLUTIONS.strip().splitlines():
        block, convolutions = line.split(": ")
        for convolution in convolutions.split(", "):
            name, inputs, outputs = convolution.split(" ")
            kernel = 7 if name == "7x7_s2" else 1 if name.endswith(("reduce", "1x1", "proj")) else 3
            key, width = f"{block}_{name}", int(outputs)
            depth = channels if block == "conv1" else int(inputs)
            kernels = torch.randn(width, depth, kernel, kernel, generator=random)
            state[f"{key}.weight"] = kernels * (2 / (depth * kernel**2)) ** 0.5
            state[f"{key}.bias"] = 0.1 * torch.randn(width, generator=random)
            for parameter, low in (("weight", 0.8), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.8)):
                values = low + 0.4 * torch.rand(width, generator=random)
                state[f"{key}_bn.{parameter}"] = values[None] if caffe else values
    state["last_linear.weight"] = 0.03 * torch.randn(classes, 1024, generator=random)
    state["last_linear.bias"] = torch.randn(classes, generator=random)
    return state


def bn_inception_reference(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The features (B, 1024) of (B, C, 224, 224), written from pretrainedmodels' forward pass."""

    def unit(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)
        norm = [state[f"{name}_bn.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm).relu()

    x = F.max_pool2d(unit(x, "conv1_7x7_s2", 2), 3, 2, ceil_mode=True)
    x = F.max_pool2d(unit(unit(x, "conv2_3x3_reduce"), "conv2_3x3"), 3, 2, ceil_mode=True)
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        p, stride = f"inception_{block}", 2 if block in ("3c", "4e") else 1
        middle = unit(unit(x, f"{p}_3x3_reduce"), f"{p}_3x3", stride)
        double = unit(unit(unit(x, f"{p}_double_3x3_reduce"), f"{p}_double_3x3_1"), f"{p}_double_3x3_2", stride)
        if stride == 2:
            x = torch.cat([middle, double, F.max_pool2d(x, 3, 2, ceil_mode=True)], 1)
        else:
            pool = F.max_pool2d(x, 3, 1, 1) if block == "5b" else F.avg_pool2d(x, 3, 1, 1)
            x = torch.cat([unit(x, f"{p}_1x1"), middle, double, unit(pool, f"{p}_pool_proj")], 1)
    return F.avg_pool2d(x, 7).flatten(1)


def flow_stacks(count: int) -> torch.Tensor:
    """(count, 5, 224, 224, 2) float32 in px/frame: smooth fields, clipped to [-20, 20]."""
    coarse = 15 * torch.randn(count * 5, 2, 7, 7, generator=torch.Generator().manual_seed(2))
    smooth = F.interpolate(coarse, size=224, mode="bilinear").clamp(-20, 20)
    return smooth.view(count, 5, 2, 224, 224).permute(0, 1, 3, 4, 2)


def load(name: str, weights: Path | str | None, layer: str | None = None, stream: Stream = "rgb") -> Extractor:
    return build_extractor(
        name,
        layer=layer,
        stream=stream,
        weights=str(weights) if isinstance(weights, Path) else weights,
        device="cpu",
        precision="fp32",
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Cadene's BNInception(), torchvision's `num_params`, and the count of EfficientNet-Lite0 in its weights' package.
    list(zip(TSN_NETS, (11_295_240, 25_557_032, 44_549_160, 4_652_008), strict=True)),
)
def test_parameters_shapes_and_gmacs(name: str, parameters: int) -> None:
    net = find_net(name)
    with torch.device("meta"):
        rgb, flow = (net.build("logits", stream) for stream in ("rgb", "flow"))
        features = {layer: net.build(layer, "flow").eval()(torch.empty(2, 2, 5, 224, 224)) for layer in net.layers}
        with FlopCounterMode(display=False) as counter:
            rgb.eval()(torch.empty(1, 3, 1, 224, 224))
    assert {layer: x.shape for layer, x in features.items()} == {layer: (2, dim) for layer, dim in net.layers.items()}
    assert sum(p.numel() for p in rgb.parameters()) == parameters
    first = next(m for m in rgb.modules() if isinstance(m, nn.Conv2d))
    assert sum(p.numel() for p in flow.parameters()) == parameters + 7 * first.weight[:, 0].numel()
    assert counter.get_total_flops() / 2e9 == pytest.approx(net.gmacs, abs=0.051)


@pytest.mark.parametrize("name", TSN_NETS)
def test_clips_and_weights_are_those_of_the_authors(name: str) -> None:
    net = find_net(name)
    assert net.inputs["rgb"].clips == ClipSpec(sampling="segments", num_clips=25, clip_len=1)
    assert net.inputs["flow"].clips == ClipSpec(sampling="segments", num_clips=25, clip_len=5)
    for stream, read in net.inputs.items():
        assert read.resize == "stretch-340x256-center224"
        assert net.weights[read.weights].stream == stream
    for weights in net.weights.values():
        assert weights.packaged is not None or f"-{weights.sha256}.pth" in weights.url
        assert len(weights.preprocess.mean) == {"rgb": 3, "flow": 2}[weights.stream]


def test_bn_inception_agrees_with_a_second_implementation(tmp_path: Path) -> None:
    """Weights under the public names, pixels in: BGR minus (104, 117, 128) as pretrainedmodels and tsn-pytorch have it."""
    state = bn_inception_state()
    torch.save(state, tmp_path / "bn.pth")
    clips = pictures(2)
    x = clips[:, 0].permute(0, 3, 1, 2).flip(1).float() - torch.tensor([104.0, 117.0, 128.0]).view(3, 1, 1)
    expected = bn_inception_reference(state, x)
    features = load("tsn_bninception", tmp_path / "bn.pth")(clips)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
    assert expected.std() > 1e-3
    logits = load("tsn_bninception", tmp_path / "bn.pth", layer="logits")(clips)
    scores = F.linear(expected, state["last_linear.weight"], state["last_linear.bias"])
    torch.testing.assert_close(logits, scores, rtol=1e-3, atol=1e-3)


def test_bn_inception_reads_a_flow_checkpoint_of_tsn_pytorch(tmp_path: Path) -> None:
    """Prefixes, the 400-way `new_fc` and Caffe's rows (1, C) do not matter; [-20, 20] px becomes [0, 255] minus 128."""
    plain, rows = bn_inception_state(channels=10), bn_inception_state(channels=10, classes=400, caffe=True)
    prefixed = {f"module.base_model.{k}".replace("base_model.last_linear", "new_fc"): v for k, v in rows.items()}
    assert "module.new_fc.weight" in prefixed
    torch.save({"epoch": 80, "best_prec1": 70.0, "state_dict": prefixed}, tmp_path / "flow.pth")
    stacks = flow_stacks(2)
    x = ((stacks + 20) / 40 * 255 - 128).permute(0, 1, 4, 2, 3).reshape(2, 10, 224, 224)  # x1, y1, x2, y2, ...
    expected = bn_inception_reference(plain, x)
    features = load("tsn_bninception", tmp_path / "flow.pth", stream="flow")(stacks)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3 * expected.std().item())


@pytest.mark.parametrize("name", ["tsn_resnet50", "tsn_resnet101"])
def test_resnet_agrees_with_torchvision(name: str, tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(0)
    other = getattr(models, name.removeprefix("tsn_"))(weights=None).eval()
    torch.save(other.state_dict(), tmp_path / "resnet.pth")
    clips = pictures(1)
    x = clips[:, 0].permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    pooled: list[torch.Tensor] = []
    other.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    with torch.inference_mode():
        logits = other(x)
    for layer, expected in (("avgpool", pooled[0]), ("logits", logits)):
        ours = load(name, tmp_path / "resnet.pth", layer=layer)(clips)
        assert (ours - expected).norm() <= 1e-3 * expected.norm()


def test_flow_of_resnet_is_scaled_as_in_tsn_pytorch() -> None:
    """Bytes / 255, minus 0.5, over the mean of ImageNet's three deviations."""
    stacks = flow_stacks(1)
    expected = ((stacks + 20) / 40 - 0.5) / (sum([0.229, 0.224, 0.225]) / 3)
    x = load("tsn_resnet50", "random", stream="flow").preprocess(stacks, torch.float32)
    torch.testing.assert_close(x, expected.permute(0, 4, 1, 2, 3), rtol=1e-4, atol=1e-4)


def test_a_flow_stack_becomes_channels_x1_y1_x2_y2() -> None:
    clip = torch.tensor([[11.0, 21, 31, 41, 51], [12.0, 22, 32, 42, 52]]).view(1, 2, 5, 1, 1)
    assert SegmentNet(nn.Flatten())(clip).tolist() == [[11, 12, 21, 22, 31, 32, 41, 42, 51, 52]]


def test_real_weights_give_the_features_of_the_frame_net() -> None:
    clips = pictures(3)
    torch.testing.assert_close(load("tsn_efficientnet_lite0", None)(clips), load("efficientnet_lite0", None)(clips))


def test_cross_modality_initialisation_of_real_weights() -> None:
    """The mean of the kernels over RGB ten times: ten channels of 0.3 g see what three channels of g saw."""
    rgb, flow = (load("tsn_efficientnet_lite0", None, stream=stream) for stream in ("rgb", "flow"))
    assert rgb.weights == flow.weights
    grey = torch.randn(2, 1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = rgb.module(grey.expand(-1, 3, -1, -1, -1))
        features = flow.module(0.3 * grey.expand(-1, 2, 5, -1, -1))
    assert expected.norm() > 1
    assert (features - expected).norm() <= 1e-4 * expected.norm()
    first = flow.module.get_submodule("net._conv_stem").weight
    assert first.shape == (32, 10, 3, 3)
    assert torch.equal(first, first[:, :1].expand_as(first))


@pytest.mark.parametrize(("name", "stream"), [("tsn_bninception", "flow"), ("tsn_efficientnet_lite0", "rgb")])
def test_a_feature_does_not_depend_on_its_batch(name: str, stream: Stream) -> None:
    extractor = load(name, "random", stream=stream)
    clips = pictures(2) if stream == "rgb" else flow_stacks(2)
    alone = torch.cat([extractor(clips[:1]), extractor(clips[1:])])
    assert (extractor(clips) - alone).norm() <= 1e-4 * alone.norm()
    assert (alone[0] - alone[1]).norm() > 1e-3 * alone[0].norm()


@pytest.mark.parametrize("name", ["tsn_bninception", "tsn_resnet50"])
def test_folding_keeps_the_features(name: str) -> None:
    torch.manual_seed(0)
    net = find_net(name).build(find_net(name).default_layer, "rgb").eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.8, 1.2)
    x = torch.randn(1, 3, 1, 224, 224)
    with torch.inference_mode():
        before = net(x)
        fold_batch_norms(net)
        after = net(x)
    assert len(norms) > 50
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert (after - before).norm() <= 1e-4 * before.norm()


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bn.pth"
    state = bn_inception_state()
    torch.save({k: v for k, v in state.items() if k != "inception_4c_3x3.bias"}, path)
    with pytest.raises(WeightsError, match=r"bn\.pth: does not fit the net: .*missing.*inception_4c_3x3\.bias"):
        load("tsn_bninception", path)
    torch.save({**state, "inception_6a_3x3.bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"unexpected.*inception_6a_3x3\.bias"):
        load("tsn_bninception", path)
    torch.save(state, path)
    with pytest.raises(WeightsError, match="does not fit the net"):
        load("tsn_resnet50", path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match="not a readable weights file"):
        load("tsn_bninception", path)
    torch.save(bn_inception_state(channels=10), path)
    with pytest.raises(WeightsError, match=r"of another shape.*conv1_7x7_s2\.weight"):
        load("tsn_bninception", path)
    torch.save(bn_inception_state(classes=400), path)
    with pytest.raises(WeightsError, match=r"of another shape.*fc\.weight"):
        load("tsn_bninception", path, layer="logits")


def test_kinetics_weights_have_no_class_scores_and_belong_to_a_stream() -> None:
    with pytest.raises(WeightsError, match="end before layer logits"):
        load("tsn_bninception", "kinetics-rgb", layer="logits")
    with pytest.raises(WeightsError, match="are for rgb, not for flow"):
        load("tsn_bninception", "kinetics-rgb", stream="flow")
