"""Video and image encoders of transformers, from a folder, the hub's cache or the hub; the extra `backbones` installs it.

Clip nets: VideoMAE, V-JEPA 2, TimeSformer, ViViT. Nets of single frames: the vision parts of CLIP and SigLIP, DINOv2 and 3.
A checkpoint is taken only whole: what the library leaves at its start values, or in the file, is an error, but for heads.

Layers, of which a checkpoint has those that it has weights for:
- `mean`: the mean over the patch tokens of the last block, after the encoder's last norm where it has one.
- `fc_norm`: VideoMAE's norm of that mean, which its classifier reads. `cls`: the class token.
- `cls+mean`: both, side by side, which DINOv2's classifier reads.
- `pooler`: V-JEPA 2's attentive pooler; CLIP's class token after its norm; SigLIP's attention pool.
- `projection`: CLIP's image embedding, in the space that images and texts share.
- `logits`: of the classes. `block1`, `block2` ...: the mean over the patch tokens after that block.
Tokens (`--tokens`) are the patch tokens of `mean` and of the blocks, before the mean.
The default is what the family's own classifier reads; of CLIP and SigLIP `pooler`; `mean` where neither has weights.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from har_pipeline.core.errors import WeightsError, first_few
from har_pipeline.core.records import ClipSpec, ResizeMethod, Stream
from har_pipeline.core.text import unknown
from har_pipeline.models.extractors.base import FRAMES, Input, Net, Preprocess, Tokens, Weights
from har_pipeline.models.extractors.hub import (
    CONFIG,
    PROCESSORS,
    first_line,
    library,
    model_folder,
    read_json,
    weight_files,
)
from har_pipeline.models.extractors.weights import check_finite
from har_pipeline.video.preprocess import parse_resize

log = logging.getLogger(__name__)

_LONGEST = 1000  # a bound, not a limit of the nets
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5,) * 3, (0.5,) * 3
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Pillow's numbers, as processors name them.
_RESAMPLE: dict[Any, ResizeMethod] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What differs from one kind of encoder to another."""

    source: str
    encoder: str  # class
    # Class of the encoder with its head, and the key that tells a checkpoint that has it.
    whole: str = ""
    told_by: str = "classifier.weight"
    # Best first: of these the checkpoint's default is the first that it has.
    pooled: tuple[str, ...]
    # Tokens before those of patches, but for registers.
    prefix: int = 0
    # The config's entry with the frames of a clip, and our step between them; of nets of single frames none.
    frames: str = ""
    interval: int = 1
    any_length: bool = False
    # Whether the places of a token's frames follow each other, and not the frames of a place.
    frames_first: bool = True
    # The config's entry with the size of a frame.
    size: str = "image_size"
    # Whether it has positions for frames of another size than the config's.
    other_sizes: bool = False
    # How published checkpoints prepare frames, where a folder does not say: mean, std, short side of a crop of 224, method.
    usual: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET
    usual_short: int = 224
    usual_method: ResizeMethod = "bilinear"
    # Patterns of keys in the file that no encoder reads.
    not_read: tuple[str, ...] = ()
    # Parts of the encoder that features do not come from: a file may lack them.
    spare: tuple[str, ...] = ()
    arguments: Mapping[str, Any] | None = None  # of the encoder's class
    passes: Mapping[str, Any] | None = None  # of its forward


