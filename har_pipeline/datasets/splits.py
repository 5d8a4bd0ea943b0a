"""Splits: made by a protocol, checked, described, written to a file and read back.

No subject, group or file is in two parts of a split, except where the protocol's entry in `PROTOCOLS` allows it. A file
is the same under all of its names, links and copies; where the files are absent, each name is taken for a file.
Validation videos are taken from the training side by whole subjects or groups. A class that is tested but never trained
on is an error: no head could recognise it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from har_pipeline.core.errors import SplitError, first_few
from har_pipeline.core.files import write_text
from har_pipeline.core.kinds import what_is
from har_pipeline.core.options import check_options, option, seed_option
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.datasets.identity import one_name_per_file
from har_pipeline.datasets.protocols import PROTOCOLS, Protocol, SplitOptions, cells, default_protocol, protocol_name
from har_pipeline.datasets.units import Columns, Source, source_of, take_share

if TYPE_CHECKING:
    import numpy as np

PARTS = ("train", "val", "test")
# Share of the training side that is kept for validation where that is read and nobody asked for another one.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitChoice:
    """Which splits of a manifest: those of a protocol, one of them, or the split of a file.

    Raises: ValueError if a value is out of range, UsageError if there is no such protocol.
    """

    # Also by its initials, `loso`, or another name that it is known by; kept as the name in `PROTOCOLS`.
    # None: `default_protocol`.
    protocol: str | None = option(
        None,
        "Split protocol; `har splits show --help` lists them. Default: xsub for the ids of NTU RGB+D, otherwise holdout.",
    )
    # None: 0, and a note if there are others.
    split: str | None = option(
        None, "Split number, or `all`, as papers do: a run, or a fit, for each. Default: 0, the first one."
    )
    split_file: Path | None = option(None, "Split file of `har splits write`, instead of --protocol.")
    num_folds: int = option(5, "Number of folds (group_kfold).", min=2)
    test_fraction: float = option(0.3, "Share of the videos to test on (holdout).", min=0.01, max=0.9)
    column: str = option("split", "Manifest column with the parts: split, or one of your own, x_... (column).")
    # Where the protocol `column` names validation videos, those are taken instead. None: see `with_validation`.
    val_fraction: float | None = option(
        None,
        "Share of the training subjects or groups kept for validation. Default: 0.2 where validation videos are read "
        "(--patience, --schedule plateau, har sweep, ConvLSTMs), otherwise 0.",
        min=0,
        max=0.9,
    )
    seed: int = seed_option()

    def __post_init__(self) -> None:
        check_options(self)
        if self.protocol is not None:
            object.__setattr__(self, "protocol", protocol_name(self.protocol))

    @property
    def every(self) -> bool:
        """Whether every split of the protocol is chosen, each for a folder of its own."""
        return self.split == "all" and self.split_file is None

    def with_validation(self, read: bool) -> SplitChoice:
        """Return the choice with a share of validation videos: its own, or the default. read: whether they are read."""
        return self if self.val_fraction is not None else replace(self, val_fraction=VALIDATION_SHARE if read else 0.0)

    def protocol_of(self, records: Sequence[VideoRecord]) -> str:
        """Return the protocol, of the records if none was asked for."""
        return self.protocol or default_protocol(records)

    def unread(self, records: Sequence[VideoRecord]) -> list[str]:
        """Return the names of the options that change nothing beside the others."""
        if self.split_file is not None:
            return ["protocol", "split", "num_folds", "test_fraction", "column", "val_fraction"]
        protocol = self.protocol_of(records)
        read = PROTOCOLS[protocol].reads
        unread = [name for name in ("num_folds", "test_fraction", "column") if name not in read]
        if protocol == "column" and names_validation(records, self.column):
            unread.append("val_fraction")
        return unread


def choose_splits(
    records: Sequence[VideoRecord], choice: SplitChoice, manifest_sha256: str = ""
) -> tuple[list[Split], list[str]]:
    """Return the chosen splits, and a sentence on each oddity of them.

    manifest_sha256: of the records' manifest, which the splits then name; "" = not known.
    Raises: SplitError as `make_splits` and `read_split_file`; ValueError if the protocol has no split of that number.
    """
    if choice.split_file is not None:
        split = read_split_file(choice.split_file)
        check_split(split, records)
        notes = []
        if manifest_sha256 and split.manifest_sha256 and split.manifest_sha256 != manifest_sha256:
            notes = [
                f"{choice.split_file} was written for another manifest, or this one has changed since: the split is the "
                "file's, the labels are those of the manifest given"
            ]
        split = replace(split, manifest_sha256=manifest_sha256 or split.manifest_sha256)
        return [split], notes + unused_videos([split], records)
    protocol = choice.protocol_of(records)
    splits = protocol_splits(records, choice, manifest_sha256)
    chosen = [split for split in splits if (choice.split or "0") in ("all", str(split.index))]
    if not chosen:
        numbers = [split.index for split in splits]
        raise ValueError(f"split must be all or one of {numbers}, the splits of {protocol}, not {choice.split!r}")
    notes = unused_videos(chosen, records)
    if choice.split is None and len(splits) > 1:
        notes.append(
            f"{protocol} has {len(splits)} splits and this is split 0 only; its result is the mean over all (--split all)"
        )
    if "val_fraction" not in choice.unread(records):
        notes += odd_validation_share(chosen, choice.val_fraction or 0.0)
    if protocol != "column" and PROTOCOLS[protocol].tests:
        notes += unread_column(splits, records)
    if not PROTOCOLS[protocol].copies_apart:
        notes += copied_videos(chosen, records)
    if protocol in ("holdout", "group_kfold") and not any(record.subject or record.group for record in records):
        notes.append(
            "the manifest has no subject or group: one person or scene may appear in both training and test videos, which "
            "makes the accuracy too high; fill in those columns (data_manifests/README.md)"
        )
    return chosen, notes


def protocol_splits(records: Sequence[VideoRecord], choice: SplitChoice, manifest_sha256: str = "") -> list[Split]:
    """Return every split of the chosen protocol. Raises: as `make_splits`."""
    return make_splits(
        records,
        choice.protocol_of(records),
        seed=choice.seed,
        val_fraction=choice.val_fraction or 0.0,
        num_folds=choice.num_folds,
        test_fraction=choice.test_fraction,
        column=choice.column,
        manifest_sha256=manifest_sha256,
    )


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
    """Return the splits of a protocol, numbered from 0 in its order; videos without a label are in none.

    val_fraction: share of the training side's videos kept for validation, by whole subjects or groups, at least one of
    them unless 0; not read where the protocol `column` finds validation videos. num_folds, test_fraction, column: see
    `SplitOptions`.
    Raises: SplitError if the protocol's columns are missing, a part is empty, a subject, group or file is on both sides, or
    a class is tested but not trained; UsageError if there is no such protocol.
    """
    import numpy as np

    protocol = protocol_name(protocol)
    rule = PROTOCOLS[protocol]
    if not (labelled := [record for record in records if record.label]):
        raise SplitError(
            f"none of the {len(records)} videos of the manifest has a label: fill in the column label to train on them; "
            "`har extract` and `har predict` need none"
        )
    records = labelled
    if rule.copies_apart:
        records = one_name_per_file(records)
    options = SplitOptions(seed=seed, num_folds=num_folds, test_fraction=test_fraction, column=column)
    columns = Columns(records)
    ordered = columns.ids[columns.by_id]
    if len(twice := np.flatnonzero(ordered[1:] == ordered[:-1])):
        raise SplitError(f"{len(twice)} ids appear more than once among the videos, such as {ordered[twice[0]]!r}")
    splits = []
    for index, fold in enumerate(rule.split(columns, options)):
        where = f"{protocol} split {index}"
        for part, side in (("train", fold.train), ("test", fold.test)):
            if not len(side) and (part == "train" or rule.tests):
                raise SplitError(
                    f"{where}: none of the {len(records)} videos is in {part}; is this the right protocol?"
                )
        if fold.val is not None and len(fold.val):
            train, val = columns.in_order(fold.train), columns.in_order(fold.val)
        else:
            train, val = take_share(
                columns, fold.train, val_fraction, seed + index, where, rule.val_apart, "--val-fraction 0"
            )
        parts = {"train": train, "val": val, "test": columns.in_order(fold.test)}
        ids = {part: tuple(columns.ids[rows].tolist()) for part, rows in parts.items()}
        split = Split(protocol=protocol, index=index, **ids, seed=seed, manifest_sha256=manifest_sha256)
        _check_split(split, columns, rule, parts)
        splits.append(split)
    return splits


def names_validation(records: Sequence[VideoRecord], column: str) -> bool:
    """Return whether the manifest's column that the protocol `column` reads names validation videos."""
    return "val" in cells(records, column)


