"""Runs side by side: each with its scores of all folds and repeats, and the rows that all of them have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import RunError, first_few
from har_pipeline.core.files import file_sha256
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.plan import merge_notes, no_run_error, require_one_job
from har_pipeline.evaluation.run_folder import RUN_JSON, SCORES, json_sha256, read_run, recover_run
from har_pipeline.evaluation.scores import read_scores, stack_scores

# Written by `fusion_table.write_fusion`.
FUSION_JSON, LEARNED_JSON = "fusion.json", "learned_from.json"
MEMBERS = "members"  # the entry of fusion.json that says where the runs are
PARTS = ("val", "test")

# Lines of a fusion's table that are not runs.
ROW_NAMES = ("sum", "product", "weighted", "learned", "oracle")

# Part, fold, seed, video id.
Key = tuple[str, int, int, str]
FoldSeed = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A run in a fusion or comparison, with all its folds and repeats."""

    name: str
    scores: Scores  # of all folds and repeats
    # Fold -> its training and validation ids; empty if unknown, as for a foreign scores file.
    learned_from: Mapping[int, frozenset[str]] = field(default_factory=dict)
    stream: str = ""  # stream of its features; empty if unknown
    notes: tuple[str, ...] = ()  # what a reader must know, such as random backbone weights
    path: Path | None = None  # its folder; None: it was not read from one


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The R rows that all S members have, sorted by part, fold, repeat and video id."""

    names: tuple[str, ...]  # of the members
    classes: tuple[str, ...]  # K labels
    keys: tuple[Key, ...]  # R keys
    labels: np.ndarray  # (R,) int64, indices into `classes`
    probabilities: np.ndarray  # (S, R, K) float64
    # Part -> member -> ids that others have and it lacks in some repeat. They are left out of that fold in every repeat,
    # so that all repeats are of the same videos.
    missing: Mapping[str, Mapping[str, tuple[str, ...]]]
    # Repeats left out, members with one repeat that is paired with several, and the members' own notes.
    notes: tuple[str, ...] = ()

    def rows(self, part: str, fold_seed: FoldSeed | None = None) -> np.ndarray:
        """Return the row numbers of a part, or of one fold and repeat of it; (n,) int64."""
        rows = enumerate(self.keys)
        return np.array([n for n, key in rows if key[0] == part and fold_seed in (None, key[1:3])], np.int64)

    def fold_seeds(self, part: str = "test") -> list[FoldSeed]:
        """Return the (fold, seed) pairs that have rows of a part, sorted."""
        return sorted({(fold, seed) for own, fold, seed, _ in self.keys if own == part})

    def scores(self, probabilities: np.ndarray) -> Scores:
        """Return (R, K) fused probabilities as scores."""
        parts, folds, seeds, video_ids = zip(*self.keys, strict=True)
        return Scores(
            video_ids=video_ids,
            labels=tuple(self.classes[label] for label in self.labels),
            classes=self.classes,
            probabilities=probabilities,
            part=parts,
            fold=folds,
            seed=seeds,
        )


def run_folders(path: Path) -> list[Path]:
    """Return the folder itself if it is a run, else the runs one or two levels below it (folds and repeats)."""
    if (path / RUN_JSON).is_file():
        return [path]
    found = [file.parent for pattern in (f"*/{RUN_JSON}", f"*/*/{RUN_JSON}") for file in path.glob(pattern)]
    # Runs in the making have names that begin with a dot.
    return sorted(folder for folder in found if not any(p.startswith(".") for p in folder.relative_to(path).parts))


def load_members(paths: Sequence[Path]) -> list[Member]:
    """Return the runs of several paths, each named by the shortest end of its path that is unique.

    Raises: RunError as `load_member` does, before any scores are read if a path is no run; or if a path is given twice.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise RunError("the same run is given twice")
    for path in paths:
        recover_run(path)
        if not run_folders(path) and not (path / SCORES).is_file():
            raise no_run_error(path)
    return [load_member(path, _name(own, resolved)) for path, own in zip(paths, resolved, strict=True)]


def _name(path: Path, others: Sequence[Path]) -> str:
    """Return the shortest end of a path that no other path shares and that is not in `ROW_NAMES`."""
    for depth in range(1, len(path.parts)):
        parts = path.parts[-depth:]
        name = "/".join(parts)
        if name not in ROW_NAMES and not any(other != path and other.parts[-depth:] == parts for other in others):
            return name
    return str(path)


