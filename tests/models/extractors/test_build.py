from __future__ import annotations

import pytest
import torch
from pictures import pictures
from torch import nn

from har_pipeline.core.errors import UsageError
from har_pipeline.models.extractors import build_extractor, find_net
from har_pipeline.models.extractors.build import gains_from_bf16
from har_pipeline.models.extractors.efficientnet_lite0 import EfficientNetLite0
from har_pipeline.models.extractors.vgg16 import VGG16

# The other nets have test files of their own.
FRAME_NETS = [find_net("efficientnet_lite0"), find_net("vgg16")]


@pytest.mark.parametrize(("net", "layer"), [(n.name, layer) for n in FRAME_NETS for layer in n.layers])
def test_each_layer_has_the_listed_dimension(net: str, layer: str) -> None:
    extractor = build_extractor(net, layer=layer, weights="random", device="cpu", precision="fp32")
    features = extractor(pictures(2))
    assert features.shape == (2, find_net(net).layers[layer])
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert extractor.weights == "random:0"


def test_parameter_counts() -> None:
    """Simonyan and Zisserman 2015, table 2: 138 M in all; convolutions 14.7 M. Lite0: 4.652 M with the classifier."""
    assert sum(p.numel() for p in VGG16("pool5").parameters()) == 14_714_688
    assert sum(p.numel() for p in VGG16("fc7").parameters()) == 138_357_544 - 4_097_000
    assert sum(p.numel() for p in EfficientNetLite0("pooled").parameters()) == 4_652_008


@pytest.mark.parametrize("net", ["efficientnet_lite0", "vgg16"])
def test_a_feature_does_not_depend_on_its_batch(net: str) -> None:
    """Bit for bit: any place in a batch of the same shape; within 1e-4 of the norm across batch sizes."""
    weights = "random" if net == "vgg16" else None
    extractor = build_extractor(net, weights=weights, device="cpu", precision="fp32")
    clips = pictures(4)
    together = extractor(clips)
    swapped = extractor(clips[[2, 3, 1, 0]])
    assert torch.equal(swapped, together[[2, 3, 1, 0]])
    for i in range(4):
        alone = extractor(clips[i : i + 1])[0]
        assert (alone - together[i]).norm() <= 1e-4 * together[i].norm()


def test_bf16_is_close_to_fp32_where_it_is_said_to_be() -> None:
    """Cosine at least 0.9995, relative norm of the difference at most 2 %."""
    for net in FRAME_NETS:
        weights = "random" if net.name == "vgg16" else None
        exact = build_extractor(net.name, weights=weights, device="cpu", precision="fp32")(pictures(4))
        fast = build_extractor(net.name, weights=weights, device="cpu", precision="bf16")(pictures(4))
        cosine = nn.functional.cosine_similarity(exact, fast).min()
        difference = ((exact - fast).norm(dim=1) / exact.norm(dim=1)).max()
        assert (bool(cosine >= 0.9995) and bool(difference <= 0.02)) == net.bf16_is_close, (
            net.name,
            cosine,
            difference,
        )
        chosen = build_extractor(net.name, weights=weights, device="cpu").precision
        assert chosen == "fp32" or net.bf16_is_close


def test_convolutions_over_time_are_in_fp32_on_cuda() -> None:
    i3d, vgg16 = find_net("i3d"), find_net("vgg16")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert gains_from_bf16(i3d, "rgb", cpu)
    assert not gains_from_bf16(i3d, "rgb", cuda)
    assert gains_from_bf16(vgg16, "rgb", cuda)
    assert not gains_from_bf16(find_net("efficientnet_lite0"), "rgb", cuda)


def test_random_weights_follow_the_seed_and_leave_the_global_state() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (build_extractor("efficientnet_lite0", weights="random", seed=s, device="cpu") for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (a.weights, c.weights) == ("random:1", "random:2")
    clips = pictures(1)
    assert torch.equal(a(clips), b(clips))
    assert not torch.equal(a(clips), c(clips))


def test_choices_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match=r"choose from: .*efficientnet_lite0.*, vgg16"):
        build_extractor("vgg")
    with pytest.raises(UsageError, match=r"'fc8'; did you mean 'fc7'\? it has: pool5"):
        build_extractor("vgg16", layer="fc8", weights="random")