def check_split(split: Split, records: Sequence[VideoRecord]) -> None:
    """Raise SplitError if the split leaks a subject, group or file, names unknown videos, or cannot be trained and tested.

    A split of the user's own is held to the rule of most protocols: nothing is shared.
    """
    rule = PROTOCOLS.get(split.protocol, PROTOCOLS["holdout"])
    columns = Columns(one_name_per_file(records) if rule.copies_apart else records)
    _check_split(split, columns, rule, {part: _rows(columns, getattr(split, part)) for part in PARTS})


def _rows(columns: Columns, ids: Sequence[str]) -> np.ndarray:
    """Return (n,) int64 the rows of videos, -1 of unknown ones."""
    import numpy as np

    return np.fromiter((columns.row_of.get(video_id, -1) for video_id in ids), np.int64, len(ids))


def _shared(columns: Columns, source: Source, first: np.ndarray, second: np.ndarray) -> dict[str, tuple[str, str]]:
    """Return name -> the first id on each side, of the subjects, groups or files that two parts (n,) share."""
    import numpy as np

    numbers = columns.source(source)
    met = np.zeros(numbers.max() + 2, bool)
    met[numbers[first]] = True
    met[-1] = False
    if not met[numbers[second]].any():
        return {}
    sides = [
        {source_of(r, source): r.video_id for r in reversed([columns.records[row] for row in part.tolist()])}
        for part in (first, second)
    ]
    names = (name for name in sides[0].keys() & sides[1].keys() if name is not None)
    return {name: (sides[0][name], sides[1][name]) for name in sorted(names)}