def load_member(path: Path, name: str) -> Member:
    """Return a run with all its folds and repeats.

    path: a run folder, a folder of folds or repeats, a result of `har fuse`, or any folder with a scores.csv.
    Raises: RunError if it is none of these, its runs are not of one job, or the classes differ between folds.
    """
    runs = [read_run(folder) for folder in run_folders(path)]
    if runs:
        require_one_job(runs)
    else:
        if not (path / SCORES).is_file():
            raise no_run_error(path)
        learned_from = _read_learned(path / LEARNED_JSON)
        return Member(name=name, scores=read_scores(path / SCORES), learned_from=learned_from, path=path)
    learned: dict[int, frozenset[str]] = {}
    for run in runs:
        ids = frozenset(run.split.train) | frozenset(run.split.val)
        learned[run.split.index] = learned.get(run.split.index, frozenset()) | ids
    # A run of mid fusion has a joint one, such as `rgb+flow`.
    streams = {"+".join(stream.spec.stream for stream in run.streams) for run in runs}
    found = [run.scores() for run in runs]
    try:
        scores = stack_scores(found)
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    stream = min(streams) if len(streams) == 1 else ""
    notes = merge_notes({str(run.path.relative_to(path)): run.notes for run in runs})
    return Member(name=name, scores=scores, learned_from=learned, stream=stream, notes=tuple(notes), path=path)


def scores_hash(path: Path) -> str:
    """Return one hash over the scores of a folder that `load_member` takes, by which a fusion knows its members again."""
    folders = run_folders(path) or [path]
    return json_sha256([[str(folder.relative_to(path)), file_sha256(folder / SCORES)] for folder in folders])


def fold_seed_name(fold: int, seed: int) -> str:
    """Return the key in fusion.json of what belongs to a fold and repeat."""
    return f"fold {fold} seed {seed}"