_CLIP_FAMILY = _Family(
    source="Radford et al. 2021, CLIP",
    encoder="CLIPVisionModel",
    whole="CLIPVisionModelWithProjection",
    told_by="visual_projection.weight",
    pooled=("pooler",),
    prefix=1,
    usual=_CLIP,
    usual_method="bicubic",
    not_read=(r"text_model\.", r"text_projection", r"logit_scale"),
)
_SIGLIP = _Family(
    source="Zhai et al. 2023, SigLIP",
    encoder="SiglipVisionModel",
    pooled=("pooler", "mean"),
    usual=_HALF,
    usual_method="bicubic",
    not_read=(r"text_model\.", r"logit_(scale|bias)"),
)
_DINOV2 = _Family(
    source="Oquab et al. 2023, DINOv2",
    encoder="Dinov2Model",
    whole="Dinov2ForImageClassification",
    pooled=("cls+mean",),
    prefix=1,
    other_sizes=True,
    usual_short=256,
    usual_method="bicubic",
)
FAMILIES = {
    "videomae": _Family(
        source="Tong et al. 2022, VideoMAE",
        encoder="VideoMAEModel",
        whole="VideoMAEForVideoClassification",
        pooled=("fc_norm", "mean"),
        frames="num_frames",
        interval=4,
        not_read=(r"decoder\.", r"encoder_to_decoder", r"position_embeddings", r"fc_norm\."),
    ),
    "vjepa2": _Family(
        source="Assran et al. 2025, V-JEPA 2",
        encoder="VJEPA2Model",
        whole="VJEPA2ForVideoClassification",
        pooled=("pooler", "mean"),
        frames="frames_per_clip",
        interval=2,
        any_length=True,
        size="crop_size",
        other_sizes=True,
        usual_short=256,
        not_read=(r"pooler\.",),
        spare=("predictor",),
        passes={"skip_predictor": True},
    ),
    "timesformer": _Family(
        source="Bertasius et al. 2021, TimeSformer",
        encoder="TimesformerModel",
        whole="TimesformerForVideoClassification",
        pooled=("cls",),
        prefix=1,
        frames="num_frames",
        interval=32,
        frames_first=False,
        other_sizes=True,
        usual=((0.45,) * 3, (0.225,) * 3),
    ),
    "vivit": _Family(
        source="Arnab et al. 2021, ViViT",
        encoder="VivitModel",
        whole="VivitForVideoClassification",
        pooled=("cls",),
        prefix=1,
        frames="num_frames",
        interval=2,
        usual=_HALF,
        usual_short=256,
        not_read=(r"pooler\.",),
        arguments={"add_pooling_layer": False},
    ),
    "clip": _CLIP_FAMILY,
    "clip_vision_model": _CLIP_FAMILY,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _Family(
        source="Darcet et al. 2024, DINOv2 with registers",
        encoder="Dinov2WithRegistersModel",
        whole="Dinov2WithRegistersForImageClassification",
        pooled=("cls+mean",),
        prefix=1,
        other_sizes=True,
        usual_short=256,
        usual_method="bicubic",
    ),
    "dinov3_vit": _Family(
        source="Simeoni et al. 2025, DINOv3", encoder="DINOv3ViTModel", pooled=("cls",), prefix=1, other_sizes=True
    ),
}
# Of no family: classes, the masked token of a training, and numbers of places, which older files hold.
_NEVER_READ = (r"classifier\.", r"mask_token", r"position_ids")


