"""Protocols: a rule over manifest columns -> which videos train, validate and test.

No subject and no group stands on both sides of a split. Validation videos are taken from the training side by whole
subjects or groups. A class that is tested but never trained on is an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.errors import SplitError
from har_pipeline.records import Split, VideoRecord

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
"""(training side, test side) of each fold."""


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

    val_fraction: share of the training side's subjects or groups kept for validation, at least one of them unless 0;
    num_folds: of group_kfold; test_fraction: of holdout; column: what the protocol `column` reads (train, val, test).
    Raises: SplitError if the protocol is unknown or its columns are missing, a part is empty, a subject or group stands on
    both sides, or a class is tested but not trained.
    """
    if protocol not in PROTOCOLS:
        raise SplitError(f"unknown protocol {protocol!r}; there are: {', '.join(PROTOCOLS)}")
    options = SplitOptions(seed=seed, num_folds=num_folds, test_fraction=test_fraction, column=column)
    splits = []
    for index, (train_side, test) in enumerate(PROTOCOLS[protocol](records, options)):
        if protocol == "column" and any(_cell(r, column) == "val" for r in train_side):
            train = [r for r in train_side if _cell(r, column) == "train"]
            val = [r for r in train_side if _cell(r, column) == "val"]
        else:
            train, val = _take_validation(train_side, val_fraction, seed + index, f"{protocol} split {index}")
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


def check_split(split: Split, records: Sequence[VideoRecord]) -> None:
    """Raise SplitError if the split leaks a subject or group, names unknown videos, or cannot be trained and tested."""
    by_id = {record.video_id: record for record in records}
    where = f"{split.protocol} split {split.index}"
    parts: dict[str, list[VideoRecord]] = {}
    for part in ("train", "val", "test"):
        ids = getattr(split, part)
        if unknown := [video_id for video_id in ids if video_id not in by_id]:
            raise SplitError(f"{where}: {len(unknown)} {part} ids are not in the manifest, such as {unknown[0]!r}")
        parts[part] = [by_id[video_id] for video_id in ids]
    for part in ("train", "test"):
        if not parts[part]:
            raise SplitError(f"{where}: there is no {part} video")
    # One file cut into several rows is one source, whatever its other columns say.
    sources: dict[str, Callable[[VideoRecord], str | None]] = {
        "group": lambda r: _group_key(r, split.protocol),
        "file": lambda r: str(r.path or r.depth_path),
    }
    if split.protocol not in ("xview", "leave_one_group_out", "group_kfold", "ucf101"):
        sources["subject"] = lambda r: r.subject
    for first, second in (("train", "test"), ("val", "test"), ("train", "val")):
        for kind, key in sources.items():
            shared = ({key(r) for r in parts[first]} & {key(r) for r in parts[second]}) - {None}
            if shared:
                listed = sorted(str(value) for value in shared)[:3]
                raise SplitError(f"{where}: {kind} {', '.join(listed)} stands on the {first} and the {second} side")
    if untrained := {r.label for r in (*parts["test"], *parts["val"])} - {r.label for r in parts["train"]}:
        raise SplitError(f"{where}: class {', '.join(sorted(untrained)[:5])} is tested but has no training video")


def _group_key(record: VideoRecord, protocol: str) -> str | None:
    """Return what must not be shared, or None where the protocol itself allows it.

    UCF's groups are numbered per class: g01 of two classes are different films. HMDB-51's official lists and NTU's
    cameras do share films and subjects between the sides.
    """
    if protocol in ("hmdb51", "xview") or record.group is None:
        return None
    return f"{record.label}/{record.group}" if protocol == "ucf101" else record.group


def _cell(record: VideoRecord, column: str) -> str:
    value = record.extra.get(column, "") if column.startswith("x_") else getattr(record, column, "")
    return value or ""


def _number(text: str | None, video_id: str, what: str) -> int:
    match = re.search(r"(\d+)$", text or "")
    if match is None:
        raise SplitError(f"{video_id}: the {what} column {text!r} holds no number, which this protocol needs")
    return int(match[1])


def _unit(records: Sequence[VideoRecord]) -> Callable[[VideoRecord], str]:
    """Return what keeps videos together when a side is divided: subject, else group, else the file itself."""
    if all(record.subject for record in records):
        return lambda record: str(record.subject)
    if all(record.group for record in records):
        return lambda record: str(record.group)
    return lambda record: str(record.path or record.depth_path)


