"""Protocols: a rule over manifest columns -> which videos train, validate and test.

No subject, group or file stands on both sides of a split. Validation videos are taken from the training side by whole
subjects or groups. A class that is tested but never trained on is an error, for no head could ever be right about it.
Some protocols share something between the sides by their very definition; `_SHARED_BY_DEFINITION` lists which.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from har_pipeline.core.errors import SplitError
from har_pipeline.core.records import Split, VideoRecord

KTH_TEST_PERSONS = frozenset({2, 3, 5, 6, 7, 8, 9, 10, 22})
NTU_TRAIN_SUBJECTS = frozenset({1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38})
NTU_TRAIN_CAMERAS = frozenset({2, 3})
PARTS = ("train", "val", "test")
# What the training and the test side of a protocol may have in common; training and validation never share it.
_SHARED_BY_DEFINITION = {"xview": ("subject", "group"), "leave_one_group_out": ("subject",)}


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Numbers that some protocols read; see `make_splits`."""

    seed: int = 0
    num_folds: int = 5
    test_fraction: float = 0.3
    column: str = "split"


Sides = list[tuple[list[VideoRecord], list[VideoRecord]]]
"""(training side, test side) of each fold."""

Key = Callable[[VideoRecord], str | None]


def make_splits(
    records: Sequence[VideoRecord],
    protocol: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    num_folds: int = 5,
    test_fraction: float = 0.3,
    column: str = "split",
    manifest_sha256: str = "",
) -> list[Split]:
    """Return the splits of a protocol, in its order.

    val_fraction: share of the training side's videos kept for validation, by whole subjects or groups, at least one of
    them unless 0; where the protocol `column` names validation videos, those are taken instead.
    num_folds: of group_kfold; test_fraction: of holdout; column: `split` or an own one, which the protocol `column`
    reads (train, val, test). Numbers of splits begin at 0.
    Raises: SplitError if the protocol is unknown or its columns are missing, a part is empty, a subject or group stands
    on both sides, or a class is tested but not trained.
    """
    if protocol not in PROTOCOLS:
        raise SplitError(f"unknown protocol {protocol!r}; there are: {', '.join(PROTOCOLS)}")
    options = SplitOptions(seed=seed, num_folds=num_folds, test_fraction=test_fraction, column=column)
    splits = []
    for index, (train_side, test) in enumerate(PROTOCOLS[protocol](records, options)):
        if protocol == "column" and names_validation(train_side, column):
            train = [r for r in train_side if _cell(r, column) == "train"]
            val = [r for r in train_side if _cell(r, column) == "val"]
        else:
            where = f"{protocol} split {index}"
            for part, side in (("train", train_side), ("test", test)):
                if not side:
                    raise SplitError(
                        f"{where}: there is no {part} video among the {len(records)}; another set's protocol?"
                    )
            # Where the protocol lets subjects stand on both sides, its groups are all that can be kept apart.
            keys = [_group] if protocol == "leave_one_group_out" else _source_keys(protocol)
            train, val = _take_share(train_side, val_fraction, seed + index, where, keys, "--val-fraction 0")
        split = Split(
            protocol=protocol,
            index=index,
            train=tuple(sorted(r.video_id for r in train)),
            val=tuple(sorted(r.video_id for r in val)),
            test=tuple(sorted(r.video_id for r in test)),
            seed=seed,
            manifest_sha256=manifest_sha256,
        )
        check_split(split, records)
        splits.append(split)
    return splits


def names_validation(records: Sequence[VideoRecord], column: str) -> bool:
    """Return whether a manifest's column, as the protocol `column` reads it, names validation videos."""
    return any(_cell(record, column) == "val" for record in records)


