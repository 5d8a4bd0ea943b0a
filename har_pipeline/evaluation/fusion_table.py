"""Every fusion rule and every run alone on the same test videos: accuracies, paired tests, and what they say in words."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import write_json
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.fusion import (
    FEW,
    FoldSeed,
    Joined,
    Member,
    calibrate,
    join,
    learned_rule,
    negative_log_likelihood,
    product_rule,
    sum_rule,
    weighted_rule,
)
from har_pipeline.evaluation.metrics import Interval, PairedTest, counted, mcnemar, wilson_interval
from har_pipeline.evaluation.plan import merge_notes, no_run_error
from har_pipeline.evaluation.run_folder import RUN_JSON, SCORES, read_run
from har_pipeline.evaluation.scores import read_scores, stack_scores, write_scores

PAPER_WEIGHTS: Mapping[str, float] = {"flow": 1.5, "rgb": 1.0}


SIGNIFICANCE = 0.05


ROW_NAMES = ("sum", "product", "weighted", "learned", "oracle")


Kind = Literal["run", "rule", "oracle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionRow:
    """One line of the table; accuracies in [0, 1].

    kind: `run` = one run alone, `rule` = a fusion, `oracle` = right where any run is right: a bound, no classifier.
    top1: mean over all rows with Wilson's 95 % interval for the number of videos; sd: between repeats, None if the run has one.
    nll: mean negative log likelihood, nats. against_best: the best rule (first) against this row (second).
    """

    name: str
    kind: Kind
    top1: Interval
    sd: float | None
    nll: float | None
    against_best: PairedTest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """A fusion table and how it came about.

    num_videos: different test videos; num_rows: those times repeats (and folds that test a video again). best: the rule
    of the highest accuracy on these very videos, so its figure flatters; verdict: whether it beats the best run alone.
    chosen: the rule whose scores are kept. weights: as given; learned_weights, temperatures: per `fold <i> seed <j>`
    one number per run. missing: test videos that a run lacks in some repeat and others have: left out of that fold in all.
    """

    runs: tuple[str, ...]
    rows: tuple[FusionRow, ...]
    best: str
    best_run: str
    chosen: str
    verdict: str
    num_videos: int
    num_rows: int
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    weights: tuple[float, ...] | None
    learned_weights: Mapping[str, Sequence[float]]
    temperatures: Mapping[str, Sequence[float]]
    missing: Mapping[str, Sequence[str]]
    notes: tuple[str, ...]

    def row(self, name: str) -> FusionRow:
        """Return the line of a run or rule by its name."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as a plain nested dict, ready for JSON."""
        return dataclasses.asdict(self)


def fusion_table(
    members: Sequence[Member],
    *,
    weights: Sequence[float] | None = None,
    learn: bool = False,
    calibrated: bool = False,
    chosen: str = "product",
) -> tuple[Fusion, Scores]:
    """Return the table of every rule and every run alone on the test rows that all have, and the chosen rule's scores.

    Rules: sum, product; `weighted` with `weights`, or without them 1.5 for flow and 1 for RGB where the runs are of both
    streams; `learned` with `learn`. calibrated: the rules get probabilities after temperature scaling. Weights and
    temperatures are fitted on validation rows only. Accuracies are means over folds and repeats as they stand; repeats
    are not averaged into an ensemble. The p-values are not corrected for their number.
    Raises: RunError as `fusion.join` does, if a rule has no validation rows, or there is no rule named `chosen`.
    """
    joined = join(members)
    _check_names(joined.names)
    fitted, temperatures = calibrate(joined) if calibrated else (joined, {})
    weights, notes = _weights(members, weights)
    rules, learned = _rules(fitted, weights, learn, chosen)
    tests = joined.rows("test")
    outputs = {**dict(zip(joined.names, fitted.probabilities, strict=True)), **rules}
    right = {name: values[tests].argmax(axis=1) == joined.labels[tests] for name, values in outputs.items()}
    right["oracle"] = np.any([right[name] for name in joined.names], axis=0)
    best, best_run = (max(names, key=lambda name: right[name].sum()) for names in (rules, joined.names))
    videos = np.unique([joined.keys[row][3] for row in tests], return_inverse=True)[1]
    seeds = np.array([joined.keys[row][2] for row in tests])
    counts = {name: np.bincount(videos, weights=values).astype(np.int64) for name, values in right.items()}
    nll = {name: negative_log_likelihood(values[tests], joined.labels[tests]) for name, values in outputs.items()}
    rows = tuple(
        FusionRow(
            name=name,
            kind="rule" if name in rules else "oracle" if name == "oracle" else "run",
            top1=_accuracy(values, len(counts[name])),
            sd=None if name in _of_one_repeat(members) else _repeat_sd(values, seeds),
            nll=nll.get(name),
            against_best=None if name in (best, "oracle") else mcnemar(counts[best], counts[name]),
        )
        for name, values in right.items()
    )
    judged = dict.fromkeys([best, chosen])
    table = Fusion(
        runs=joined.names,
        rows=rows,
        best=best,
        best_run=best_run,
        chosen=chosen,
        verdict=" ".join(_verdict(rows, rule, best_run, mcnemar(counts[rule], counts[best_run])) for rule in judged),
        num_videos=len(counts[best]),
        num_rows=len(tests),
        folds=tuple(sorted({joined.keys[row][1] for row in tests})),
        seeds=tuple(sorted(set(seeds.tolist()))),
        weights=None if weights is None else tuple(weights),
        learned_weights=_by_fold(learned),
        temperatures=_by_fold(temperatures),
        missing=joined.missing["test"],
        notes=(*joined.notes, *notes, *(_few_videos(joined) if calibrated or learn else ())),
    )
    return table, joined.scores(rules[chosen])