def _check_split(split: Split, columns: Columns, rule: Protocol, parts: dict[str, np.ndarray]) -> None:
    """Check a split as `check_split` does. parts: name -> (n,) int64 the rows of its videos."""
    import numpy as np

    where = f"{split.protocol} split {split.index}"
    for part, rows in parts.items():
        ids = getattr(split, part)
        if len(unknown := np.flatnonzero(rows < 0)):
            raise SplitError(f"{where}: {len(unknown)} {part} ids are not in the manifest, such as {ids[unknown[0]]!r}")
        if more := len(ids) - np.count_nonzero(np.bincount(rows)):
            raise SplitError(f"{where}: {more} {part} ids appear more than once")
        if nameless := [ids[place] for place in np.flatnonzero(columns.labels[rows] < 0)]:
            raise SplitError(
                f"{where}: {len(nameless)} {part} videos have no label in the manifest: {first_few(nameless)}"
            )
    for part in ("train", "test") if rule.tests else ("train",):
        if not len(parts[part]):
            raise SplitError(f"{where}: no {part} videos")
    for first, second, sources in (
        ("train", "test", rule.test_apart),
        ("val", "test", rule.test_apart),
        ("train", "val", rule.val_apart),
    ):
        for source in sources:
            if found := _shared(columns, source, parts[first], parts[second]):
                # A file may stand in the manifest under other names, which only the ids tell.
                ids = next(iter(found.values()))
                as_ids = f", as {ids[0]} and {ids[1]}" if source == "file" else ""
                listed = ", ".join([*found][:3])
                raise SplitError(f"{where}: {source} {listed} is in both {first} and {second}{as_ids}")
    tested = np.concatenate([parts["test"], parts["val"]])
    if len(untrained := np.flatnonzero(~np.isin(columns.labels[tested], columns.labels[parts["train"]]))):
        names = sorted({columns.records[row].label for row in tested[untrained]})
        raise SplitError(
            f"{where}: class {', '.join(names[:5])} has test but no training videos; remove it from the manifest"
        )