def _read_learned(path: Path) -> dict[int, frozenset[str]]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {int(fold): frozenset(ids) for fold, ids in values.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: malformed ({error}); fuse again") from error


def join(members: Sequence[Member], part: str = "test") -> Joined:
    """Return the validation and test rows that all members have, matched by part, video id, fold and repeat.

    A member with one repeat pairs with every repeat of the others; if none has several, seeds need not agree and the
    result has the first member's. Repeats and videos that a member lacks are left out (see `Joined`).
    Raises: RunError if there are fewer than two members or two of one name, class sets or labels differ, a row is
    duplicate, scores are not probabilities, one run learned from another's test videos, or no row of `part` is common to all.
    """
    if len(members) < 2:
        raise RunError("give two runs or more")
    names = tuple(member.name for member in members)
    if len(set(names)) < len(names):
        raise RunError(f"duplicate run name: {', '.join(names)}")
    classes = members[0].scores.classes
    for member in members:
        _check_member(member, classes, names[0])
    for member in members:
        if part not in member.scores.part:
            raise RunError(
                f"{member.name} has no {part} videos: "
                + (
                    "train it with --val-fraction"
                    if part == "val"
                    else "a run of --protocol all is for `har predict` only"
                )
            )
    check_leakage(members)
    seeds, left_out = _target_seeds(members)
    tables = [_rows_by_key(member, seeds) for member in members]
    common = _common_keys(tables)
    if not any(key[0] == part for key in common):
        extents = "; ".join(_extent(member, part) for member in members)
        raise RunError(f"no {part} video is in the same fold of all runs: {extents}")
    labels = _common_labels(members, tables, common)
    aligned = [
        member.scores.probabilities[[table[key] for key in common]][:, list(map(member.scores.classes.index, classes))]
        for member, table in zip(members, tables, strict=True)
    ]
    number = {label: k for k, label in enumerate(classes)}
    every = set().union(*tables)

    def lacking(own: str, table: Mapping[Key, int]) -> tuple[str, ...]:
        return tuple(sorted({key[3] for key in every - table.keys() if key[0] == own}))

    return Joined(
        names=names,
        classes=classes,
        keys=tuple(common),
        labels=np.array([number[label] for label in labels], np.int64),
        probabilities=np.stack(aligned),
        missing={own: {name: lacking(own, table) for name, table in zip(names, tables, strict=True)} for own in PARTS},
        notes=(*left_out, *(f"{member.name}: {text}" for member in members for text in member.notes)),
    )


def check_leakage(members: Sequence[Member]) -> None:
    """Check that no member learned from (trained or validated on) a video that another tests in the same fold.

    Raises: RunError naming both and some of the videos.
    """
    tests: dict[str, dict[int, set[str]]] = {member.name: {} for member in members}
    for member in members:
        scores = member.scores
        for video_id, part, fold in zip(scores.video_ids, scores.part, scores.fold, strict=True):
            if part == "test":
                tests[member.name].setdefault(fold, set()).add(video_id)
    for learner in members:
        for tester, of_fold in tests.items():
            for fold, ids in learner.learned_from.items():
                if leaked := sorted(ids & of_fold.get(fold, set())):
                    raise RunError(
                        f"leakage: {learner.name} learned from {len(leaked)} videos that {tester} tests in fold "
                        f"{fold} ({', '.join(leaked[:3])}): train both on the same split (`har train --split-file`)"
                    )


def _check_member(member: Member, classes: tuple[str, ...], first: str) -> None:
    scores = member.scores
    if differing := sorted(set(scores.classes) ^ set(classes)):
        raise RunError(
            f"{member.name} and {first} have different classes (differing: {', '.join(differing[:5])}): "
            "only runs of the same classes can be joined"
        )
    if unknown := sorted(set(scores.labels) - set(classes)):
        raise RunError(f"{member.name}: labels {unknown[:5]} are not among its classes")
    wrong = (scores.probabilities < 0).any(axis=1) | (np.abs(scores.probabilities.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        video_id = scores.video_ids[int(wrong.argmax())]
        raise RunError(f"{member.name}: the scores of {video_id} are not probabilities (>= 0, sum 1); apply a softmax")


def _target_seeds(members: Sequence[Member]) -> tuple[tuple[int, ...], list[str]]:
    """Return the seeds of the result, and notes on them."""
    own = {member.name: set(member.scores.seed) for member in members}
    several = {name: seeds for name, seeds in own.items() if len(seeds) > 1}
    if not several:
        return tuple(sorted(own[members[0].name])), []
    shared = set.intersection(*several.values())
    notes = [
        f"{name}: the repeats of the seeds {first_few(list(map(str, sorted(seeds - shared))))} are left out, as other runs "
        "lack them"
        for name, seeds in several.items()
        if shared and seeds - shared
    ]
    if len(shared) > 1:
        notes += [
            f"{name} has one repeat, which stands for each of the {len(shared)} repeats of the others: it has no deviation"
            for name in own
            if name not in several
        ]
    return tuple(sorted(shared)), notes


def _rows_by_key(member: Member, seeds: Sequence[int]) -> dict[Key, int]:
    """Return the row of each key whose seed is in the result."""
    scores, table = member.scores, {}
    single = len(set(scores.seed)) == 1
    rows = zip(scores.part, scores.fold, scores.seed, scores.video_ids, strict=True)
    for row, (part, fold, own_seed, video_id) in enumerate(rows):
        if part not in PARTS:
            continue
        for seed in seeds if single else [own_seed] if own_seed in seeds else []:
            key = (part, fold, seed, video_id)
            if key in table:
                raise RunError(f"{member.name}: duplicate {video_id} in the {part} scores of fold {fold}")
            table[key] = row
    return table


def _common_keys(tables: Sequence[Mapping[Key, int]]) -> list[Key]:
    """Return the keys that all members have, without videos that one lacks in another repeat of the same fold."""
    common = set(tables[0]).intersection(*tables[1:])
    lacking = {(part, fold, video_id) for part, fold, _, video_id in set().union(*tables) - common}
    return sorted(key for key in common if (key[0], key[1], key[3]) not in lacking)


def _common_labels(members: Sequence[Member], tables: Sequence[Mapping[Key, int]], keys: Sequence[Key]) -> list[str]:
    first = [members[0].scores.labels[tables[0][key]] for key in keys]
    for member, table in zip(members[1:], tables[1:], strict=True):
        for key, expected in zip(keys, first, strict=True):
            if (found := member.scores.labels[table[key]]) != expected:
                raise RunError(
                    f"{key[3]} is {expected!r} in {members[0].name} but {found!r} in {member.name}: "
                    "the runs come from different manifests"
                )
    return first


def _extent(member: Member, part: str) -> str:
    rows = [row for row, own in enumerate(member.scores.part) if own == part]
    folds = sorted({member.scores.fold[row] for row in rows})
    seeds = sorted({member.scores.seed[row] for row in rows})
    return f"{member.name} has {len(rows)} {part} rows of folds {folds[:5]} and seeds {seeds[:5]}"
