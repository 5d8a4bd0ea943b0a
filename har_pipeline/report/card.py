"""A model card: what a trained run is, reads, was made of, can do and cannot do, as plain Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from har_pipeline import __version__
from har_pipeline.core.records import FeatureSpec
from har_pipeline.core.text import counted
from har_pipeline.datasets.protocols import PROTOCOLS
from har_pipeline.evaluation.evaluate import Evaluation, evaluate
from har_pipeline.evaluation.members import run_folders
from har_pipeline.evaluation.plan import merge_notes, no_run_error
from har_pipeline.evaluation.run_folder import HEAD, RunRecord, read_run, recover_run
from har_pipeline.models.net_names import in_family, net_rows
from har_pipeline.report.words import Fact, describe_features, describe_run, option_rows

# Fewer videos than these, of a class in training or of all in the test, are told of.
FEW_TRAINING, FEW_TESTED = 10, 100
# What Markdown would take for its own.
_MARKS = re.compile(r"([\\`*\[\]<>|#~]|(?<!\w)_|_(?!\w))")


def model_card(path: Path | str) -> str:
    """Return the card of a run, or of a job of folds or repeats, as Markdown; every name in it is shown as text.

    Its results are those of `evaluate` on the test part; nothing is written, and no weights are read.
    Raises: RunError as `evaluate` and `read_run`.
    """
    path = Path(path)
    recover_run(path)
    runs = [read_run(folder) for folder in run_folders(path)]
    if not runs:
        raise no_run_error(path)
    tested = any(run.split.test for run in runs)
    found = evaluate(path, write=False) if tested else None
    sections = {
        "Intended use": _use(runs[0]),
        "Classes": [", ".join(_text(label) for label in sorted(runs[0].classes)) + "."],
        "Training data": list(_data(runs)),
        "Results": list(_results(found)),
        "How the features were made": list(_features(runs)),
        "How it was trained": list(_training(runs)),
        "Limits": [f"- {_text(line)}" for line in _limits(runs, found)],
        "How to use it": _commands(path, runs),
    }
    lines = [f"# {_text(_title(runs[0]))}", "", _text(_summary(runs, found)), ""]
    for title, body in sections.items():
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


def _text(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(_text(cell) for cell in row)} |"


def _model(run: RunRecord) -> str:
    return str(run.info["options"].get("head") or run.info["options"].get("model"))


def _title(run: RunRecord) -> str:
    sources = " and ".join(dict.fromkeys(f"{one.spec.extractor} ({one.spec.stream})" for one in run.streams))
    what = f"{_model(run)} on {sources}" if run.kind == HEAD else f"{_model(run)} on raw frames ({run.spec.stream})"
    return f"Action recognition, {len(run.classes)} classes: {what}"


def _summary(runs: Sequence[RunRecord], found: Evaluation | None) -> str:
    kind = "a head on stored features of a video" if runs[0].kind == HEAD else "a network on the frames of a video"
    said = f"It names the action that a short video shows: one of {len(runs[0].classes)} classes, with a probability for each. "
    said += f"{_model(runs[0])} is {kind}, trained with har_pipeline"
    if len(runs) > 1:
        said += (
            f"; the card is of {len(runs)} runs of one job, which differ in what they were trained on or in their seed"
        )
    if found is None:
        return f"{said}. Its accuracy was not measured."
    return f"{said}. Video accuracy: {_accuracy(found)}."


def _accuracy(found: Evaluation) -> str:
    if found.top1 is not None:
        return f"{found.top1.describe()}, 95 % interval in parentheses"
    return f"{_percent(found.mean_top1)}, the mean over {counted(len(found.members), 'run')}"


def _use(run: RunRecord) -> list[str]:
    files = "depth videos" if run.spec.stream == "depth" else "colour videos"
    lines = [f"Input: {files}, cut so that each shows one action. Of each video it sees:", ""]
    for one in run.streams:
        facts = dict(describe_features(one.spec))
        wanted = ("Reads", "Seen of each video", "Frame rate", "Size of a frame", "Optical flow", "Preprocessing")
        lines += [f"- {name}: {_text(facts[name])}" for name in wanted if name in facts]
    return [
        *lines,
        "",
        "It is meant for videos like those that it was trained on: the same actions, a similar view, one action at a time. It "
        "always names one of its classes, also for a video that shows none of them. It was not made for decisions on people.",
    ]


def _data(runs: Sequence[RunRecord]) -> Iterator[str]:
    split = runs[0].split
    yield from _list([fact for fact in describe_run(runs) if fact[0] == "Protocol"])
    if split.test and split.protocol in PROTOCOLS:
        kinds = {"subject": "person", "group": "group (such as a scene)", "group of class": "group of a class"}
        apart = [kinds[name] for name in PROTOCOLS[split.protocol].test_apart if name in kinds]
        if apart:
            yield f"- Held out: no {' and no '.join(apart)} is in both training and test, where the manifest names them"
    names = dict.fromkeys(Path(text).name for run in runs if (text := run.info.get("manifest")))
    if names:
        yield f"- Manifest: {_text(', '.join(names))}"
    if hashes := dict.fromkeys(str(run.info.get("manifest_sha256", "")) for run in runs):
        yield f"- SHA-256 of the manifest: {_text(', '.join(filter(None, hashes)) or 'not recorded')}"


def _list(facts: Sequence[Fact]) -> Iterator[str]:
    for name, text in facts:
        yield f"- {name}: {_text(text)}"


def _results(found: Evaluation | None) -> Iterator[str]:
    if found is None:
        yield "None: it was trained on all videos, so that none was left to test it. Its accuracy is not known."
        return
    yield "On test videos, 95 % intervals in parentheses."
    yield ""
    yield f"- Video accuracy: {found.top1.describe() if found.top1 else _accuracy(found)}"
    measures = found.measures
    if found.kind != "run":
        spread = f", standard deviation {_percent(found.sd_top1)}" if found.sd_top1 is not None else ""
        yield f"- Mean over the {len(found.members)} {found.kind}: {_percent(found.mean_top1)}{spread}"
    if measures is None:
        return
    if measures.top5 is not None:
        yield f"- Among the five most probable: {measures.top5.describe()}"
    yield f"- Mean of the classes' accuracies: {measures.mean_class.describe()}"
    yield f"- Test videos: {measures.num_videos:,}"
    yield ""
    rows = [
        (
            one.label,
            str(one.videos),
            one.accuracy.describe() if one.accuracy else "not tested",
            _percent(one.precision) if one.precision is not None else "never predicted",
            f"{one.confused_with} ({one.confused_videos})" if one.confused_with else "",
        )
        for one in measures.per_class
    ]
    yield from _table(
        ("class", "test videos", "found (recall)", "right when named (precision)", "most often taken for"), rows
    )


def _features(runs: Sequence[RunRecord]) -> Iterator[str]:
    folds = len({run.split.index for run in runs})
    for number, one in enumerate(runs[0].streams, start=1):
        if len(runs[0].streams) > 1:
            yield from ("", f"Stream {number}:", "")
        yield from _list(describe_features(one.spec, folds))
        if licence := _licence(one.spec):
            yield f"- Licence of the weights: {_text(licence)}"


def _licence(spec: FeatureSpec) -> str:
    """Return the licence of a net's weights, or of all that they may be where no hash is published; empty: no weights."""
    digits = spec.weights.removeprefix("sha256:")
    if digits == spec.weights:
        return ""
    if in_family(spec.extractor) is not None:
        return "not recorded: it stands on the page of the weights, of a model of timm or transformers"
    rows = [row for row in net_rows() if row["net"] == spec.extractor and row["stream"] == spec.stream]
    known = [row for row in rows if row["sha256"] and digits.startswith(row["sha256"])]
    if known:
        return f"{known[0]['licence']}; trained on {known[0]['trained_on']}"
    unhashed = dict.fromkeys(row["licence"] for row in rows if not row["sha256"])
    if not unhashed:
        return "unknown: they are none of the published weights"
    return f"{'; or '.join(unhashed)}, if they are published ones, whose hash is not known"