def describe_splits(splits: Sequence[Split], records: Sequence[VideoRecord]) -> list[dict[str, Any]]:
    """Return one row per split: its number, the counts of videos and classes, and the tested subjects or groups."""
    by_id = {record.video_id: record for record in records}
    classes = len({record.label for record in records} - {""})
    rows = []
    for split in splits:
        test = [by_id[video_id] for video_id in split.test]
        tested = sorted({r.subject for r in test if r.subject} or {r.group for r in test if r.group})
        row: dict[str, Any] = {"split": split.index, **{part: len(getattr(split, part)) for part in PARTS}}
        found: set[str] = set()
        for video_id in itertools.chain(split.test, split.val, split.train):
            found.add(by_id[video_id].label)
            if len(found) == classes:
                break
        row["classes"] = len(found)
        row["tested"] = ", ".join(tested[:9]) + (f" and {len(tested) - 9} more" if len(tested) > 9 else "")
        rows.append(row)
    return rows


def describe_protocol(splits: Sequence[Split], records: Sequence[VideoRecord], *, by_default: bool) -> str:
    """Return a line: the splits' protocol, how many there are, and what training and test videos share of people and files.

    by_default: whether nobody asked for the protocol.
    """
    name, rule = splits[0].protocol, PROTOCOLS[splits[0].protocol]
    line = f"protocol {name}{' (the default)' * by_default}: {len(splits)} split{'s' * (len(splits) > 1)}"
    if not rule.tests:
        return f"{line}; all videos train and none tests"
    apart: list[str] = [source for source in rule.test_apart if any(source_of(record, source) for record in records)]
    people, of_people = {record.subject for record in records if record.subject}, ""
    if not people:
        of_people = "; the manifest has no subject: one person may be on both sides"
    elif "subject" not in rule.test_apart:
        subject, met = {record.video_id: record.subject for record in records}, set[str]()
        for split in splits:
            train, test = ({subject[one] for one in part} for part in ((*split.train, *split.val), split.test))
            met |= {one for one in train & test if one}
        of_people = f"; {len(met)} of {len(people)} subjects are on both sides" if met else ""
        apart = apart if met else ["subject", *apart]
    if people and (nameless := {record.video_id for record in records if not record.subject}):
        used = {one for split in splits for part in PARTS for one in getattr(split, part)}
        if count := len(nameless & used):
            of_people += f"; {count} of {len(used)} videos name no subject: one person may be on both sides"
    listed = " or ".join(filter(None, (", ".join(apart[:-1]), apart[-1])))
    return f"{line}; train and test share no {listed}{of_people}"


def split_text(split: Split) -> str:
    """Return the content of a split's file."""
    return json.dumps(asdict(split), indent=1) + "\n"


def write_split_file(path: Path, split: Split) -> None:
    """Write a split as JSON, atomically."""
    write_text(path, split_text(split))