def _check_names(names: Sequence[str]) -> None:
    if clash := sorted(set(names) & set(ROW_NAMES)):
        raise RunError(f"a run must not be named {clash[0]!r}, as a line of the table is")


def _rules(
    joined: Joined, weights: Sequence[float] | None, learn: bool, chosen: str
) -> tuple[dict[str, np.ndarray], dict[FoldSeed, list[float]]]:
    rules = {"sum": sum_rule(joined.probabilities), "product": product_rule(joined.probabilities)}
    learned: dict[FoldSeed, list[float]] = {}
    if weights is not None:
        rules["weighted"] = weighted_rule(joined.probabilities, weights)
    if learn:
        rules["learned"], learned = learned_rule(joined)
    if chosen not in rules:
        raise RunError(
            f"there is no rule {chosen!r} here; there are: {', '.join(rules)} (`weighted` needs one weight per run, "
            "`learned` has to be asked for)"
        )
    return rules, learned


def _weights(members: Sequence[Member], weights: Sequence[float] | None) -> tuple[Sequence[float] | None, list[str]]:
    notes = [
        f"{member.name}: it is not known which videos it learned from, so leakage could not be checked"
        for member in members
        if not member.learned_from
    ]
    streams = [member.stream for member in members]
    if weights is None and set(streams) == set(PAPER_WEIGHTS):
        weights = [PAPER_WEIGHTS[stream] for stream in streams]
        notes.append("weighted: no weights were given, so flow counts 1.5 and RGB 1, as in the papers")
    return weights, notes


def _few_videos(joined: Joined) -> list[str]:
    sizes = [len(joined.rows("val", fold_seed)) for fold_seed in joined.fold_seeds()]
    if min(sizes) >= FEW:
        return []
    counts = " to ".join(str(size) for size in sorted({min(sizes), max(sizes)}))
    return [
        f"temperatures and learned weights rest on {counts} validation videos a fold: with fewer than "
        f"{FEW} they are uncertain and held near 1 and near equal weights"
    ]


def _accuracy(right: np.ndarray, num_videos: int) -> Interval:
    # Rounded, because a mean times a count may end a hair above the count.
    return wilson_interval(round(float(right.mean()) * num_videos, 9), num_videos)


def _of_one_repeat(members: Sequence[Member]) -> set[str]:
    return {member.name for member in members if len(set(member.scores.seed)) == 1}


def _repeat_sd(right: np.ndarray, seeds: np.ndarray) -> float | None:
    per_seed = [right[seeds == seed].mean() for seed in np.unique(seeds)]
    return float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None


def _by_fold(values: Mapping[FoldSeed, Sequence[float]]) -> dict[str, Sequence[float]]:
    return {f"fold {fold} seed {seed}": numbers for (fold, seed), numbers in values.items()}