class Encoder(nn.Module):
    """Clips (B, 3, T, H, W) float -> features (B, D) of a layer, or tokens (B, M, D): an encoder of transformers."""

    def __init__(self, model: nn.Module, family: _Family, layer: str, prefix: int, *, tokens: bool) -> None:
        super().__init__()
        self.model, self.layer, self.prefix, self.tokens = model, layer, prefix, tokens
        self._frames_first = family.frames_first
        self._passes, self._clips = dict(family.passes or {}), bool(family.frames)
        self._argument = str(model.main_input_name)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return (B, D), or (B, M, D), of normalised clips (B, 3, T, H, W)."""
        pixels = clips.transpose(1, 2) if self._clips else clips[:, :, 0]
        inputs = {self._argument: pixels}
        if self.layer == "logits":
            return self.model(**inputs).logits
        if self.layer == "projection":
            return self.model(**inputs).image_embeds
        encoder = _encoder_of(self.model)
        if self.layer.startswith("block"):
            return self._mean(self._after_block(encoder, int(self.layer.removeprefix("block")), inputs), clips)
        outputs = encoder(**inputs, **self._passes)
        tokens = outputs.last_hidden_state
        match self.layer:
            case "mean":
                return self._mean(tokens, clips)
            case "fc_norm":
                return self.model.fc_norm(self._mean(tokens, clips))  # type: ignore[operator]
            case "cls":
                return tokens[:, 0]
            case "cls+mean":
                return torch.cat([tokens[:, 0], self._mean(tokens, clips)], dim=1)
        if hasattr(self.model, "pooler"):  # V-JEPA 2's, beside its encoder
            return self.model.pooler(tokens)  # type: ignore[operator]
        return outputs.pooler_output

    def _mean(self, tokens: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """Return the mean over the patch tokens; or these, in the order time, height, width."""
        tokens = tokens[:, self.prefix :]
        if not self.tokens:
            return tokens.mean(dim=1)
        return tokens if self._frames_first else tokens.unflatten(1, (-1, clips.shape[2])).transpose(1, 2).flatten(1, 2)

    def _after_block(self, encoder: nn.Module, number: int, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found: list[Any] = []
        with_block = _blocks(encoder)[number - 1].register_forward_hook(lambda _, inputs, output: found.append(output))
        try:
            encoder(**inputs, **self._passes)
        finally:
            with_block.remove()
        output: torch.Tensor = found[0][0] if isinstance(found[0], tuple) else found[0]
        return output


def _encoder_of(model: nn.Module) -> nn.Module:
    """Return the encoder of a model with a head, or the model, if it is one."""
    return next((part for name, part in model.named_children() if name in _PARTS), model)


# What models with heads call their encoder.
_PARTS = (*FAMILIES, "vision_model")


def _blocks(encoder: nn.Module) -> nn.ModuleList:
    """Return the blocks of an encoder, in order."""
    count = encoder.config.num_hidden_layers  # type: ignore[union-attr]
    lists = (part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    return next(lists)


def transformers_net(source: str) -> Net:
    """Return the net of a model's folder, or of a name on the hub, whose files are downloaded if they are not in its cache.

    Raises: ExtractionError if transformers is not installed; WeightsError if the files are missing, pickled, damaged, or of
    a model that is not known here.
    """
    transformers = library("transformers", f"hf:{source}")
    folder = model_folder(source)
    values = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    kind = str(values.get("model_type", ""))
    if kind not in FAMILIES:
        what = (
            unknown("model_type", kind, sorted(FAMILIES))
            if values
            else f"holds no {CONFIG}: it is no folder of a model"
        )
        raise WeightsError(f"{folder}: {what}")
    family, keys = FAMILIES[kind], _keys(folder)
    has_head = bool(family.whole) and any(key.endswith(family.told_by) for key in keys)
    cls = getattr(transformers, family.whole if has_head else family.encoder)
    config = _config(transformers, cls, values, folder)
    resize, method, preprocess = _frames(folder, family, config)
    layers = _layers(family, config, has_head, keys)
    arguments = {} if has_head else dict(family.arguments or {})
    clip_len = int(getattr(config, family.frames)) if family.frames else 1
    size = parse_resize(resize).size

    def build(layer: str, stream: Stream, *, tokens: bool = False) -> nn.Module:
        prefix = family.prefix + getattr(config, "num_register_tokens", 0)
        with torch.device("meta"):  # `load` brings the numbers
            return Encoder(cls(config, **arguments), family, layer, prefix, tokens=tokens)

    def load(module: nn.Module, path: Path) -> None:
        assert isinstance(module, Encoder)
        module.model = _loaded(transformers, cls, config, arguments, path, family)

    return Net(
        name=f"hf-{kind}",
        source=family.source,
        inputs={
            "rgb": Input(
                clips=FRAMES
                if not family.frames
                else ClipSpec(sampling="uniform", num_clips=5, clip_len=clip_len, frame_interval=family.interval),
                clip_lens=(1, _LONGEST) if family.any_length else (clip_len, clip_len),
                resize=resize,
                resize_method=method,
                weights="own",
            )
        },
        layers=layers,
        default_layer=next(name for name in (*family.pooled, "mean") if name in layers),
        gmacs=None,
        weights={
            "own": Weights(
                url=source,
                sha256="",
                licence="not stated, see its model card",
                trained_on="see its model card",
                preprocess=preprocess,
                packaged=lambda: folder,
            )
        },
        build=build,
        load=load,
        file_preprocess=lambda path, stream: preprocess,
        bf16_is_close=None,
        packages=("transformers",),
        tokens=Tokens(
            layers={name: dim for name, dim in layers.items() if name == "mean" or name.startswith("block")},
            count=lambda layer, clip_len: _num_patches(config, size, clip_len),
            build=lambda layer, stream: build(layer, stream, tokens=True),
        ),
        of_folder=True,
    )


def _num_patches(config: Any, size: int, clip_len: int) -> int:
    """Return how many patch tokens a clip of frames of size x size px has."""
    tube = getattr(config, "tubelet_size", 1)  # of ViViT with the sides of a patch
    frames, patch = (tube[0], tube[1]) if isinstance(tube, list | tuple) else (tube, config.patch_size)
    return max(1, clip_len // int(frames)) * (size // int(patch)) ** 2


def _config(transformers: Any, cls: Any, values: Mapping[str, Any], folder: Path) -> Any:
    """Return the config of a class of models: of one that reads images and texts, the part of the images."""
    own = cls.config_class
    try:
        if values["model_type"] != own.model_type:
            whole = transformers.AutoConfig.for_model(**values)
            whole.vision_config.projection_dim = whole.to_dict().get("projection_dim")
            return whole.vision_config
        return own.from_dict(dict(values))
    except Exception as error:  # any entry may be of a wrong type
        raise WeightsError(f"{folder / CONFIG}: no config of {own.model_type} ({first_line(error)})") from error


def _keys(folder: Path) -> list[str]:
    return [key for file in weight_files(folder) for key in _read(file, lambda opened: list(opened.keys()))]


def _read(file: Path, what: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(file, "pt") as opened:
            return what(opened)
    except Exception as error:
        raise WeightsError(f"{file}: not a readable safetensors file ({first_line(error)})") from error


def _layers(family: _Family, config: Any, has_head: bool, keys: Sequence[str]) -> dict[str, int]:
    """Return layer -> length of its feature."""
    dim = int(config.hidden_size)
    layers = {"mean": dim}
    if family.prefix:
        layers |= {"cls": dim, "cls+mean": 2 * dim}
    if family.encoder == "CLIPVisionModel" or (
        family.encoder == "SiglipVisionModel" and getattr(config, "vision_use_head", True)
    ):
        layers["pooler"] = dim
    if has_head and family.told_by == "visual_projection.weight":
        layers["projection"] = int(config.projection_dim)
    elif has_head:
        layers["logits"] = int(config.num_labels)
        if family.encoder == "VJEPA2Model":
            layers["pooler"] = dim
        if any(key.endswith("fc_norm.weight") for key in keys):
            layers["fc_norm"] = dim
    return layers | {f"block{number}": dim for number in range(1, int(config.num_hidden_layers) + 1)}


def _frames(folder: Path, family: _Family, config: Any) -> tuple[str, ResizeMethod, Preprocess]:
    """Return the resize mode, its method and the preprocessing of a folder's processor, or what is usual for the family."""
    size = _side(getattr(config, family.size), folder / CONFIG)
    file = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    if file is None:
        log.warning(
            "%s holds no %s: frames are prepared as is usual for %s",
            folder,
            PROCESSORS[1],
            family.source.partition(", ")[2],
        )
        mean, std = family.usual
        short = round(size * family.usual_short / 224)
        return _cut(short, size), family.usual_method, _normalised(mean, std, 1 / 255, 0)
    values = read_json(file)
    for part in ("video_processor", "image_processor"):
        if isinstance(values.get(part), dict):
            values = values[part]
    try:
        scaled = values.get("size", size) if values.get("do_resize", True) else size
        crop = values.get("crop_size") if values.get("do_center_crop", "crop_size" in values) else None
        mean, std = family.usual
        if not values.get("do_normalize", True):
            mean, std = (0.0,) * 3, (1.0,) * 3
        factor = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
        offset = 1 if values.get("offset", False) and values.get("do_rescale", True) else 0
        normalise = values.get("do_normalize", True)
        preprocess = _normalised(
            values.get("image_mean", mean) if normalise else mean,
            values.get("image_std", std) if normalise else std,
            factor,
            offset,
        )
        resize = _resize(scaled, crop, size, file)
        method = _RESAMPLE.get(values.get("resample"), family.usual_method)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{file}: does not say how frames are prepared ({first_line(error)})") from error
    if (made := parse_resize(resize).size) != size and not family.other_sizes:
        raise WeightsError(
            f"{file}: makes frames of {made} px, and the model of {CONFIG} reads {size} px: take its own file"
        )
    if values.get("resample") not in (None, *_RESAMPLE):
        log.warning(
            "%s: asks for resample %s, which is not offered: frames are scaled by %s", file, values["resample"], method
        )
    if not values.get("do_resize", True):
        log.warning(
            "%s: asks for frames that are not scaled, which is not offered: they are scaled to %d px", file, made
        )
    elif not values.get("do_center_crop", True) and "-center" in resize:
        log.warning("%s: asks for frames that are not cropped, which is not offered: their centre is cut", file)
    return resize, method, preprocess