def _take_validation(
    side: list[VideoRecord], fraction: float, seed: int, where: str
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Return (train, val): whole subjects or groups, drawn at random, such that every class keeps a training video."""
    if not 0 <= fraction < 1:
        raise SplitError(f"{where}: the validation share must be in [0, 1), not {fraction:g}")
    if fraction == 0:
        return side, []
    unit = _unit(side)
    units = sorted({unit(record) for record in side})
    if len(units) < 2:
        raise SplitError(f"{where}: its {len(units)} training subject or group cannot be divided; use --val-fraction 0")
    count = min(max(1, round(fraction * len(units))), len(units) - 1)
    rng = np.random.default_rng(seed)
    labels = {record.label for record in side}
    chosen: set[str] = set()
    for name in rng.permutation(units):
        kept = {record.label for record in side if unit(record) not in chosen | {str(name)}}
        if kept == labels:
            chosen.add(str(name))
        if len(chosen) == count:
            break
    if not chosen:
        raise SplitError(f"{where}: every subject or group is the only one of some class; use --val-fraction 0")
    train = [record for record in side if unit(record) not in chosen]
    return train, [record for record in side if unit(record) in chosen]


def _two_sides(records: Sequence[VideoRecord], is_test: Callable[[VideoRecord], bool]) -> Sides:
    return [([r for r in records if not is_test(r)], [r for r in records if is_test(r)])]


def _kth_original(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Schuldt 2004: persons 2, 3, 5 to 10 and 22 test; the other 16 train."""
    return _two_sides(records, lambda r: _number(r.subject, r.video_id, "subject") in KTH_TEST_PERSONS)


def _kth_random5(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Baccouche 2011, section 4: five random draws of 16 training and 9 test persons."""
    persons = sorted({_number(r.subject, r.video_id, "subject") for r in records})
    count = round(len(persons) * 9 / 25)
    rng = np.random.default_rng(options.seed)
    draws = [set(rng.choice(persons, count, replace=False).tolist()) for _ in range(5)]
    return [_two_sides(records, lambda r, d=draw: _number(r.subject, r.video_id, "subject") in d)[0] for draw in draws]  # type: ignore[misc]


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
    tests = [range(7 * i - 6, 7 * i + 1) for i in (1, 2, 3)]
    return [_two_sides(records, lambda r, t=test: _number(r.group, r.video_id, "group") in t)[0] for test in tests]  # type: ignore[misc]


def _hmdb51(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Kuehne 2011: three splits by the official lists."""
    sides = _official_columns(records)
    if not sides:
        raise SplitError("hmdb51 needs the official lists: `har manifest build hmdb51 ROOT --splits FOLDER`")
    return sides


def _xsub(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Shahroudy 2016, cross-subject."""
    return _two_sides(records, lambda r: _number(r.subject, r.video_id, "subject") not in NTU_TRAIN_SUBJECTS)


def _xview(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Shahroudy 2016, cross-view: cameras 2 and 3 train, camera 1 tests."""
    return _two_sides(records, lambda r: _number(r.camera, r.video_id, "camera") not in NTU_TRAIN_CAMERAS)


def _leave_one_out(records: Sequence[VideoRecord], column: str) -> Sides:
    values = sorted({_cell(r, column) for r in records})
    if "" in values:
        raise SplitError(f"leave_one_{column}_out needs the column {column!r} in every row of the manifest")
    if len(values) < 2:
        raise SplitError(f"leave_one_{column}_out needs at least two {column}s; there is only {values[0]!r}")
    return [_two_sides(records, lambda r, v=value: _cell(r, column) == v)[0] for value in values]  # type: ignore[misc]


def _leave_one_group_out(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    return _leave_one_out(records, "group")


def _leave_one_subject_out(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    return _leave_one_out(records, "subject")


def _group_kfold(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """Stratified k folds of whole groups (scikit-learn's StratifiedGroupKFold)."""
    from sklearn.model_selection import StratifiedGroupKFold

    unit = (lambda r: str(r.group)) if all(r.group for r in records) else _unit(records)
    groups = [unit(r) for r in records]
    if len(set(groups)) < options.num_folds:
        raise SplitError(f"group_kfold: {len(set(groups))} groups are too few for {options.num_folds} folds")
    folds = StratifiedGroupKFold(options.num_folds, shuffle=True, random_state=options.seed)
    found = folds.split(np.zeros(len(records)), [r.label for r in records], groups)
    return [([records[i] for i in train], [records[i] for i in test]) for train, test in found]


def _holdout(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """One split of whole subjects (or groups, or files), in which every class has training videos."""
    train, test = _take_validation(list(records), options.test_fraction, options.seed, "holdout")
    return [(train, test)]


def _column(records: Sequence[VideoRecord], options: SplitOptions) -> Sides:
    """The manifest's own column of train, val and test; other values are unused."""
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


def write_split_file(path: Path, split: Split) -> None:
    """Write a split as JSON, atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(split), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_split_file(path: Path) -> Split:
    """Read what `write_split_file` wrote. Raises: SplitError if the file is missing, malformed or shares ids."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: tuple(values.pop(part, ())) for part in ("train", "val", "test")}
        return Split(**values, **parts)
    except FileNotFoundError as error:
        raise SplitError(f"{path}: no such split file; make one with `har splits write`") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SplitError(f"{path}: is not a split file: {error}") from error


def describe_splits(splits: Sequence[Split], records: Sequence[VideoRecord]) -> list[dict[str, Any]]:
    """Return one row per split: its number, counts of videos, and the test side's subjects or groups."""
    by_id = {record.video_id: record for record in records}
    unit = _unit(records)
    rows = []
    for split in splits:
        tested = sorted({unit(by_id[video_id]) for video_id in split.test})
        listed = ", ".join(Path(name).name for name in tested[:9]) + (" ..." if len(tested) > 9 else "")
        rows.append(
            {
                "split": split.index,
                "train": len(split.train),
                "val": len(split.val),
                "test": len(split.test),
                "classes": len({by_id[video_id].label for video_id in (*split.train, *split.test)}),
                "tested": listed,
            }
        )
    return rows
