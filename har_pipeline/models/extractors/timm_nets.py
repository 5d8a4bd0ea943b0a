"""Any image model of timm as a net of single frames; the extra `backbones` installs timm.

Frames are prepared as the model's own data configuration says, pixel for pixel as timm's transform for evaluation does with
images of Pillow: short side to floor(size / crop_pct), by Pillow's bicubic or bilinear; centre crop, mean and std.

Layers: `pooled`, what the model's classifier reads (`forward_head` with pre_logits), `logits`, where it has classes, and the
output of any module by its dotted name, such as `layer3` or `blocks.5`: maps and tokens become their mean over places.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from har_pipeline.core.errors import UsageError, WeightsError
from har_pipeline.core.text import did_you_mean
from har_pipeline.models.extractors.base import FRAMES, Input, Net, Weights, of_unit_range
from har_pipeline.models.extractors.hub import first_line, hub_file, library, refuse_pickled
from har_pipeline.models.extractors.weights import load_strictly, read_state_dict
from har_pipeline.models.state import key_differences

# Names of pickled files on the hub, and of the safetensors beside them.
_SAFE = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}


class TimmNet(nn.Module):
    """Frames (B, 3, 1, H, W) float -> features (B, D) of a layer."""

    def __init__(self, net: nn.Module, layer: str) -> None:
        super().__init__()
        self.net, self.layer = net, layer
        if layer != "logits":
            for name in _classifiers(net):
                net.set_submodule(name, nn.Identity())

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return (B, D) of normalised frames (B, 3, 1, H, W)."""
        frames = clips[:, :, 0]
        if self.layer == "logits":
            return self.net(frames)
        if self.layer == "pooled":
            return self.net.forward_head(self.net.forward_features(frames), pre_logits=True)  # type: ignore[operator]
        with _outputs(self.net, [self.layer]) as outputs:
            self.net(frames)
        return _mean_over_places(outputs[self.layer], _channels_are_last(self.net))


@cache
def timm_net(name: str) -> Net:
    """Return the net of a timm model, such as `resnet18` or `vit_base_patch16_224.dino`.

    Raises: ExtractionError if timm is not installed; UsageError if it has no such model, or the model reads no square RGB.
    """
    timm = library("timm", f"timm:{name}")
    if not timm.is_model(name) or (name.partition(".")[2] and not timm.is_model_pretrained(name)):
        raise UsageError(f"timm has no model {name!r}; {did_you_mean(name, _names(timm, name))}see timm.list_models()")
    try:
        with torch.device("meta"):  # shapes only
            net = timm.create_model(name).eval()
    except Exception as error:  # some models need packages that timm does not
        raise UsageError(f"timm:{name} cannot be built ({first_line(error)})") from error
    config = timm.data.resolve_model_data_config(net)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UsageError(f"timm:{name} reads {channels} x {height} x {width} px, not square RGB frames")
    try:
        layers = _layers(net, (channels, height, width))
    except Exception as error:  # some have several outputs in the place of one
        raise UsageError(f"timm:{name} does not give one feature for a frame ({first_line(error)})") from error
    preprocess = of_unit_range(config["mean"], config["std"])
    published = net.pretrained_cfg
    repository = published.get("hf_hub_id") or ""
    file = published.get("hf_hub_filename") or "model.safetensors"
    file = _SAFE.get(file, file)

    def download() -> Path:
        path = (
            hub_file(repository, file, "that file with --weights")
            if repository and file.endswith(".safetensors")
            else None
        )
        if path is None:
            raise WeightsError(
                f"timm:{name} has no published weights in safetensors: give --weights FILE.safetensors, or another name of "
                f"timm.list_models({name.partition('.')[0] + '*'!r}, pretrained=True)"
            )
        return path

    def load(module: nn.Module, path: Path) -> None:
        assert isinstance(module, TimmNet)
        _load(module, path)

    return Net(
        name=f"timm-{name}",
        source=f"timm, {published.get('paper_name') or published.get('architecture') or name}",
        inputs={
            "rgb": Input(
                clips=FRAMES,
                clip_lens=(1, 1),
                resize=_resize(config, height),
                resize_method="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
                weights="hub",
            )
        },
        layers=layers,
        default_layer="pooled",
        gmacs=None,
        weights={
            "hub": Weights(
                url=f"https://huggingface.co/{repository}" if repository else "none published",
                sha256="",
                licence=published.get("license") or "not stated, see its page",
                trained_on=published.get("tag") or "see its page",
                preprocess=preprocess,
                packaged=download,
            )
        },
        build=lambda layer, stream: TimmNet(timm.create_model(name), layer),
        load=load,
        file_preprocess=lambda path, stream: preprocess,
        bf16_is_close=None,
        packages=("timm",),
    )


