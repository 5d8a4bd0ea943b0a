"""Nets of timm and transformers: small random models of each family against the library's own pass on the same frames."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from har_pipeline.core.errors import DeviceError, ExtractionError, UsageError, WeightsError
from har_pipeline.models.extractors import Extractor, build_extractor, find_net
from har_pipeline.models.extractors.hub import weights_sha256
from har_pipeline.models.extractors.timm_nets import timm_net
from har_pipeline.models.extractors.weights import weights_with_hash
from har_pipeline.video.preprocess import parse_resize, resize_frame

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}
VIDEO = {**SMALL, "num_frames": 4, "num_labels": 3}
VJEPA2 = {
    **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "crop_size": 32, "frames_per_clip": 4},
    **{"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "num_pooler_layers": 1},
    **{"num_labels": 3},
}


def tokens(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels).last_hidden_state


def mean(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return tokens(model, pixels).mean(1)


# Config, class, the layer that is the default, and what the library says it is of (B, T, 3, H, W), or of (B, 3, H, W).
CLIPS: dict[str, tuple[str, str, dict[str, Any], str, Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "videomae": (
        "VideoMAEConfig",
        "VideoMAEForVideoClassification",
        VIDEO,
        "fc_norm",
        lambda model, pixels: model.fc_norm(mean(model.videomae, pixels)),
    ),
    "videomae encoder": ("VideoMAEConfig", "VideoMAEModel", VIDEO, "mean", mean),
    "videomae pretraining": (
        "VideoMAEConfig",
        "VideoMAEForPreTraining",
        {**VIDEO, "decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 32},
        "mean",
        lambda model, pixels: mean(model.videomae, pixels),
    ),
    "vjepa2": (
        "VJEPA2Config",
        "VJEPA2ForVideoClassification",
        VJEPA2,
        "pooler",
        lambda model, pixels: model.pooler(model.vjepa2.get_vision_features(pixels)),
    ),
    "vjepa2 encoder": (
        "VJEPA2Config",
        "VJEPA2Model",
        VJEPA2,
        "mean",
        lambda m, pixels: m.get_vision_features(pixels).mean(1),
    ),
    "timesformer": (
        "TimesformerConfig",
        "TimesformerForVideoClassification",
        VIDEO,
        "cls",
        lambda model, pixels: tokens(model.timesformer, pixels)[:, 0],
    ),
    "vivit": (
        "VivitConfig",
        "VivitForVideoClassification",
        {**VIDEO, "tubelet_size": [2, 16, 16]},
        "cls",
        lambda model, pixels: tokens(model.vivit, pixels)[:, 0],
    ),
    "vivit encoder": (
        "VivitConfig",
        "VivitModel",
        {**VIDEO, "tubelet_size": [2, 16, 16]},
        "cls",
        lambda model, pixels: tokens(model, pixels)[:, 0],
    ),
}
IMAGES: dict[str, tuple[str, str, dict[str, Any], str, Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "clip vision": ("CLIPVisionConfig", "CLIPVisionModel", SMALL, "pooler", lambda m, pixels: m(pixels).pooler_output),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        {"vision_config": SMALL, "text_config": {**SMALL, "vocab_size": 99}, "projection_dim": 24},
        "pooler",
        lambda model, pixels: model.vision_model(pixels).pooler_output,
    ),
    "siglip": (
        "SiglipConfig",
        "SiglipModel",
        {"vision_config": SMALL, "text_config": {**SMALL, "vocab_size": 99}},
        "pooler",
        lambda model, pixels: model.vision_model(pixels).pooler_output,
    ),
    "dinov2": (
        "Dinov2Config",
        "Dinov2Model",
        {**SMALL, "patch_size": 16},
        "cls+mean",
        lambda m, pixels: torch.cat([tokens(m, pixels)[:, 0], tokens(m, pixels)[:, 1:].mean(1)], 1),
    ),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        {**SMALL, "patch_size": 16, "num_labels": 3},
        "cls+mean",
        lambda m, pixels: torch.cat(
            [
                tokens(m.dinov2_with_registers, pixels)[:, 0],
                tokens(m.dinov2_with_registers, pixels)[:, 5:].mean(1),
            ],
            1,
        ),
    ),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel", SMALL, "cls", lambda m, pixels: m(pixels).pooler_output),
}
FAMILIES = {**CLIPS, **IMAGES}


def saved(name: str, folder: Path) -> Any:
    """Write a small model of a family whose every tensor differs from its start value, and return it."""
    config, cls, values, _, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, cls)(getattr(transformers, config)(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videomae") / "model"
    saved("videomae", folder)
    return folder


def frames_for(extractor: Extractor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two clips (2, T, H, W, 3) uint8 of a net's size, and the same as its preprocessing gives them (2, T, 3, H, W)."""
    height, width = extractor.input.shape
    generator = torch.Generator().manual_seed(1)
    shape = (2, extractor.input.clips.clip_len, height, width, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return clips, extractor.preprocess(clips, torch.float32).transpose(1, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_the_librarys_own_pass(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path / "model")
    own = build_extractor(f"hf:{tmp_path / 'model'}", device="cpu")
    _, _, _, layer, expected = FAMILIES[name]
    assert own.layer == layer
    assert own.precision == "fp32"
    assert own.net.name == f"hf-{model.config.model_type}"
    clips, pixels = frames_for(own)
    with torch.no_grad():
        wanted = expected(model, pixels if name in CLIPS else pixels[:, 0])
    found = own(clips)
    assert found.shape == wanted.shape == (2, own.feature_dim)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    whole = build_extractor(f"hf:{tmp_path / 'model'}", device="cpu", layer="mean")(clips)
    patches = build_extractor(f"hf:{tmp_path / 'model'}", device="cpu", tokens=True)
    assert patches.layer == "mean"  # the first layer with tokens, where the default has none
    assert patches(clips).shape == (2, patches.num_tokens(clips.shape[1]), patches.feature_dim)
    torch.testing.assert_close(patches(clips).mean(1), whole, rtol=1e-5, atol=1e-5)
    if "projection" in own.net.layers:
        projected = build_extractor(f"hf:{tmp_path / 'model'}", device="cpu", layer="projection")(clips)
        with torch.no_grad():
            wanted = model.get_image_features(pixels[:, 0])
        torch.testing.assert_close(projected, getattr(wanted, "pooler_output", wanted), rtol=1e-5, atol=1e-5)
    if "logits" in own.net.layers:
        logits = build_extractor(f"hf:{tmp_path / 'model'}", device="cpu", layer="logits")(clips)
        with torch.no_grad():
            wanted = model(pixels if name in CLIPS else pixels[:, 0]).logits
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


def test_tokens_of_timesformer_are_in_the_order_of_time(tmp_path: Path) -> None:
    """A frame that is changed changes the tokens of its time most: before attention over time they are of single frames."""
    saved("timesformer", tmp_path / "model")
    own = build_extractor(f"hf:{tmp_path / 'model'}", device="cpu", layer="mean", tokens=True)
    clips, _ = frames_for(own)
    before = own(clips)
    clips[:, 2] = 255 - clips[:, 2]
    changed = (own(clips) - before).abs().mean((0, 2)).reshape(clips.shape[1], -1).mean(1)
    assert int(changed.argmax()) == 2


def test_a_block_is_a_layer_and_an_unknown_one_is_refused(videomae: Path) -> None:
    model = transformers.VideoMAEForVideoClassification.from_pretrained(videomae)
    own = build_extractor(f"hf:{videomae}", device="cpu", layer="block1")
    clips, pixels = frames_for(own)
    with torch.no_grad():
        states = model.videomae(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(own(clips), states[1].mean(1), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match=r"no layer 'block3'; .*fc_norm.*block2"):
        build_extractor(f"hf:{videomae}", device="cpu", layer="block3")


def test_the_hash_is_of_what_the_folder_holds_and_not_of_where_it_is(videomae: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(videomae, copy)
    (copy / "README.md").write_text("a model card")
    first, second = (build_extractor(f"hf:{folder}", device="cpu") for folder in (videomae, copy))
    assert first.weights == second.weights == f"sha256:{weights_sha256(copy)}"
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-6}))
    assert weights_sha256(copy) != weights_sha256(videomae)
    # As a run asks for it: the kind of its spec, and the folder as weights.
    assert build_extractor("hf-videomae", weights=str(videomae), device="cpu").weights == first.weights
    with pytest.raises(WeightsError, match="of the kind videomae, not vivit"):
        build_extractor("hf-vivit", weights=str(videomae), device="cpu")
    with pytest.raises(UsageError, match="--weights"):
        build_extractor("hf-videomae", device="cpu")
    with pytest.raises(UsageError, match="omit --weights"):
        build_extractor(f"hf:{videomae}", weights="random", device="cpu")


def test_weights_in_several_files_are_read(videomae: Path, tmp_path: Path) -> None:
    model = transformers.VideoMAEForVideoClassification.from_pretrained(videomae)
    model.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    whole, parts = (build_extractor(f"hf:{folder}", device="cpu") for folder in (videomae, tmp_path / "parts"))
    clips, _ = frames_for(whole)
    assert torch.equal(whole(clips), parts(clips))
    next((tmp_path / "parts").glob("*.safetensors")).unlink()
    with pytest.raises(WeightsError, match="which is not there"):
        build_extractor(f"hf:{tmp_path / 'parts'}", device="cpu")


@pytest.mark.parametrize(
    "key",
    [
        "videomae.encoder.layer.1.output.dense.bias",
        "videomae.encoder.layer.0.attention.attention.q_bias",
        "videomae.embeddings.patch_embeddings.projection.weight",
        "fc_norm.bias",
    ],
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused(key: str, videomae: Path, tmp_path: Path) -> None:
    shutil.copytree(videomae, tmp_path / "model")
    state = load_file(tmp_path / "model/model.safetensors")
    del state[key]
    save_file(state, tmp_path / "model/model.safetensors", {"format": "pt"})
    name = key.replace("q_bias", "query.bias")
    with pytest.raises(WeightsError, match=rf"not loaded completely .*lacks: {name}"):
        build_extractor(f"hf:{tmp_path / 'model'}", device="cpu")


def test_a_checkpoint_with_a_value_that_is_not_finite_is_refused(videomae: Path, tmp_path: Path) -> None:
    shutil.copytree(videomae, tmp_path / "model")
    state = load_file(tmp_path / "model/model.safetensors")
    state["fc_norm.bias"][3] = torch.nan
    save_file(state, tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"/model: fc_norm\.bias holds non-finite values"):
        build_extractor(f"hf:{tmp_path / 'model'}", device="cpu")


def test_a_checkpoint_with_more_blocks_than_its_config_is_refused(videomae: Path, tmp_path: Path) -> None:
    shutil.copytree(videomae, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(WeightsError, match=r"has what is not read: videomae\.encoder\.layer\.1"):
        build_extractor(f"hf:{tmp_path / 'model'}", device="cpu")


def test_biases_that_the_library_leaves_at_zero_are_noticed(videomae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some versions of transformers 5 do with VideoMAE's q_bias and v_bias, without an error."""
    original = transformers.VideoMAEForVideoClassification.from_pretrained.__func__

    def forgetful(cls: type, *args: Any, **options: Any) -> Any:
        model, about = original(cls, *args, **options)
        for part in model.modules():
            for name in ("query", "value"):
                if isinstance(linear := getattr(part, name, None), nn.Linear):
                    linear.bias.data.zero_()
        return model, about

    monkeypatch.setattr(transformers.VideoMAEForVideoClassification, "from_pretrained", classmethod(forgetful))
    with pytest.raises(WeightsError, match=r"lacks: videomae\.encoder\.layer\.0\.attention\.attention\.query\.bias"):
        build_extractor(f"hf:{videomae}", device="cpu")


def test_what_is_no_folder_of_a_model_says_so(videomae: Path, tmp_path: Path) -> None:
    def error(source: Path | str) -> str:
        with pytest.raises(WeightsError) as caught:
            build_extractor(f"hf:{source}", device="cpu")
        return str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no config.json" in error(empty)
    assert "neither a folder" in error(tmp_path / "absent")
    assert "neither a folder" in error(videomae / "model.safetensors")
    (empty / "config.json").write_text('{"model_type": "bert"}')
    assert "unknown model_type 'bert'; choose from: clip, " in error(empty)
    (empty / "config.json").write_text("{")
    assert "cannot be read as JSON" in error(empty)
    shutil.copy(videomae / "config.json", empty)
    assert "holds no model.safetensors" in error(empty)
    torch.save({}, empty / "pytorch_model.bin")
    assert "holds pytorch_model.bin and no model.safetensors; pickled weights may run code" in error(empty)
    (empty / "model.safetensors").write_bytes(b"no tensors")
    assert "not a readable safetensors file" in error(empty)
    config = json.loads((videomae / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    shutil.copy(videomae / "model.safetensors", empty)
    assert "no config of videomae" in error(empty)
    (empty / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    shape = r"do not fit its config.json: \d+ of another shape \(.*fc_norm.bias \(32,\), not \(64,\)"
    assert re.search(shape, error(empty))


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"config.json is not in the hub's cache .*`hf download MCG-NJU/videomae-base`"
    ):
        build_extractor("hf:MCG-NJU/videomae-base", device="cpu")
    with pytest.raises(
        WeightsError, match=r"^there is no folder folders/mine here, and as a name on the hub: folders/mine"
    ):
        build_extractor("hf:folders/mine", device="cpu")
    with pytest.raises(WeightsError, match=r"timm/resnet18.a1_in1k: model.safetensors is not in the hub's cache"):
        build_extractor("timm:resnet18", device="cpu")


def in_cache(cache: Path, repository: str, folder: Path) -> None:
    """Put the files of a folder into a cache of the hub, as links to files that are named by their hash."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "snapshots/abc").mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs").mkdir()
    (place / "refs/main").write_text("abc")
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, place / f"blobs/{number}")
        (place / "snapshots/abc" / file.name).symlink_to(f"../../blobs/{number}")


def test_the_cache_of_the_hub_needs_no_network(videomae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    in_cache(tmp_path / "cache", "org/plain", videomae)
    with pytest.raises(WeightsError, match=r"org/plain: \w+_config.json is not in the hub's cache"):
        build_extractor("hf:org/plain", device="cpu")  # whether the hub has such a file is not known
    whole = tmp_path / "whole"
    shutil.copytree(videomae, whole)
    transformers.VideoMAEImageProcessor(size={"shortest_edge": 36}, crop_size=32).save_pretrained(whole)
    in_cache(tmp_path / "cache", "org/model", whole)
    found, local = build_extractor("hf:org/model", device="cpu"), build_extractor(f"hf:{whole}", device="cpu")
    assert found.weights == local.weights
    assert found.input.resize == "short36-center32"
    clips, _ = frames_for(found)
    assert torch.equal(found(clips), local(clips))
    # A run asks by the hash, and on another machine by the name.
    assert build_extractor("hf-videomae", weights="org/model", device="cpu").weights == found.weights
    digits = found.weights.removeprefix("sha256:")
    assert weights_with_hash({}, "rgb", digits) == str(tmp_path / "cache/models--org--model/snapshots/abc")

    (tmp_path / "timm").mkdir()
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "timm/model.safetensors")
    in_cache(tmp_path / "cache", "timm/test_resnet.r160_in1k", tmp_path / "timm")
    net = build_extractor("timm:test_resnet", device="cpu")
    path = weights_with_hash(net.net.weights, "rgb", net.weights.removeprefix("sha256:"))
    assert path is not None
    assert build_extractor("timm-test_resnet", weights=path, device="cpu").weights == net.weights


def test_frames_are_prepared_as_the_folders_processor_says(videomae: Path, tmp_path: Path) -> None:
    """The library's processor on frames that need no scaling, and the sizes that it scales to."""
    shutil.copytree(videomae, tmp_path / "model")

    def read(processor: Any) -> Extractor:
        for file in (tmp_path / "model").glob("*processor_config.json"):
            file.unlink()
        processor.save_pretrained(tmp_path / "model")
        return build_extractor(f"hf:{tmp_path / 'model'}", device="cpu")

    square = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    for processor in (
        transformers.VideoMAEImageProcessor(**square, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]),
        transformers.VivitImageProcessor(**square),
        transformers.VivitImageProcessor(**square, offset=False, rescale_factor=1 / 255),
    ):
        own = read(processor)
        clips, pixels = frames_for(own)
        wanted = processor([list(clip.numpy()) for clip in clips], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels, torch.as_tensor(wanted), rtol=1e-5, atol=1e-5)
    cut = {"crop_size": {"height": 32, "width": 32}}
    assert read(transformers.CLIPImageProcessor(size={"shortest_edge": 40}, **cut)).input.resize == "short40-center32"
    assert read(transformers.SiglipImageProcessor(size={"height": 32, "width": 32})).input.resize == "stretch-32"
    assert (
        read(transformers.BitImageProcessor(size={"height": 36, "width": 48}, **cut)).input.resize
        == "stretch-48x36-center32"
    )
    assert read(transformers.VideoMAEVideoProcessor(**square)).input.resize == "short32-center32"
    vjepa2 = saved("vjepa2", tmp_path / "vjepa2")
    assert vjepa2.config.crop_size == 32
    transformers.VideoMAEImageProcessor(size=48, crop_size=48).save_pretrained(tmp_path / "vjepa2")  # it takes any size
    assert build_extractor(f"hf:{tmp_path / 'vjepa2'}", device="cpu").input.resize == "short48-center48"
    # SigLIP adds its positions to fewer patches without an error, VideoMAE fails in the first batch.
    saved("siglip", tmp_path / "siglip")
    small = {"size": {"height": 16, "width": 16}}
    transformers.SiglipImageProcessor(**small).save_pretrained(tmp_path / "siglip")
    with pytest.raises(WeightsError, match=r"makes frames of 16 px, and the model of config.json reads 32 px"):
        build_extractor(f"hf:{tmp_path / 'siglip'}", device="cpu")
    with pytest.raises(WeightsError, match=r"makes frames of 16 px, and the model of config.json reads 32 px"):
        read(transformers.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size=16))
    for wrong in ({"image_std": [0, 0.5, 0.5]}, {"rescale_factor": 0}, {"image_mean": [float("nan"), 0, 0]}):
        with pytest.raises(WeightsError, match=r"does not say how frames are prepared \(mean, std and scale"):
            read(transformers.VideoMAEImageProcessor(**square, **wrong))
    with pytest.raises(WeightsError, match="not square"):
        read(transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 30}))


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("videomae", transformers.VideoMAEImageProcessor(size={"shortest_edge": 36}, crop_size=32)),
        ("vivit", transformers.VivitImageProcessor(size={"shortest_edge": 36}, crop_size=32)),
        ("clip", transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)),
        ("siglip", transformers.SiglipImageProcessor(size={"height": 32, "width": 32})),
        ("siglip", transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2)),
        ("dinov2", transformers.BitImageProcessor(size={"shortest_edge": 37}, crop_size=32)),
        ("dinov3_vit", transformers.DINOv3ViTImageProcessor(size={"height": 32, "width": 32})),
        (
            "videomae",
            transformers.VideoMAEVideoProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        ),
        (
            "vjepa2",
            transformers.VJEPA2VideoProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        ),
    ],
)
def test_frames_are_scaled_as_the_folders_processor_does(kind: str, processor: Any, tmp_path: Path) -> None:
    """Within one level: the library scales tensors."""
    saved(kind, tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    own = build_extractor(f"hf:{tmp_path / 'model'}", device="cpu")
    assert own.input.resize_method == ("bilinear" if processor.resample == 2 else "bicubic")
    resize = parse_resize(own.input.resize, own.input.resize_method)
    for shape in ((72, 129), (211, 90), (20, 25)):
        coarse = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
        frame = np.array(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
        cut = resize_frame(frame, resize)
        pixels = own.preprocess(torch.from_numpy(cut.copy())[None, None], torch.float32)[0, :, 0]
        given = (
            [frame[None]] if hasattr(processor, "do_sample_frames") else [frame]  # of videos, or of images
        )
        (wanted,) = processor(given, return_tensors="pt").values()
        wanted = torch.as_tensor(wanted).reshape(pixels.shape)
        levels = (pixels - wanted).abs() * torch.tensor(own.preprocess.std)[:, None, None]
        assert levels.max() < 1.01
        # DINOv3's scales numbers between the levels, from which whole ones are a quarter away on average.
        assert levels.mean() < (0.3 if kind == "dinov3_vit" else 0.2)


def test_a_filter_that_is_not_offered_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved("siglip", tmp_path / "model")
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=1).save_pretrained(tmp_path / "model")
    own = build_extractor(f"hf:{tmp_path / 'model'}", device="cpu")
    assert own.input.resize_method == "bicubic"
    assert "asks for resample 1, which is not offered: frames are scaled by bicubic" in caplog.text


@pytest.mark.parametrize(
    ("size", "asked", "message"),
    [
        ({"shortest_edge": 40}, {"do_resize": False}, "not scaled, which is not offered: they are scaled to 32 px"),
        ({"shortest_edge": 40}, {"do_center_crop": False}, "not cropped, which is not offered: their centre is cut"),
        ({"height": 32, "width": 32}, {"do_center_crop": False}, ""),
    ],
)
def test_frames_that_are_made_otherwise_than_the_processor_asks_are_told_of(
    size: dict[str, int], asked: dict[str, bool], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved("clip", tmp_path / "model")
    cut = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=size, crop_size=cut, **asked).save_pretrained(tmp_path / "model")
    build_extractor(f"hf:{tmp_path / 'model'}", device="cpu")
    assert message in caplog.text
    assert ("which is not offered" in caplog.text) == bool(message)


def test_16_bits_are_taken_where_they_are_asked_for_and_near(videomae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_extractor(f"hf:{videomae}", device="cpu", precision="auto").precision == "fp32"
    exact, half = (build_extractor(f"hf:{videomae}", device="cpu", precision=name) for name in ("fp32", "bf16"))
    assert next(half.module.parameters()).dtype == torch.bfloat16
    clips, _ = frames_for(exact)
    assert nn.functional.cosine_similarity(exact(clips), half(clips)).mean() > 0.999
    monkeypatch.setattr("har_pipeline.models.extractors.build.LEAST_COSINE", 1.1)
    with pytest.raises(
        DeviceError, match=r"features in bf16 are too far from those in fp32: mean cosine .*--precision fp32"
    ):
        build_extractor(f"hf:{videomae}", device="cpu", precision="bf16")


def test_the_clips_are_those_of_the_config(videomae: Path) -> None:
    read = find_net(f"hf:{videomae}").inputs["rgb"]
    assert (read.clips.sampling, read.clips.num_clips, read.clips.clip_len) == ("uniform", 5, 4)
    assert read.clip_lens == (4, 4)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_a_timm_model_is_read_as_its_own_pass(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    own = build_extractor(f"timm:{name}", weights=str(tmp_path / "model.safetensors"), device="cpu")
    assert own.net.name == f"timm-{name}"
    clips, pixels = frames_for(own)
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(pixels[0, 0], (clips[0, 0].permute(2, 0, 1) / 255 - mean) / std, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        maps = model.forward_features(pixels[:, 0])
        wanted = model.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(own(clips), wanted, rtol=1e-5, atol=1e-5)
    layer = {"test_resnet": "layer4", "test_vit": "norm"}.get(name, "stages")
    at_layer = build_extractor(f"timm:{name}", weights=str(tmp_path / "model.safetensors"), device="cpu", layer=layer)
    places = {"test_resnet": (2, 3), "test_vit": (1,)}.get(name, (1, 2))  # test_mambaout has its channels last
    torch.testing.assert_close(at_layer(clips), maps.mean(places), rtol=1e-5, atol=1e-5)
    assert model.pretrained_cfg["classifier"] not in own.net.layers  # it is cut off
    if "head" in own.net.layers:  # and the part that ends with it, ends before it
        head = build_extractor(f"timm:{name}", weights=str(tmp_path / "model.safetensors"), device="cpu", layer="head")
        torch.testing.assert_close(head(clips), wanted, rtol=1e-5, atol=1e-5)
        assert head.feature_dim == wanted.shape[1]


def test_the_frames_of_a_timm_model_are_cut_as_timm_cuts_them() -> None:
    """The evaluation transform of timm: its scaled short side and its crop."""
    for name in ("resnet18", "test_vit"):
        net = timm_net(name)
        with torch.device("meta"):
            config = timm.data.resolve_model_data_config(timm.create_model(name))
        transform = timm.data.create_transform(**config)
        scaled = transform.transforms[0].size
        read = net.inputs["rgb"]
        resize = parse_resize(read.resize, read.resize_method)
        assert resize.scaled == (scaled[0] if isinstance(scaled, list | tuple) else scaled), name
        assert resize.size == read.shape[0]
        assert read.resize_method == config["interpolation"], name
        for shape in ((270, 481), (301, 120)):
            frame = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
            cut = torch.from_numpy(resize_frame(frame, resize).copy())[None, None]
            pixels = net.weights["hub"].preprocess(cut, torch.float32)[0, :, 0]
            torch.testing.assert_close(pixels, transform(Image.fromarray(frame)), rtol=1e-4, atol=1e-5)


def test_what_timm_does_not_have_or_a_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="timm has no model 'resnet81'; did you mean 'resnet"):
        find_net("timm:resnet81")
    with pytest.raises(UsageError, match=r"no model 'resnet18\.b1_in1k'; did you mean 'resnet18"):
        find_net("timm:resnet18.b1_in1k")
    with pytest.raises(UsageError, match="timm:efficientvim_m1 does not give one feature for a frame"):
        find_net("timm:efficientvim_m1")
    with pytest.raises(UsageError, match=r"no layer 'layer5'; did you mean 'layer"):
        build_extractor("timm:resnet18", weights="random", device="cpu", layer="layer5")
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"not a \.safetensors file; pickled weights may run code"):
        build_extractor("timm:resnet18", weights=str(tmp_path / "model.pt"), device="cpu")
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(layer1\.0\.conv1\.weight\)"):
        build_extractor("timm:resnet18", weights=str(tmp_path / "model.safetensors"), device="cpu")


def test_a_timm_model_with_other_classes_is_read_without_them(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    own = build_extractor("timm:resnet18", weights=str(tmp_path / "model.safetensors"), device="cpu")
    clips, pixels = frames_for(own)
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features(pixels[:, 0]), pre_logits=True)
    torch.testing.assert_close(own(clips), wanted, rtol=1e-5, atol=1e-5)


def test_without_the_extra_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "transformers"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    timm_net.cache_clear()
    for name in ("timm:resnet18", "hf:x/y"):
        with pytest.raises(ExtractionError, match=r"pip install 'har-pipeline\[backbones\]'"):
            find_net(name)