def _normalised(mean: Sequence[float], std: Sequence[float], factor: float, offset: int) -> Preprocess:
    """Return (x * factor - offset - mean) / std of RGB x in 0-255 units."""
    if len(mean) != 3 or len(std) != 3:
        raise ValueError("mean and std are not of three channels")
    if not all(math.isfinite(value) for value in (*mean, *std, factor)) or not all((*std, factor)):
        raise ValueError("mean, std and scale must be numbers, the last two not 0")
    return Preprocess(
        mean=tuple((float(value) + offset) / factor for value in mean),
        std=tuple(float(value) / factor for value in std),
    )


def _resize(scaled: Any, crop: Any, size: int, file: Path) -> str:
    """Return the resize mode of a processor's `size` and `crop_size`, each a number or a dict."""
    side = _side(crop, file) if crop is not None else None
    if isinstance(scaled, Mapping) and "height" in scaled:
        height, width = int(scaled["height"]), int(scaled["width"])
        if height == width and side in (None, height):
            return f"stretch-{height}"
        return f"stretch-{width}x{height}-center{side or min(height, width)}"
    short = int(scaled["shortest_edge"]) if isinstance(scaled, Mapping) else int(scaled)
    return _cut(short, side or size)


def _cut(short: int, side: int) -> str:
    return f"short{max(short, side)}-center{side}"