def _names(timm: Any, name: str) -> list[str]:
    architecture, dot, _ = name.partition(".")
    return timm.list_pretrained(f"{architecture}.*") if dot and timm.is_model(architecture) else timm.list_models()


def _resize(config: dict[str, Any], size: int) -> str:
    """Return the resize mode of a data configuration: `timm.data.create_transform`'s for evaluation."""
    scaled = math.floor(size / config["crop_pct"])
    if config["crop_mode"] == "squash":
        return f"stretch-{size}" if scaled == size else f"stretch-{scaled}x{scaled}-middle{size}"
    return f"short{max(scaled, size)}-middle{size}"


@torch.no_grad()
def _layers(net: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Return layer -> length of its feature, from passes without numbers of a net on the meta device, which is cut then."""
    frames = torch.zeros(1, *shape, device="meta")
    logits = net(frames)
    beyond = tuple(f"{name}." for name in _classifiers(net))
    cut = TimmNet(net, "pooled").net
    names = [name for name, _ in cut.named_modules() if name and not f"{name}.".startswith(beyond)]
    with _outputs(cut, names) as outputs:
        pooled = cut.forward_head(cut.forward_features(frames), pre_logits=True)  # type: ignore[operator]
        cut(frames)
    layers = {"pooled": pooled.shape[1]}
    if getattr(net, "num_classes", 0) and isinstance(logits, torch.Tensor):
        layers["logits"] = logits.shape[1]
    last = _channels_are_last(net)
    return layers | {
        name: _mean_over_places(outputs[name], last).shape[1]
        for name in sorted(names, key=lambda name: name.count("."))  # the large parts first
        if isinstance(outputs.get(name), torch.Tensor) and 2 <= outputs[name].dim() <= 4 and len(outputs[name]) == 1
    }


@contextmanager
def _outputs(net: nn.Module, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield module name -> its output, filled by the pass inside."""
    found: dict[str, Any] = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _, inputs, output, name=name: found.update({name: output}))
        for name in names
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _mean_over_places(output: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Return (B, D) of features (B, D), tokens (B, M, D), or maps (B, D, H, W), with channels_last (B, H, W, D)."""
    if output.dim() == 4:
        return output.mean(dim=(1, 2) if channels_last else (2, 3))
    return output.mean(dim=1) if output.dim() == 3 else output


def _channels_are_last(net: nn.Module) -> bool:
    return str(getattr(net, "output_fmt", "")).rpartition(".")[2] == "NHWC"


def _classifiers(net: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of the modules that map features to classes, as far as the net has them."""
    names = net.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    names = (names,) if isinstance(names, str) else tuple(names)
    modules = dict(net.named_modules())
    return tuple(name for name in names if name in modules)


def _load(module: TimmNet, path: Path) -> None:
    refuse_pickled(path)
    state, net = read_state_dict(path), module.net
    wanted = {key: value.shape for key, value in net.state_dict().items()}
    dropped = tuple(f"{name}." for name in _classifiers(net) if module.layer != "logits")

    def kept(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value for key, value in values.items() if not key.startswith(dropped)}

    # Files of a model's authors have other keys, which timm's own module translates.
    translate = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if translate is not None and key_differences(wanted, {key: value.shape for key, value in kept(state).items()}):
        state = translate(state, net)
    load_strictly(net, kept(state), path)