def _verdict(rows: Sequence[FusionRow], rule: str, best_run: str, test: PairedTest) -> str:
    """Say in words whether a rule (the first of the test) beats the best run alone (the second)."""
    top1 = {row.name: row.top1.value for row in rows}
    fused, alone = top1[rule], top1[best_run]
    figures = f"{fused:.1%} against {alone:.1%}"
    if fused <= alone:
        return f"{rule} is no better than the best run alone, {best_run}: {figures}."
    gained = f"{counted(test.first_only, 'video')} gained, {test.second_only} lost, {test.describe_p()}"
    if test.p_value >= SIGNIFICANCE:
        return (
            f"{rule} is above the best run alone, {best_run}, on these videos ({figures}; {gained}), "
            "but they are too few to tell that from chance."
        )
    return f"{rule} is better than the best run alone, {best_run}: {figures}; {gained}."


FUSION_JSON, LEARNED_JSON, TABLE_CSV = "fusion.json", "learned_from.json", "fusion.csv"


def run_folders(path: Path) -> list[Path]:
    """Return the folder itself if it is a run, or else the runs one or two levels below it (folds, and repeats)."""
    if (path / RUN_JSON).is_file():
        return [path]
    found = [file.parent for pattern in (f"*/{RUN_JSON}", f"*/*/{RUN_JSON}") for file in path.glob(pattern)]
    # Names that begin with a dot are runs in the making.
    return sorted(folder for folder in found if not any(p.startswith(".") for p in folder.relative_to(path).parts))


def load_members(paths: Sequence[Path]) -> list[Member]:
    """Return the runs of several paths, named by as much of the ends of their paths as tells them apart.

    Raises: RunError as `load_member` does, or if a path is given twice.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise RunError("the same run is given twice")
    return [load_member(path, _name(own, resolved)) for path, own in zip(paths, resolved, strict=True)]


def _name(path: Path, others: Sequence[Path]) -> str:
    """Return the shortest end of a path that no other has and that is no line of a fusion's table."""
    for depth in range(1, len(path.parts)):
        parts = path.parts[-depth:]
        name = "/".join(parts)
        if name not in ROW_NAMES and not any(other != path and other.parts[-depth:] == parts for other in others):
            return name
    return str(path)


def load_member(path: Path, name: str) -> Member:
    """Return a run with all its folds and repeats, ready to be fused.

    path: a run folder, a folder of folds or repeats, a folder that `har fuse` wrote, or one that holds a scores.csv.
    Raises: RunError if it is none of these, or the classes differ between folds.
    """
    runs = [read_run(folder) for folder in run_folders(path)]
    if not runs:
        if not (path / SCORES).is_file():
            raise no_run_error(path)
        return Member(name=name, scores=read_scores(path / SCORES), learned_from=_read_learned(path / LEARNED_JSON))
    learned: dict[int, frozenset[str]] = {}
    for run in runs:
        ids = frozenset(run.split.train) | frozenset(run.split.val)
        learned[run.split.index] = learned.get(run.split.index, frozenset()) | ids
    # A run of mid fusion is of no single stream, such as `rgb+flow`.
    streams = {"+".join(stream.spec.stream for stream in run.streams) for run in runs}
    try:
        scores = stack_scores([run.scores() for run in runs])
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    stream = min(streams) if len(streams) == 1 else ""
    notes = merge_notes({str(run.path.relative_to(path)): run.notes for run in runs})
    return Member(name=name, scores=scores, learned_from=learned, stream=stream, notes=tuple(notes))


def write_fusion(folder: Path, table: Fusion, scores: Scores, members: Sequence[Member]) -> None:
    """Write fusion.json, fusion.csv (the table), scores.csv and learned_from.json, which a later fusion checks.

    Raises: RunError if the folder holds a run of `har train`.
    """
    if (folder / RUN_JSON).exists():
        raise RunError(f"{folder} holds a run: choose another folder for the fusion")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FUSION_JSON, table.to_dict())
    write_scores(folder / SCORES, scores)
    folds = sorted({fold for member in members for fold in member.learned_from})
    learned = {
        str(fold): sorted(frozenset().union(*(member.learned_from.get(fold, frozenset()) for member in members)))
        for fold in folds
    }
    write_json(folder / LEARNED_JSON, learned)
    with open(folder / TABLE_CSV, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["name", "kind", "top1", "low_95", "high_95", "sd_repeats", "nll", "best_only", "this_only", "p_value"]
        )
        for row in table.rows:
            test = dataclasses.astuple(row.against_best) if row.against_best else ("", "", "")
            blank = ["" if value is None else value for value in (row.sd, row.nll)]
            writer.writerow([row.name, row.kind, *dataclasses.astuple(row.top1), *blank, *test])


def _read_learned(path: Path) -> dict[int, frozenset[str]]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {int(fold): frozenset(ids) for fold, ids in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: malformed ({error}); fuse again") from error