def _side(size: Any, file: Path) -> int:
    """Return the side of a square given as a number, (height, width), or a dict of both."""
    if isinstance(size, Mapping):
        size = tuple(size.values())
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise WeightsError(f"{file}: frames of {size} px are not square, which is not supported")
    return int(sides.pop())


def _loaded(
    transformers: Any, cls: Any, config: Any, arguments: Mapping[str, Any], folder: Path, family: _Family
) -> nn.Module:
    """Return the model with all of its weights from a folder. Raises: WeightsError if it is not loaded completely."""
    with _quiet(transformers):
        try:
            model, about = cls.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below by name: the library's error names no tensor
                dtype=torch.float32,
                **arguments,
            )
        except Exception as error:  # damaged files: the library's own errors are of any kind
            raise WeightsError(f"{folder}: its weights do not fit its {CONFIG} ({first_line(error)})") from error
    if about["mismatched_keys"]:
        other = [f"{key} {tuple(stored)}, not {tuple(ours)}" for key, stored, ours in sorted(about["mismatched_keys"])]
        raise WeightsError(
            f"{folder}: its weights do not fit its {CONFIG}: {len(other)} of another shape ({first_few(other)})"
        )
    spare, not_read = [rf"{part}\." for part in family.spare], (*family.not_read, *_NEVER_READ)
    ours = {
        key: _content(value)
        for key, value in model.state_dict().items()
        if value.is_floating_point() and not _matches(key, spare)
    }
    theirs: dict[str, tuple[tuple[int, ...], bytes]] = {}
    for file in weight_files(folder):
        theirs |= _read(file, lambda opened: {key: _content(opened.get_tensor(key)) for key in opened.keys()})  # noqa: SIM118
    read, held = set(ours.values()), set(theirs.values())
    absent = [key for key, content in ours.items() if key in about["missing_keys"] or content not in held]
    unread = [key for key, content in theirs.items() if content not in read and not _matches(key, (*not_read, *spare))]
    for what, keys in (("lacks", absent), ("has what is not read", unread)):
        if keys:
            raise WeightsError(
                f"{folder}: not loaded completely by transformers {transformers.__version__}: it {what}: "
                f"{first_few(sorted(keys))} ({len(keys)} in all): copy the folder again, or take another transformers"
            )
    for part in family.spare:
        setattr(_encoder_of(model), part, None)
    check_finite(model.state_dict(), folder)
    return model


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(re.search(rf"(^|\.){pattern}", key) for pattern in patterns)


def _content(value: torch.Tensor) -> tuple[tuple[int, ...], bytes]:
    """Return what is equal of tensors with equal shapes and float32 values only."""
    values = value.detach().to(torch.float32).contiguous().numpy()
    return tuple(value.shape), hashlib.sha256(values.tobytes()).digest()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the library from printing: what it says of a load is checked afterwards."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