def check_split(split: Split, records: Sequence[VideoRecord]) -> None:
    """Raise SplitError if the split leaks a subject or group, names unknown videos, or cannot be trained and tested."""
    by_id = {record.video_id: record for record in records}
    where = f"{split.protocol} split {split.index}"
    parts: dict[str, list[VideoRecord]] = {}
    for part in PARTS:
        ids = getattr(split, part)
        if unknown := [video_id for video_id in ids if video_id not in by_id]:
            raise SplitError(f"{where}: {len(unknown)} {part} ids are not in the manifest, such as {unknown[0]!r}")
        if len(set(ids)) < len(ids):
            raise SplitError(f"{where}: {len(ids) - len(set(ids))} {part} ids stand there more than once")
        parts[part] = [by_id[video_id] for video_id in ids]
    for part in ("train", "test"):
        if not parts[part]:
            raise SplitError(f"{where}: there is no {part} video")
    shared_by_definition = _SHARED_BY_DEFINITION.get(split.protocol, ())
    for first, second in (("train", "test"), ("val", "test"), ("train", "val")):
        for key in _source_keys(split.protocol):
            kind = key.__name__.removeprefix("_").replace("_", " ")
            if kind in shared_by_definition and (second == "test" or split.protocol == "leave_one_group_out"):
                continue
            shared = ({key(r) for r in parts[first]} & {key(r) for r in parts[second]}) - {None}
            if shared:
                listed = ", ".join(sorted(str(value) for value in shared)[:3])
                raise SplitError(f"{where}: {kind} {listed} stands on the {first} and the {second} side")
    if untrained := {r.label for r in (*parts["test"], *parts["val"])} - {r.label for r in parts["train"]}:
        names = ", ".join(sorted(untrained)[:5])
        raise SplitError(f"{where}: class {names} is tested but has no training video; leave it out of the manifest")


def _subject(record: VideoRecord) -> str | None:
    return record.subject


def _group(record: VideoRecord) -> str | None:
    return record.group


def _group_of_class(record: VideoRecord) -> str | None:
    return f"{record.label}/{record.group}" if record.group else None


def _file(record: VideoRecord) -> str | None:
    return str(record.path or record.depth_path)


def _source_keys(protocol: str) -> list[Key]:
    """Return what must not be shared between the parts: subject, group, and the file that several rows may be cut from.

    HMDB-51's official lists keep the clips of one film together within a class, but not from one class to another.
    """
    return [_subject, _group_of_class if protocol == "hmdb51" else _group, _file]


def _cell(record: VideoRecord, column: str) -> str:
    value = record.extra.get(column, "") if column.startswith("x_") else getattr(record, column, "")
    return value or ""


def _units(records: Sequence[VideoRecord], keys: Sequence[Key]) -> list[int]:
    """Return each record's unit number: records that share a subject, group or file, also by way of others, are one."""
    unit = list(range(len(records)))

    def top(i: int) -> int:
        while unit[i] != i:
            unit[i] = unit[unit[i]]
            i = unit[i]
        return i

    for key in keys:
        first: dict[str, int] = {}
        for i, record in enumerate(records):
            value = key(record)
            if value is not None:
                unit[top(i)] = top(first.setdefault(value, i))
    number: dict[int, int] = {}
    return [number.setdefault(top(i), len(number)) for i in range(len(records))]


