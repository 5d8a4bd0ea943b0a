"""What the page shows, collected from runs, jobs, fusions and sweeps as plain values.

Numbers come from `evaluation`; here they are chosen and put beside one another. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline import __version__
from har_pipeline.core.errors import HarError, RunError, StoreError
from har_pipeline.core.files import read_json
from har_pipeline.core.objects import StorePath, store_path
from har_pipeline.core.records import FeatureSpec, Moments, Scores, VideoRecord
from har_pipeline.core.text import counted
from har_pipeline.datasets.manifests import read_manifest
from har_pipeline.evaluation.calibration import Reliability, reliability
from har_pipeline.evaluation.categories import Grouping, GroupResult
from har_pipeline.evaluation.compare import Comparison, compare_members
from har_pipeline.evaluation.evaluate import Evaluation, evaluate
from har_pipeline.evaluation.members import FUSION_JSON, Member, load_members, run_folders
from har_pipeline.evaluation.metrics import ClassResult
from har_pipeline.evaluation.run_folder import RunRecord, read_run
from har_pipeline.evaluation.scores import predicted_classes, select_part
from har_pipeline.evaluation.statistics import Interval, mean_interval
from har_pipeline.features.store import FeatureStore
from har_pipeline.report.gallery import Shown, chosen_rows, shown_videos
from har_pipeline.report.words import Fact, OptionRow, describe_features, describe_run, option_rows
from har_pipeline.training.sweep_table import SUMMARY, Choice, PointSummary, read_sweep

TIMING = "timing.json"  # of `har evaluate --time`

# Of a run and some of its videos: video -> its moments. Raises HarError with the reason if there are none.
ReadMoments = Callable[[RunRecord, Sequence[str]], Mapping[str, Moments]]

LENGTH_BINS = 8
CONFUSED = 25
LISTED_VIDEOS = 1000
CURVE_POINTS = 150  # epochs of a curve; longer ones are thinned out
GALLERY_OF_ONE, GALLERY_OF_SEVERAL = 24, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A headline number, in [0, 1] unless it has no interval."""

    name: str
    value: float
    interval: Interval | None = None
    said: str = ""  # what a reader must know of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Confused:
    """Videos of one class that were taken for another."""

    label: str
    said: str
    rows: int
    share: float  # of the true class's rows


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBin:
    """The accuracy on videos of `low` to `high` frames."""

    low: int
    high: int
    videos: int
    accuracy: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A measure of one epoch: the mean over the runs of a job, and their range."""

    epoch: int
    part: str  # `training` or `validation`
    measure: str  # `loss`, `accuracy` or `learning rate`
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRow:
    """A test video, what it was taken for, and how sure the run was."""

    video_id: str
    label: str
    said: str
    probability: float
    right: bool
    fold: int
    frames: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A fold or a repeat."""

    name: str
    videos: int | None
    top1: float
    interval: Interval | None
    mean_class: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """What a store tells of a feature set."""

    feature_set: str
    videos: int
    failed: Mapping[str, str]  # video -> reason
    notes: Mapping[str, tuple[str, ...]]  # video -> what was wrong with its file
    facts: Sequence[Fact]  # throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run, job or fusion."""

    name: str
    kind: str  # `run`, `folds`, `repeats` or `fusion`
    headline: Sequence[Figure]
    top1: float  # what results are ordered by, in [0, 1]
    videos: int  # different test videos
    repeats: int
    classes: Sequence[str]  # in the order of the matrix
    spans: Sequence[tuple[str, int, int]]  # (group, first class, end)
    confusion: np.ndarray  # (K, K) int64, rows true classes, summed over repeats and folds
    per_class: Sequence[ClassResult]
    per_group: Sequence[GroupResult]
    confused: Sequence[Confused]
    parts: Sequence[Part]
    reliability: Reliability
    lengths: Sequence[LengthBin]
    curves: Sequence[CurvePoint]
    features: Sequence[tuple[str, Sequence[Fact]]]  # feature set, how it was made
    facts: Sequence[Fact]  # what was run
    options: Sequence[OptionRow]
    extraction: Sequence[Extraction]
    listed: Sequence[VideoRow]  # mistakes first
    unlisted: int  # videos beyond those
    gallery: Sequence[Shown]
    moments: Mapping[
        str, Moments
    ]  # video of the gallery -> its class probabilities as it goes on, classes as in the scores
    score_classes: Sequence[str]  # of `moments`
    notes: Sequence[str]
    absent: Mapping[str, str]  # what the page leaves out -> why


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionResult:
    """The table of a fusion folder, as `fusion.json` has it."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    best: str
    chosen: str
    verdict: str
    notes: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep's points, and those that the validation videos of each split chose; none without validation videos."""

    name: str
    points: Sequence[PointSummary]
    choices: Sequence[Choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that the page shows."""

    title: str
    lead: str
    made: str  # date and time
    version: str
    part: str
    results: Sequence[Result]  # in the order given
    comparisons: Sequence[Comparison]  # of each pair
    uncompared: Sequence[Fact]  # the others: both names, and why not
    left_out: Sequence[Fact]  # runs without videos of the part, such as final models: name, and why
    fusions: Sequence[FusionResult]
    sweeps: Sequence[Sweep]

    def to_dict(self) -> dict[str, Any]:
        """Return all but the pictures as a plain nested dict, ready for JSON."""
        values = dataclasses.asdict(self)
        for result in values["results"]:
            for shown in result["gallery"]:
                del shown["strip"], shown["clip"]
        return dict(json.loads(json.dumps(values, default=_plain)))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSources:
    """Where videos and features are, if the runs do not tell it or things were moved."""

    records: Mapping[str, VideoRecord] = dataclasses.field(default_factory=dict)
    store: StorePath | None = None


def collect_results(
    paths: Sequence[Path],
    *,
    title: str = "",
    lead: str = "",
    part: str = "test",
    grouping: Grouping | None = None,
    sources: ReportSources = ReportSources(),
    at_most: int | None = None,
    clips: bool = True,
    on_video: Callable[[str, int, int], None] = lambda name, done, total: None,
    read_moments: ReadMoments | None = None,
) -> Report:
    """Return what the page shows of runs, jobs, fusions and sweeps.

    at_most: videos of each gallery; by default 24, and 12 where several runs are shown. clips: whether they can be played.
    on_video: called with a result's name, the videos of its gallery that are done, and their total. read_moments: gives the
    class probabilities of the gallery's videos as they go on, such as `inference.moments.moments_of`.
    A run without videos of the part is left out if there is another. Raises: RunError as `evaluate` does, for a path given
    twice, and if there is no path.
    """
    if not paths:
        raise RunError("name a run folder")
    if len({path.resolve() for path in paths}) < len(paths):
        raise RunError("the same run is given twice")
    sweeps = [path for path in paths if (path / SUMMARY).is_file()]
    runs = [path for path in paths if path not in sweeps]
    trained = {path: [read_run(folder) for folder in run_folders(path)] for path in runs}
    runs, left_out = _tested(trained, part)
    members = load_members(runs) if runs else []
    number = at_most if at_most is not None else GALLERY_OF_ONE if len(runs) == 1 else GALLERY_OF_SEVERAL
    known = _known(trained, sources)
    results = [
        _result(
            path,
            member,
            trained[path],
            part,
            grouping,
            known,
            number,
            clips,
            functools.partial(on_video, member.name),
            read_moments,
        )
        for path, member in zip(runs, members, strict=True)
    ]
    comparisons, uncompared = _comparisons(members, part, grouping)
    return Report(
        title=title or ", ".join(path.resolve().name for path in paths[:4]) + " ..." * (len(paths) > 4),
        lead=lead,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        part=part,
        results=results,
        comparisons=comparisons,
        uncompared=uncompared,
        left_out=left_out,
        fusions=[
            _fusion(path, member.name)
            for path, member in zip(runs, members, strict=True)
            if (path / FUSION_JSON).is_file()
        ],
        sweeps=[_sweep(path) for path in sweeps],
    )


def _tested(trained: Mapping[Path, Sequence[RunRecord]], part: str) -> tuple[list[Path], list[Fact]]:
    """Return the paths whose runs have videos of a part, and why the others do not. Raises: RunError if none has."""
    tested, left_out = [], []
    for path, runs in trained.items():
        try:
            for run in runs:
                run.require_part(part)
            tested.append(path)
        except RunError as error:
            if len(trained) == 1:
                raise
            left_out.append((path.name, str(error)))
    if left_out and not tested:
        raise RunError("; ".join(why for _, why in left_out))
    return tested, left_out


def best_result(report: Report) -> Result:
    """Return the result of the highest accuracy; the first of equals."""
    return max(report.results, key=lambda one: one.top1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of videos and features beside the runs."""

    records: Mapping[str, VideoRecord]
    frames: Mapping[str, int]  # video -> frames
    extraction: Mapping[str, Extraction]  # feature set -> what its store tells
    problems: Sequence[str]  # why a manifest or a store could not be read


def _known(trained: Mapping[Path, Sequence[RunRecord]], sources: ReportSources) -> _Known:
    """Read the manifest and the stores of all runs; a fusion has its videos from the runs beside it."""
    records, problems = dict(sources.records), dict[str, None]()
    frames: dict[str, int] = {}
    extraction: dict[str, Extraction] = {}
    for runs in trained.values():
        if runs and not sources.records:
            records |= _records(runs[0], problems)
        for name in _feature_sets(runs):
            path = sources.store or (store_path(runs[0].info["store"]) if runs[0].info.get("store") else None)
            if path is None or name in extraction:
                continue
            try:
                store = FeatureStore(path)
                if name not in store.feature_sets():
                    raise StoreError(f"{path} has no {name}")
                frames |= store.num_frames(name)
                extraction[name] = _extraction(store, name)
            except HarError as error:
                problems[str(error)] = None
    for record in records.values():
        if record.end_frame:
            frames.setdefault(record.video_id, record.end_frame - record.start_frame)
    return _Known(records=records, frames=frames, extraction=extraction, problems=list(problems))


def _result(
    path: Path,
    member: Member,
    runs: Sequence[RunRecord],
    part: str,
    grouping: Grouping | None,
    known: _Known,
    at_most: int,
    clips: bool,
    on_video: Callable[[int, int], None],
    read_moments: ReadMoments | None,
) -> Result:
    found = evaluate(path, part=part, grouping=grouping, write=False)
    scores = select_part(member.scores, part)
    first = _one_repeat(scores)
    absent: dict[str, str] = {}
    features = _feature_sets(runs)
    frames, records = known.frames, known.records
    order = grouping.order(scores.classes) if grouping else list(range(len(scores.classes)))
    classes = [scores.classes[k] for k in order]
    confusion = _confusion(found)[np.ix_(order, order)]
    lengths = _lengths(scores, frames)
    if not lengths:
        absent["Accuracy against the length of the video"] = (
            "no run, store or manifest tells the lengths: name the store with --store"
            if not frames
            else "all videos whose length is known are equally long"
        )
    if not runs:
        absent["What was run"] = "a fusion remembers its scores only: give its runs beside it"
    curves = _curves(runs)
    if runs and not curves:
        absent["Learning curves"] = "the head was fitted in one step"
    moments = _moments(runs, scores, at_most, read_moments, absent)
    if not records:
        absent["Pictures of videos"] = "no manifest was found: name it with --manifest"
    extraction = [known.extraction[name] for name in features if name in known.extraction]
    if runs and not extraction:
        why = "; ".join(known.problems) or "the run does not say where its feature store is"
        absent["Extraction"] = f"{why}: name the store with --store"
    listed = _listed(first, frames)
    return Result(
        name=member.name,
        kind="fusion" if not runs else found.kind,
        headline=_headline(found),
        top1=(found.top1.value if found.top1 else found.mean_top1),
        videos=len(set(scores.video_ids)),
        repeats=len(set(scores.seed)),
        classes=classes,
        spans=tuple(grouping.spans(classes)) if grouping else (),
        confusion=confusion,
        per_class=_per_class(found, confusion, classes, scores),
        per_group=found.per_group,
        confused=_confused(confusion, classes),
        parts=_parts(found),
        reliability=reliability(scores),
        lengths=lengths,
        curves=curves,
        features=[(name, describe_features(spec, len(runs))) for name, spec in features.items()],
        facts=[*describe_run(runs), *_speed(path)] if runs else [],
        options=option_rows(runs[0]) if runs else [],
        extraction=extraction,
        listed=listed[:LISTED_VIDEOS],
        unlisted=max(0, len(listed) - LISTED_VIDEOS),
        # Without a manifest it is said once.
        gallery=[
            shown if records else dataclasses.replace(shown, problem="")
            for shown in shown_videos(
                scores, records, at_most=at_most, clips=clips, grouping=grouping, on_video=on_video
            )
        ],
        moments=moments,
        score_classes=scores.classes,
        notes=found.notes,
        absent=absent,
    )


def _moments(
    runs: Sequence[RunRecord], scores: Scores, at_most: int, read: ReadMoments | None, absent: dict[str, str]
) -> dict[str, Moments]:
    """Return the moments of the gallery's videos, each by the run whose row is shown; why not stands in `absent`."""
    what = "Class probabilities over time"
    if not runs or read is None:
        absent[what] = "a fusion has those of whole videos only" if not runs else "runs keep those of whole videos"
        return {}
    by_fold = {(run.split.index, run.info["options"].get("seed", 0)): run for run in runs}
    of_run: dict[tuple[int, int], list[str]] = {}
    for row in chosen_rows(scores, at_most=at_most):
        of_run.setdefault((scores.fold[row], scores.seed[row]), []).append(scores.video_ids[row])
    found: dict[str, Moments] = {}
    for key, ids in of_run.items():
        try:
            found |= read(by_fold[key], ids)
        except HarError as error:
            absent[what] = str(error)
    return found


def _one_repeat(scores: Scores) -> Scores:
    """Return each video once: of the first repeat, and of the first fold that tests it."""
    seen: dict[str, int] = {}
    for row in sorted(range(len(scores.video_ids)), key=lambda row: (scores.seed[row], scores.fold[row])):
        seen.setdefault(scores.video_ids[row], row)
    return scores.select(sorted(seen.values()))


def _leaves(found: Evaluation) -> list[Evaluation]:
    if found.measures is not None or not found.members:
        return [found]
    return [leaf for member in found.members.values() for leaf in _leaves(member)]


def _confusion(found: Evaluation) -> np.ndarray:
    matrices = [leaf.measures.confusion for leaf in _leaves(found) if leaf.measures is not None]
    return np.sum(matrices, axis=0)


def _headline(found: Evaluation) -> list[Figure]:
    measures = found.measures
    if measures is not None:
        figures = [Figure(name="Video accuracy", value=measures.top1.value, interval=measures.top1)]
        if measures.top5 is not None:
            figures.append(Figure(name="Among the five best", value=measures.top5.value, interval=measures.top5))
        figures.append(
            Figure(name="Mean class accuracy", value=measures.mean_class.value, interval=measures.mean_class)
        )
        if found.members:
            sd = "" if found.sd_top1 is None else f"standard deviation {100 * found.sd_top1:.1f} points"
            figures.append(Figure(name=f"Mean over {len(found.members)} folds", value=found.mean_top1, said=sd))
        return figures
    one = {"folds": "folds", "repeats": "repeats"}[found.kind]
    sd = "" if found.sd_top1 is None else f"standard deviation {100 * found.sd_top1:.1f} points"
    said = f"mean over {len(found.members)} {one}{', ' if sd else ''}{sd}"
    figures = [Figure(name="Video accuracy", value=found.mean_top1, interval=found.top1, said=said)]
    figures.append(Figure(name="Mean class accuracy", value=found.mean_class, said=f"mean over the {one}"))
    if found.pooled_top1 is not None:
        figures.append(Figure(name="All folds of a repeat pooled", value=found.pooled_top1))
    return figures


def _per_class(found: Evaluation, confusion: np.ndarray, classes: Sequence[str], scores: Scores) -> list[ClassResult]:
    """Return the results of the classes in order; of repeats and folds that share videos over all of their rows."""
    if found.measures is not None:
        by_label = {one.label: one for one in found.measures.per_class}
        return [by_label[label] for label in classes]
    of_class: dict[str, set[str]] = {}
    for video_id, label in zip(scores.video_ids, scores.labels, strict=True):
        of_class.setdefault(label, set()).add(video_id)
    videos = {label: len(of_class.get(label, ())) for label in classes}
    results = []
    for k, label in enumerate(classes):
        rows, right, said = int(confusion[k].sum()), int(confusion[k, k]), int(confusion[:, k].sum())
        wrong = np.where(np.arange(len(classes)) == k, 0, confusion[k])
        other = int(wrong.argmax())
        results.append(
            ClassResult(
                label=label,
                videos=videos[label],
                correct=right,
                # Repeats on the same videos add no certainty.
                accuracy=mean_interval([right / rows], videos[label]) if rows else None,
                precision=right / said if said else None,
                confused_with=classes[other] if wrong[other] else None,
                confused_videos=int(wrong[other]),
            )
        )
    return results


def _confused(confusion: np.ndarray, classes: Sequence[str]) -> list[Confused]:
    pairs = [(int(confusion[t, s]), t, s) for t, s in np.argwhere(confusion > 0).tolist() if t != s]
    totals = confusion.sum(axis=1)
    return [
        Confused(label=classes[t], said=classes[s], rows=rows, share=rows / int(totals[t]))
        for rows, t, s in sorted(pairs, key=lambda one: (-one[0], -one[0] / totals[one[1]], one[1:]))[:CONFUSED]
    ]


def _parts(found: Evaluation) -> list[Part]:
    one = {"folds": "fold", "repeats": "seed"}.get(found.kind, "")
    return [
        Part(
            name=f"{one} {number}",
            videos=member.measures.num_videos if member.measures else None,
            top1=member.top1.value if member.top1 else member.mean_top1,
            interval=member.top1,
            mean_class=member.measures.mean_class.value if member.measures else member.mean_class,
        )
        for number, member in found.members.items()
    ]


def _lengths(scores: Scores, frames: Mapping[str, int]) -> list[LengthBin]:
    """Return the accuracy on videos of like length, about as many in each bin; empty if lengths are unknown or all equal."""
    rows = [row for row, video_id in enumerate(scores.video_ids) if video_id in frames]
    lengths = np.array([frames[scores.video_ids[row]] for row in rows], np.int64)
    if not rows or lengths.min() == lengths.max():
        return []
    said = predicted_classes(scores)
    right = np.array([said[row] == scores.labels[row] for row in rows])
    number = max(2, min(LENGTH_BINS, len(set(scores.video_ids)) // 6))
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, number + 1), method="nearest"))
    place = np.minimum(np.searchsorted(edges, lengths, side="right") - 1, len(edges) - 2)
    bins = []
    for k in range(len(edges) - 1):
        own = place == k
        if own.any():
            videos = len({scores.video_ids[rows[n]] for n in np.flatnonzero(own)})
            accuracy = mean_interval(right[own], videos)
            bins.append(
                LengthBin(low=int(lengths[own].min()), high=int(lengths[own].max()), videos=videos, accuracy=accuracy)
            )
    return bins


