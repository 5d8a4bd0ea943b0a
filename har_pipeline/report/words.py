"""How features were made and what was run, in words."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from har_pipeline.core.options import options_of
from har_pipeline.core.records import ClipSpec, FeatureSpec
from har_pipeline.core.text import counted
from har_pipeline.evaluation.run_folder import HEAD, RunRecord
from har_pipeline.training.options import TrainConfig, VideoTrainConfig

_RESIZE = re.compile(r"(?P<scaled>(?:stretch|fit|within)-[0-9x]+|short[0-9]+)(?:-(?P<crops>[a-z]+[0-9x]+))?")
_SCALED = re.compile(r"\(x-\[([^\]]*)\]\)/\[([^\]]*)\]")

Fact = tuple[str, str]  # what, and how it was


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptionRow:
    """An option of a training."""

    name: str  # as on the command line
    value: str
    default: str
    changed: bool  # whether the value is not the default
    meaning: str  # its help text


def describe_clips(clips: ClipSpec) -> str:
    """Return which frames of a video were read, as in `5 clips of 48 frames, spread evenly over the whole video`."""
    one = "frame" if clips.clip_len == 1 else f"clip of {clips.clip_len} frames"
    several = "frames" if clips.clip_len == 1 else f"clips of {clips.clip_len} frames"
    number = f"{clips.num_clips} {one if clips.num_clips == 1 else several}"
    if clips.sampling == "dense" and clips.clip_len == clips.clip_stride == 1:
        return "all frames of the video"
    if clips.frame_interval > 1:
        number += f", every {_ordinal(clips.frame_interval)} frame inside a clip"
    step = f"one every {counted(clips.clip_stride, 'frame')}" if clips.clip_stride > 1 else "one after the other"
    return {
        "first": f"{number}, {step}, from the start of the video",
        "uniform": f"{number}, spread evenly over the whole video",
        "dense": f"all {several} of the video, {step}",
        "sparse": f"{number}, spread evenly over those that start {step}",
        "segments": f"{number}, one in each of {clips.num_clips} equal parts of the video"
        + ("" if clips.segment_seed is None else f", drawn with seed {clips.segment_seed}"),
    }[clips.sampling]


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def describe_features(spec: FeatureSpec, folds: int = 1) -> list[Fact]:
    """Return how a feature set was made. folds: of the job that read it; what was fitted, was so for each of them."""
    kind, _, which = spec.weights.partition(":")
    place = "folder" if spec.extractor.startswith("hf-") else "file"
    weights = {
        "sha256": f"the {place} whose SHA-256 begins with {which[:12]}",
        "random": f"random, seed {which}: the results mean nothing",
        "none": "none needed",
    }.get(kind, spec.weights)
    streams = {"rgb": "colour frames", "flow": "optical flow", "depth": "depth frames"}
    facts = [
        ("Extractor", f"{spec.extractor}, layer {spec.layer}"),
        ("Reads", streams.get(spec.stream, spec.stream)),
        ("Weights", weights),
        ("Seen of each video", describe_clips(spec.clips)),
        ("Frame rate", "as filmed" if spec.fps is None else f"resampled to {spec.fps:g} frames/s"),
        ("Size of a frame", _resize(spec.resize) + _SCALED_BY.get(spec.resize_method, "")),
    ]
    facts += [("Decoder", spec.decoder)] * (spec.decoder != "pyav")
    facts += [("Optical flow", spec.flow)] * bool(spec.flow)
    facts += [("Preprocessing", _preprocess(spec.preprocess))] * bool(spec.preprocess)
    computed = "" if spec.precision == "exact" else f"computed in {spec.precision}, "
    of = "step" if spec.rows_per_clip == 1 else f"of the {spec.tokens:,} tokens of a clip"
    facts.append(("Numbers", f"{spec.feature_dim:,} for each {of}; {computed}kept as {spec.dtype}"))
    if spec.reduction:
        facts.append(
            (
                "Then",
                f"PCA to {spec.reduction.dim} dimensions, fitted on the training videos of {_split(spec.reduction, folds)}",
            )
        )
    if spec.encoding:
        words = {"fisher": "a Fisher vector of {} Gaussians", "words": "a histogram of {} visual words"}
        said = words.get(spec.encoding.encoding, f"{spec.encoding.encoding} of {{}}").format(spec.encoding.size)
        facts.append(
            ("Then", f"{said} for each video, fitted on the training videos of {_split(spec.encoding, folds)}")
        )
    if spec.trained_on:
        facts.append(("Net trained on", f"the training videos of {_split(spec.trained_on, folds)}"))
    return facts


def _split(fit: Any, folds: int) -> str:
    return f"each of the {folds} folds" if folds > 1 else f"{fit.protocol.replace('_', ' ')}, split {fit.split}"


_SCALED_BY = {"swscale": ", by FFmpeg's scaler", "bilinear": ", bilinear as Pillow", "bicubic": ", bicubic as Pillow"}


def _resize(text: str) -> str:
    """Return a resize mode (see `video.preprocess.parse_resize`) in words; one that is not known stays as it is."""
    found = _RESIZE.fullmatch(text)
    if found is None:
        return text
    scaled, crops = found["scaled"], found["crops"]
    kind, size = _name_and_number(scaled)
    words = {"stretch": f"stretched to {size} pixels", "short": f"the shorter side made {size} pixels"}
    words |= {"fit": f"the whole frame fitted into {size} pixels", "within": f"at most {size} pixels a side"}
    said = words.get(kind, scaled)
    if not crops:
        return said
    crop, size = _name_and_number(crops)
    cut = dict.fromkeys(("center", "middle"), f"the centre of {size} pixels")
    cut |= {"person": f"a window of {size} pixels that follows the person"}
    return f"{said}, then {cut.get(crop, f'{crop} crops of {size} pixels')}"


def _name_and_number(text: str) -> tuple[str, str]:
    name = text.rstrip("0123456789x-")
    return name, text[len(name) :].lstrip("-").replace("x", " x ")


def _preprocess(text: str) -> str:
    """Return how values were scaled: `(value - 127) / 128` for `(x-[127,127,127])/[128,128,128]`."""

    def scaled(found: re.Match[str]) -> str:
        shift, scale = (", ".join(dict.fromkeys(numbers.split(","))) for numbers in found.groups())
        return f"(value - {shift}) / {scale}"

    return _SCALED.sub(scaled, text).replace(";", "; ").replace(" - -", " + ")


def describe_run(runs: Sequence[RunRecord]) -> list[Fact]:
    """Return what was trained, when, on what and how long; of the runs of a job together."""
    first = runs[0].info
    options = first["options"]
    facts = []
    if command := first.get("command"):
        facts.append(("Command", command if isinstance(command, str) else shlex.join(map(str, command))))
    what = "head on stored features" if runs[0].kind == HEAD else "network on raw frames"
    facts.append(("Trained", f"{options.get('head') or options.get('model')}, a {what}"))
    facts.append(("Protocol", _protocol(runs)))
    seeds = sorted({int(run.info["options"].get("seed", 0)) for run in runs})
    facts.append(("Seeds" if len(seeds) > 1 else "Seed", ", ".join(map(str, seeds))))
    summaries = [run.info.get("summary", {}) for run in runs]
    epochs = sorted({int(one["epochs"]) for one in summaries if "epochs" in one})
    if epochs:
        facts.append(("Epochs", str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"))
    if "parameters" in first:
        facts.append(("Parameters", f"{first['parameters']:,}"))
    facts.append(("Trained in", _duration(sum(float(one.get("seconds", 0)) for one in summaries), len(runs))))
    for name, key in (("Started", "started"), ("Finished", "finished")):
        dates = sorted(str(run.info[key]) for run in runs if run.info.get(key))
        if dates:
            facts.append((name, _date(dates[0] if key == "started" else dates[-1])))
    devices = sorted({str(run.info.get("device", "unknown")) for run in runs})
    threads = sorted({str(run.info["threads"]) for run in runs if "threads" in run.info})
    facts.append(("Device", ", ".join(devices) + (f", threads: {', '.join(threads)}" if threads else "")))
    versions: Mapping[str, str] = first.get("versions", {})
    facts.append(("Versions", ", ".join(f"{name} {number}" for name, number in versions.items()) or "not recorded"))
    facts += [("Folder", str(runs[0].path if len(runs) == 1 else _common(runs)))]
    return facts


def _common(runs: Sequence[RunRecord]) -> str:
    parents = {run.path.parent for run in runs}
    return str(min(parents, key=lambda path: len(path.parts)))


def _protocol(runs: Sequence[RunRecord]) -> str:
    splits = {run.split.index: run.split for run in runs}
    protocol = runs[0].split.protocol.replace("_", " ")

    def sizes(part: str) -> str:
        found = sorted({len(getattr(split, part)) for split in splits.values()})
        return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"

    number = counted(len(splits), "fold") if len(splits) > 1 else f"split {runs[0].split.index}"
    return f"{protocol}, {number}: {sizes('train')} training, {sizes('val')} validation, {sizes('test')} test videos"


def _duration(seconds: float, runs: int) -> str:
    said = (
        f"{seconds:.1f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
    return said if runs == 1 else f"{said} for {runs} runs"


def _date(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text


def option_rows(run: RunRecord) -> list[OptionRow]:
    """Return the options of a run, those that differ from their defaults first."""
    kind: Any = TrainConfig if run.kind == HEAD else VideoTrainConfig
    known = options_of(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    options = run.info["options"]
    if run.kind == HEAD:
        # The run has it as it applied; its default is that of the head and the features.
        same = {name: options[name] for name in ("head", "mid_fusion", "fusion_op") if name in options}
        usual = TrainConfig(**same).for_features([stream.spec for stream in run.streams])
        defaults["standardise"] = usual.scales_features
    rows = []
    for name, value in options.items():
        option = known[name][0] if name in known else None
        rows.append(
            OptionRow(
                name=f"--{((option and option.name) or name).replace('_', '-')}",
                value=_value(value),
                default=_value(defaults[name]) if name in defaults else "",
                changed=name in defaults and value != defaults[name],
                meaning=option.help if option else "",
            )
        )
    return sorted(rows, key=lambda row: not row.changed)


def _value(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