def _take_share(
    side: Sequence[VideoRecord], fraction: float, seed: int, where: str, keys: Sequence[Key], way_out: str
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Return (kept, taken): whole units, drawn at random, near the wanted share of every class.

    A unit is taken if that brings the counts per class nearer to `fraction` of each and leaves every class a kept
    video; if none does, the best of them is taken. Nothing is taken for 0.
    """
    if not 0 <= fraction < 1:
        raise SplitError(f"{where}: the share must be in [0, 1), not {fraction:g}")
    side = sorted(side, key=lambda r: r.video_id)
    if fraction == 0:
        return side, []
    units = np.array(_units(side, keys))
    labels = np.unique([r.label for r in side], return_inverse=True)[1]
    counts = np.zeros((units.max() + 1, labels.max() + 1))
    np.add.at(counts, (units, labels), 1)
    total = counts.sum(axis=0)
    wanted = fraction * total
    taken = np.zeros_like(wanted)
    chosen: list[int] = []
    order = np.random.default_rng(seed).permutation(len(counts))
    for i in order:
        nearer = np.abs(taken + counts[i] - wanted).sum() < np.abs(taken - wanted).sum()
        if nearer and (taken + counts[i] < total).all():
            taken += counts[i]
            chosen.append(int(i))
    if not chosen:
        possible = [int(i) for i in order if (counts[i] < total).all()]
        if not possible:
            units_found = f"its {len(counts)} subjects or groups (or files)"
            raise SplitError(
                f"{where}: {units_found} cannot be divided: each is the only one of a class; use {way_out}"
            )
        chosen = [min(possible, key=lambda i: float(np.abs(counts[i] - wanted).sum()))]
    out = np.isin(units, chosen)
    return [side[i] for i in np.flatnonzero(~out)], [side[i] for i in np.flatnonzero(out)]


def _sides(records: Sequence[VideoRecord], keys: Sequence[object], tested: Collection[object]) -> Sides:
    """Return one fold: the records whose key is among `tested` test, the others train."""
    pairs = list(zip(records, keys, strict=True))
    return [([r for r, key in pairs if key not in tested], [r for r, key in pairs if key in tested])]


def _numbers(records: Sequence[VideoRecord], column: str, largest: int, protocol: str) -> list[int]:
    """Return the number at the end of each record's cell. Raises: SplitError if it is not within 1 to `largest`."""
    numbers = []
    for record in records:
        text = _cell(record, column)
        match = re.search(r"(\d+)$", text)
        if match is None:
            raise SplitError(f"{protocol} needs a number in the column {column}; {record.video_id} has {text!r}")
        if not 1 <= int(match[1]) <= largest:
            raise SplitError(
                f"{protocol}: {record.video_id}: knows {column} 1 to {largest}, not {text!r}; "
                "for other data use holdout, leave_one_subject_out or column"
            )
        numbers.append(int(match[1]))
    return numbers


def _kth_original(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Schuldt 2004: persons 2, 3, 5 to 10 and 22 test; the other 16 (8 train, 8 validate) are the training side."""
    return _sides(records, _numbers(records, "subject", 25, "kth_original"), KTH_TEST_PERSONS)


def _kth_random5(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Baccouche 2011, section 4: five random draws of 16 training and 9 test persons; of fewer persons, that share."""
    persons = _numbers(records, "subject", 25, "kth_random5")
    there = sorted(set(persons))
    rng = np.random.default_rng(options.seed)
    draws = [set(rng.choice(there, round(len(there) * 9 / 25), replace=False).tolist()) for _ in range(5)]
    return [fold for draw in draws for fold in _sides(records, persons, draw)]


def _official_columns(records: Sequence[VideoRecord]) -> Sides:
    sides: Sides = []
    for number in (1, 2, 3):
        column = f"x_split{number}"
        if any(column in r.extra for r in records):
            parts = {part: [r for r in records if _cell(r, column) == part] for part in ("train", "test")}
            sides.append((parts["train"], parts["test"]))
    return sides


def _ucf101(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Soomro 2012: three splits; without the official lists, split i tests the groups 7i-6 to 7i, which is the same."""
    if sides := _official_columns(records):
        return sides
    groups = _numbers(records, "group", 25, "ucf101")
    return [fold for i in (1, 2, 3) for fold in _sides(records, groups, range(7 * i - 6, 7 * i + 1))]


def _hmdb51(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Kuehne 2011: three splits by the official lists."""
    sides = _official_columns(records)
    if not sides:
        raise SplitError("hmdb51 needs the official lists: `har manifest build hmdb51 ROOT --splits FOLDER`")
    return sides


def _xsub(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Shahroudy 2016, cross-subject, of NTU RGB+D with its 40 subjects (NTU RGB+D 120 has another list)."""
    subjects = _numbers(records, "subject", 40, "xsub")
    return _sides(records, subjects, set(range(1, 41)) - NTU_TRAIN_SUBJECTS)


def _xview(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Shahroudy 2016, cross-view: cameras 2 and 3 train, camera 1 tests."""
    return _sides(records, _numbers(records, "camera", 3, "xview"), {1, 2, 3} - NTU_TRAIN_CAMERAS)


def _leave_one_out(records: Sequence[VideoRecord], column: str) -> Sides:
    cells = [_cell(r, column) for r in records]
    values = sorted(set(cells))
    if "" in values:
        raise SplitError(f"leave_one_{column}_out needs the column {column!r} in every row of the manifest")
    if len(values) < 2:
        raise SplitError(f"leave_one_{column}_out needs at least two {column}s; there is only {', '.join(values)!r}")
    return [fold for value in values for fold in _sides(records, cells, {value})]


def _leave_one_group_out(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    return _leave_one_out(records, "group")


def _leave_one_subject_out(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    return _leave_one_out(records, "subject")


def _group_kfold(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Stratified k folds of whole groups (scikit-learn's StratifiedGroupKFold)."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = _units(records, _source_keys("group_kfold"))
    if not 2 <= options.num_folds <= len(set(groups)):
        raise SplitError(f"group_kfold: {len(set(groups))} subjects or groups cannot make {options.num_folds} folds")
    folds = StratifiedGroupKFold(options.num_folds, shuffle=True, random_state=options.seed)
    with warnings.catch_warnings():
        # scikit-learn warns of classes with fewer videos than folds; they are simply absent from some test sides.
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = list(folds.split(np.zeros(len(records)), [r.label for r in records], groups))
        except ValueError as error:
            raise SplitError(f"group_kfold: no class has {options.num_folds} videos, one for each fold") from error
    return [([records[i] for i in train], [records[i] for i in test]) for train, test in found]


def _holdout(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """One split of whole subjects, groups or files, with about the same share of every class on the test side."""
    keys = _source_keys("holdout")
    return [_take_share(records, options.test_fraction, options.seed, "holdout", keys, "another protocol")]


def _column(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """The manifest's own column of train, val and test; other values are unused."""
    if options.column != "split" and not options.column.startswith("x_"):
        raise SplitError(f"the protocol column reads the column split or an own one (x_...), not {options.column!r}")
    values = {_cell(r, options.column) for r in records}
    if not {"train", "test"} <= values:
        raise SplitError(f"column {options.column!r} must name train and test videos; it holds: {sorted(values)[:6]}")
    train = [r for r in records if _cell(r, options.column) in ("train", "val")]
    return [(train, [r for r in records if _cell(r, options.column) == "test"])]


PROTOCOLS: dict[str, Callable[[Sequence[VideoRecord], SplitOptions], Sides]] = {
    "kth_original": _kth_original,
    "kth_random5": _kth_random5,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "xsub": _xsub,
    "xview": _xview,
    "leave_one_group_out": _leave_one_group_out,
    "leave_one_subject_out": _leave_one_subject_out,
    "group_kfold": _group_kfold,
    "holdout": _holdout,
    "column": _column,
}


def describe_splits(splits: Sequence[Split], records: Sequence[VideoRecord]) -> list[dict[str, Any]]:
    """Return one row per split: its number, counts of videos and classes, and the test side's subjects or groups."""
    by_id = {record.video_id: record for record in records}
    rows = []
    for split in splits:
        test = [by_id[video_id] for video_id in split.test]
        tested = sorted({r.subject for r in test if r.subject} or {r.group for r in test if r.group})
        row: dict[str, Any] = {"split": split.index, **{part: len(getattr(split, part)) for part in PARTS}}
        row["classes"] = len({by_id[video_id].label for video_id in (*split.train, *split.val, *split.test)})
        row["tested"] = ", ".join(tested[:9]) + (f" and {len(tested) - 9} more" if len(tested) > 9 else "")
        rows.append(row)
    return rows