def _curves(runs: Sequence[RunRecord]) -> list[CurvePoint]:
    """Return mean and range of each measure over the runs, for each epoch that a run has; empty with a single epoch."""
    columns = {
        ("training", "loss"): "train_loss",
        ("training", "accuracy"): "train_accuracy",
        ("validation", "loss"): "val_loss",
        ("validation", "accuracy"): "val_accuracy",
        ("training", "learning rate"): "learning_rate",
    }
    histories = [run.history() for run in runs]
    last = max((len(history["epoch"]) for history in histories), default=0)
    if last < 2:
        return []
    epochs = np.unique(np.linspace(1, last, min(last, CURVE_POINTS)).round().astype(int))
    points = []
    for (part, measure), column in columns.items():
        for epoch in epochs.tolist():
            cells = [history.get(column, [])[epoch - 1 : epoch] for history in histories]
            values = [value for cell in cells for value in cell if value is not None]
            if values:
                mean, low, high = float(np.mean(values)), min(values), max(values)
                points.append(CurvePoint(epoch=epoch, part=part, measure=measure, mean=mean, low=low, high=high))
    return points


def _listed(scores: Scores, frames: Mapping[str, int]) -> list[VideoRow]:
    rows = [
        VideoRow(
            video_id=video_id,
            label=label,
            said=said,
            probability=float(own.max()),
            right=said == label,
            fold=fold,
            frames=frames.get(video_id),
        )
        for video_id, label, own, said, fold in zip(
            scores.video_ids, scores.labels, scores.probabilities, predicted_classes(scores), scores.fold, strict=True
        )
    ]
    return sorted(rows, key=lambda row: (row.right, -row.probability))