def _training(runs: Sequence[RunRecord]) -> Iterator[str]:
    yield from _list([fact for fact in describe_run(runs) if fact[0] not in ("Protocol", "Folder")])
    changed = [(row.name, row.value, row.default) for row in option_rows(runs[0]) if row.changed]
    if changed:
        yield from ("", "Options that are not the defaults:", "")
        yield from _table(("option", "value", "default"), changed)


def _limits(runs: Sequence[RunRecord], found: Evaluation | None) -> Iterator[str]:
    if any(run.random_weights for run in runs):
        yield "The net that makes the features has random weights: the predictions mean nothing."
    if found is None:
        yield "It has no test part: how often it is right is not known."
    fewest = min(len(run.split.train) / len(run.classes) for run in runs)
    if fewest < FEW_TRAINING:
        yield f"It learned from few videos: {fewest:.1f} of a class on average."
    measures = found.measures if found else None
    if measures is not None and measures.num_videos < FEW_TESTED:
        yield f"It was tested on {counted(measures.num_videos, 'video')} only: mind the intervals."
    if measures is not None and (untested := [one.label for one in measures.per_class if not one.videos]):
        yield f"No test video shows {', '.join(untested)}."
    if any(run.split.protocol == "column" for run in runs):
        yield "The split is the manifest's own: whether people are in training and test is not checked by the protocol."
    yield "Test videos come from the data set of the training: other cameras, places and people may be harder."
    yield "Intervals take videos as independent; for clips cut from one recording they are too narrow."
    yield from found.notes if found else merge_notes({run.path.name: run.notes for run in runs})


def _commands(path: Path, runs: Sequence[RunRecord]) -> list[str]:
    name = path.absolute().name
    lines = ["```sh", f"pip install har-pipeline=={runs[0].info.get('versions', {}).get('har-pipeline', __version__)}"]
    video = "depth_folder" if runs[0].spec.stream == "depth" else "video.mp4"
    lines += [f"har predict {video} --run {name}", f"har evaluate {name}", "```"]
    code = ["```python", "from pathlib import Path", "", "from har_pipeline import predict", ""]
    code += [f'for found in predict([Path("{video}")], "{name}"):', "    print(found.error or found.top)", "```"]
    return [*lines, "", *code]
