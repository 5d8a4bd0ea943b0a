"""Split protocols: each turns manifest columns into the sides of one or several splits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from har_pipeline.core.errors import SplitError
from har_pipeline.core.records import VideoRecord

KTH_TEST_PERSONS = frozenset({2, 3, 5, 6, 7, 8, 9, 10, 22})


NTU_TRAIN_SUBJECTS = frozenset({1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38})


NTU_TRAIN_CAMERAS = frozenset({2, 3})


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Numbers that some protocols read; see `make_splits`."""

    seed: int = 0
    num_folds: int = 5
    test_fraction: float = 0.3
    column: str = "split"


Sides = list[tuple[list[VideoRecord], list[VideoRecord]]]


Key = Callable[[VideoRecord], str | None]


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
