"""Every fusion rule and every run alone on the same test videos: accuracies, paired tests and a verdict."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import write_json
from har_pipeline.core.records import Scores
from har_pipeline.core.text import counted
from har_pipeline.evaluation.fusion import (
    FEW,
    calibrate,
    learned_rule,
    negative_log_likelihood,
    product_rule,
    sum_rule,
    weighted_rule,
)
from har_pipeline.evaluation.members import (
    FUSION_JSON,
    LEARNED_JSON,
    MEMBERS,
    ROW_NAMES,
    FoldSeed,
    Joined,
    Member,
    fold_seed_name,
    join,
    scores_hash,
)
from har_pipeline.evaluation.run_folder import RUN_JSON, SCORES
from har_pipeline.evaluation.scores import write_scores
from har_pipeline.evaluation.statistics import Interval, PairedTest, mcnemar, mean_and_sd, mean_interval
from har_pipeline.evaluation.tables import write_csv

PAPER_WEIGHTS: Mapping[str, float] = {"flow": 1.5, "rgb": 1.0}
SIGNIFICANCE = 0.05
Kind = Literal["run", "rule", "oracle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionRow:
    """One line of the table."""

    name: str  # of the run or rule
    kind: Kind  # `oracle` is right where any run is right: a bound, no classifier
    top1: Interval  # mean over all rows, in [0, 1], with Wilson's 95 % interval for the number of videos
    sd: float | None  # sample standard deviation over repeats; None with one repeat
    nll: float | None  # mean negative log likelihood, nats
    against_best: PairedTest | None  # the best rule (first) against this line (second)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionTable:
    """Accuracies of runs and fusion rules on the same test videos."""

    runs: tuple[str, ...]  # names of the runs
    rows: tuple[FusionRow, ...]  # runs, rules, oracle
    best: str  # the rule with the highest accuracy on these very videos, so its figure is optimistic
    best_run: str  # the run with the highest accuracy
    chosen: str  # the rule whose scores are kept
    verdict: str  # whether the best and the chosen rule beat the best run alone, in words
    num_videos: int  # different test videos
    num_rows: int  # videos times repeats, and folds that test a video again
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    weights: tuple[float, ...] | None  # of the rule `weighted`, one per run
    learned_weights: Mapping[str, Sequence[float]]  # `fold <i> seed <j>` -> one number per run
    temperatures: Mapping[str, Sequence[float]]  # the same
    # Run -> test videos that it lacks in some repeat; they are left out of that fold in all.
    missing: Mapping[str, Sequence[str]]
    notes: tuple[str, ...]  # what a reader must know

    def row(self, name: str) -> FusionRow:
        """Return the line of a run or rule by its name."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the table as a plain nested dict, ready for JSON."""
        return dataclasses.asdict(self)