def _feature_sets(runs: Sequence[RunRecord]) -> dict[str, FeatureSpec]:
    """Return the feature sets of the first run, by name: those of the other folds differ in what was fitted only."""
    return {stream.feature_set: stream.spec for stream in runs[0].streams} if runs else {}


def _records(run: RunRecord, problems: dict[str, None]) -> dict[str, VideoRecord]:
    """Return the manifest's rows if the run tells where it is and it can be read."""
    path, root = run.info.get("manifest"), run.info.get("root")
    if not path:
        return {}
    try:
        found = read_manifest(Path(path), root=Path(root) if root else None, check_files=False)
    except HarError as error:
        problems[str(error)] = None
        return {}
    return {record.video_id: record for record in found}


def _extraction(store: FeatureStore, feature_set: str) -> Extraction:
    ids = store.video_ids(feature_set)
    notes = store.decode_notes(feature_set)
    steps = sum(store.num_clips(feature_set).values())
    frames = sum(store.num_frames(feature_set).values())
    facts = [("Stored", f"{counted(len(ids), 'video')}, {steps:,} steps, of files of {frames:,} frames together")]
    times = sorted(datetime.fromisoformat(text) for text in store.written(feature_set).values())
    seconds = (times[-1] - times[0]).total_seconds() if len(times) > 1 else 0.0
    if seconds > 0:
        rate = (len(times) - 1) / seconds
        facts.append(
            (
                "Throughput",
                f"{rate:.3g} videos/s: {seconds:.0f} s from the first to the last video stored, pauses included "
                f"({times[0]:%Y-%m-%d %H:%M} UTC)",
            )
        )
    if ids:
        made = store.read(feature_set, ids[0]).provenance
        facts.append(("Made with", ", ".join(f"{name} {value}" for name, value in made.items())))
    return Extraction(
        feature_set=feature_set, videos=len(ids), failed=store.failures(feature_set), notes=notes, facts=facts
    )