def read_split_file(path: Path) -> Split:
    """Read a split file. Raises: SplitError if the file is missing or malformed, or its parts share ids."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        if unknown := values.keys() - {field.name for field in fields(Split)}:
            raise ValueError(f"unknown entry {sorted(unknown)[0]!r}")
        if missing := {"protocol", "train", "test"} - values.keys():
            raise ValueError(f"missing {', '.join(sorted(missing))}")
        if not all(isinstance(values.get(name, 0), int) for name in ("index", "seed")):
            raise ValueError("index and seed must be integers")
        parts: dict[str, tuple[str, ...]] = {}
        for part in PARTS:
            ids = values.get(part, [])
            if not isinstance(ids, list) or not all(isinstance(video_id, str) for video_id in ids):
                raise ValueError(f"{part} must be a list of video ids")
            parts[part] = tuple(ids)
        return Split(**{"index": 0, **values, **parts})
    except FileNotFoundError as error:
        raise SplitError(f"{path}: no such split file; create one with `har splits write`") from error
    except IsADirectoryError as error:
        raise SplitError(f"{path} is {what_is(path)}, not a split file, which `har splits write` makes") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        found = what_is(path)
        kind = f" but {found}" if found in ("a manifest", "a video file") else ""
        raise SplitError(f"{path}: not a split file{kind}: {error}") from error


LISTED_AT_MOST = 5


def unused_videos(splits: Sequence[Split], records: Sequence[VideoRecord]) -> list[str]:
    """Return a note on the manifest's videos that have a label and are in no part of any split, if there are any."""
    left = {record.video_id for record in records if record.label}
    for split in splits:
        for part in (split.train, split.val, split.test) if left else ():
            left.difference_update(part)
    unused = [record.video_id for record in records if record.video_id in left]
    if not unused:
        return []
    first = splits[0]
    where = f"{first.protocol} split {first.index}" if len(splits) == 1 else f"{len(splits)} splits of {first.protocol}"
    return [f"{len(unused)} of {len(records)} videos of the manifest are not used by {where}: {first_few(unused)}"]


def unlabelled_videos(records: Sequence[VideoRecord]) -> list[str]:
    """Return a note on the manifest's videos that have no label, and so are in no split, if there are any."""
    nameless = [record.video_id for record in records if not record.label]
    if not nameless:
        return []
    return [
        f"{len(nameless)} of {len(records)} videos of the manifest have no label and are left out: {first_few(nameless)}"
    ]


def odd_validation_share(splits: Sequence[Split], fraction: float) -> list[str]:
    """Return a note if the share of validation videos is far from the `fraction` of the training side asked for.

    fraction: in [0, 1). Far: below half of it or above one and a half times, and by at least two videos.
    """
    odd = []
    for split in splits:
        side = len(split.train) + len(split.val)
        wanted = fraction * side
        if abs(len(split.val) - wanted) >= 2 and not wanted / 2 <= len(split.val) <= 1.5 * wanted:
            odd.append((split, side))
    if not odd:
        return []
    (first, side), held = odd[0], len(odd[0][0].val)
    where = f" of split {first.index}" * (len(splits) > 1)
    more = f" (so in {len(odd)} of {len(splits)} splits)" * (len(splits) > 1)
    return [
        f"--val-fraction {fraction:g}: {held} of {side} training videos ({100 * held / side:.0f} %){where} are used for "
        f"validation: subjects and groups are not divided{more}"
    ]


def unread_column(splits: Sequence[Split], records: Sequence[VideoRecord]) -> list[str]:
    """Return a note if the manifest's column `split` names test videos that none of a protocol's splits tests.

    Where it names no test videos, as in Kinetics, its validation videos count as such.
    """
    ids = {part: {record.video_id for record in records if record.split == part} for part in PARTS}
    tested = "test" if ids["test"] else "val"
    if not ids["train"] or not ids[tested] or any(set(split.test) == ids[tested] for split in splits):
        return []
    return [f"the manifest's column split names train and {tested} videos; --protocol column uses them"]


def copied_videos(splits: Sequence[Split], records: Sequence[VideoRecord]) -> list[str]:
    """Return a note if test videos of a split are links to, or copies of, its training or validation videos."""
    file_of = {record.video_id: source_of(record, "file") for record in one_name_per_file(records)}
    copies: dict[str, str] = {}
    for split in splits:
        known = {file_of[video_id]: video_id for video_id in (*split.train, *split.val)}
        copies |= {video_id: known[file_of[video_id]] for video_id in split.test if file_of[video_id] in known}
    if not copies:
        return []
    listed = ", ".join(f"{test} = {train}" for test, train in sorted(copies.items())[:LISTED_AT_MOST])
    return [
        f"{len(copies)} test videos of {splits[0].protocol} are copies of training or validation videos (the same content "
        f"under another name), which makes the accuracy too high: {listed}{', ...' * (len(copies) > LISTED_AT_MOST)}"
    ]