def fuse(
    members: Sequence[Member],
    *,
    weights: Sequence[float] | None = None,
    learn: bool = False,
    calibrated: bool = False,
    chosen: str = "product",
) -> tuple[FusionTable, Scores]:
    """Return the table of every rule and every run alone on the test rows that all have, and the chosen rule's scores.

    Rules: `sum`, `product`; `weighted` with `weights`, which default to 1.5 for flow and 1 for RGB if the runs are of both
    streams; `learned` with `learn`. calibrated: apply temperature scaling before the rules. Weights and temperatures are
    fitted on validation rows only. Accuracies are means over folds and repeats; repeats are not averaged into an ensemble.
    The p-values are not corrected for multiple tests.
    Raises: RunError as `members.join` does, if a rule has no validation rows, or there is no rule named `chosen`.
    """
    joined = join(members)
    if clash := sorted(set(joined.names) & set(ROW_NAMES)):
        raise RunError(f"a run must not have the name {clash[0]!r} of a line of the table")
    fitted, temperatures = calibrate(joined) if calibrated else (joined, {})
    weights, notes = _weights(members, weights)
    rules, learned = _rules(fitted, weights, learn, chosen)
    tests = joined.rows("test")
    outputs = {**dict(zip(joined.names, fitted.probabilities, strict=True)), **rules}
    right = {name: values[tests].argmax(axis=1) == joined.labels[tests] for name, values in outputs.items()}
    right["oracle"] = np.any([right[name] for name in joined.names], axis=0)
    best, best_run = (max(names, key=lambda name: right[name].sum()) for names in (rules, joined.names))
    alone = {member.name for member in members if len(set(member.scores.seed)) == 1}
    videos = np.unique([joined.keys[row][3] for row in tests], return_inverse=True)[1]
    seeds = np.array([joined.keys[row][2] for row in tests])
    counts = {name: np.bincount(videos, weights=values).astype(np.int64) for name, values in right.items()}
    nll = {name: negative_log_likelihood(values[tests], joined.labels[tests]) for name, values in outputs.items()}
    rows = tuple(
        FusionRow(
            name=name,
            kind="rule" if name in rules else "oracle" if name == "oracle" else "run",
            top1=mean_interval(values, len(counts[name])),
            sd=None if name in alone else mean_and_sd([values[seeds == seed].mean() for seed in np.unique(seeds)])[1],
            nll=nll.get(name),
            against_best=None if name in (best, "oracle") else mcnemar(counts[best], counts[name]),
        )
        for name, values in right.items()
    )
    judged = dict.fromkeys([best, chosen])
    table = FusionTable(
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
        learned_weights={fold_seed_name(*key): values for key, values in learned.items()},
        temperatures={fold_seed_name(*key): values for key, values in temperatures.items()},
        missing=joined.missing["test"],
        notes=(*joined.notes, *notes, *(_few_videos(joined) if calibrated or learn else ())),
    )
    return table, joined.scores(rules[chosen])


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
            f"no rule {chosen!r}; there are: {', '.join(rules)} (`weighted` needs one weight per run, `learned` needs "
            "--learn-weights)"
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
        f"temperatures and learned weights rest on {counts} validation videos a fold: with fewer than {FEW} they are "
        "uncertain and held near 1 and near equal weights"
    ]


def _verdict(rows: Sequence[FusionRow], rule: str, best_run: str, test: PairedTest) -> str:
    """Return whether a rule (the first of the test) beats the best run alone (the second), in words."""
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


def write_fusion(folder: Path, table: FusionTable, scores: Scores, members: Sequence[Member]) -> None:
    """Write fusion.json, fusion.csv (the table), scores.csv, and learned_from.json, which a later fusion checks.

    fusion.json holds the table, and where the members are, relative to the folder: by it `har predict` finds them.
    Raises: RunError if the folder holds a run of `har train`.
    """
    if (folder / RUN_JSON).exists():
        raise RunError(f"{folder} holds a run: choose another folder for the fusion")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FUSION_JSON, {**table.to_dict(), MEMBERS: [_place(member, folder) for member in members]})
    write_scores(folder / SCORES, scores)
    folds = sorted({fold for member in members for fold in member.learned_from})
    learned = {
        str(fold): sorted({video_id for member in members for video_id in member.learned_from.get(fold, ())})
        for fold in folds
    }
    write_json(folder / LEARNED_JSON, learned)
    header = ["name", "kind", "top1", "low_95", "high_95", "sd_repeats", "nll", "best_only", "this_only", "p_value"]
    none = (None, None, None)
    rows = (
        [
            row.name,
            row.kind,
            *dataclasses.astuple(row.top1),
            row.sd,
            row.nll,
            *(dataclasses.astuple(row.against_best) if row.against_best else none),
        ]
        for row in table.rows
    )
    write_csv(folder / "fusion.csv", header, rows)


def _place(member: Member, folder: Path) -> dict[str, Any]:
    """Return where a member is, as fusion.json says it."""
    if member.path is None:
        return {"name": member.name, "path": None, "scores_sha256": None}
    path = os.path.relpath(member.path.resolve(), folder.resolve())
    return {"name": member.name, "path": Path(path).as_posix(), "scores_sha256": scores_hash(member.path)}