def _speed(path: Path) -> list[Fact]:
    """Return what `har evaluate --time` measured, if it did."""
    if not (path / TIMING).is_file():
        return []
    found = read_json(path / TIMING, RunError, "measure again with `har evaluate --time`")
    try:
        whole, network, videos = float(found["whole_s"]), float(found["network_s"]), int(found["videos"])
        said = f"{whole:.3g} s a video from the file, {network:.3g} s of the network alone"
        return [("Speed", f"{said}: means over {counted(videos, 'video')}, one at a time, {found['device']}")]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path / TIMING}: malformed ({error!r}); measure again with `har evaluate --time`") from error


def _comparisons(
    members: Sequence[Member], part: str, grouping: Grouping | None
) -> tuple[list[Comparison], list[Fact]]:
    """Return the comparison of each pair, and why others cannot be compared."""
    found, not_found = [], []
    for place, first in enumerate(members):
        for second in members[place + 1 :]:
            try:
                found.append(compare_members(first, second, grouping=grouping, part=part))
            except HarError as error:
                not_found.append((f"{first.name}, {second.name}", str(error)))
    return found, not_found


def _sweep(path: Path) -> Sweep:
    points, choices = read_sweep(path)
    return Sweep(name=path.resolve().name, points=points, choices=choices)


def _fusion(path: Path, name: str) -> FusionResult:
    values = read_json(path / FUSION_JSON, RunError, "fuse again with `har fuse`")
    try:
        return FusionResult(
            name=name,
            rows=[dict(row) for row in values["rows"]],
            best=values["best"],
            chosen=values["chosen"],
            verdict=values["verdict"],
            notes=values["notes"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path / FUSION_JSON}: malformed ({error!r}); fuse again with `har fuse`") from error
