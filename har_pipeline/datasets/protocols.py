"""Split protocols: each divides records into training and test videos by their manifest columns, once or several times.

A new protocol is a function and its entry in `PROTOCOLS`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from har_pipeline.core.errors import SplitError, UsageError, first_few
from har_pipeline.core.records import VideoRecord
from har_pipeline.core.text import counted, unknown
from har_pipeline.datasets.units import SOURCES, Columns, Source, take_share

if TYPE_CHECKING:
    import numpy as np

KTH_TEST_PERSONS = frozenset({2, 3, 5, 6, 7, 8, 9, 10, 22})
NTU_TRAIN_SUBJECTS = frozenset({1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38})
NTU_TRAIN_CAMERAS = frozenset({2, 3})


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """The options of `make_splits` that some protocols read."""

    # Seed of what is drawn at random.
    seed: int = 0
    # Folds of group_kfold.
    num_folds: int = 5
    # Share of the videos that holdout tests.
    test_fraction: float = 0.3
    # Manifest column that the protocol `column` reads: `split`, or one that starts with x_.
    column: str = "split"


@dataclass(frozen=True, slots=True)
class Fold:
    """One split of a protocol, before validation videos are drawn from its training side."""

    # (n,) int64 rows of the videos.
    train: np.ndarray
    test: np.ndarray
    # The protocol's own validation videos; None or empty = draw them from `train`.
    val: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Protocol:
    """A rule over manifest columns, and what the parts of its splits may share."""

    # Its splits, in order; the docstring's first line is the help text. Raises: SplitError if the videos do not fit.
    split: Callable[[Columns, SplitOptions], list[Fold]]
    # The fields of `SplitOptions` that it reads, apart from the seed.
    reads: tuple[str, ...] = ()
    # Sources that the test videos share with no other part.
    test_apart: tuple[Source, ...] = SOURCES
    # Sources that training and validation videos do not share.
    val_apart: tuple[Source, ...] = SOURCES
    # Whether copies and links of one file are kept apart like the file itself; published lists are taken as they are.
    copies_apart: bool = True
    # Whether its splits test anything; without, nothing is held back from a final model.
    tests: bool = True

    @property
    def help(self) -> str:
        """What it splits by, in a line."""
        return (self.split.__doc__ or "").splitlines()[0]


_NTU_ID = re.compile(r"S\d{3}C\d{3}P(\d{3})R\d{3}A\d{3}")


def default_protocol(records: Sequence[VideoRecord]) -> str:
    """Return the protocol for which nobody asked: `xsub` if the ids are those of NTU RGB+D, otherwise `holdout`."""
    found = [_NTU_ID.match(record.video_id) for record in records]
    subjects = {int(match[1]) for match in found if match}
    # The other subjects of NTU RGB+D 120 have no side in this protocol, and a part of the data may lack one.
    ours = all(found) and max(subjects, default=0) <= 40
    return "xsub" if ours and subjects & NTU_TRAIN_SUBJECTS and subjects - NTU_TRAIN_SUBJECTS else "holdout"


def cells(records: Sequence[VideoRecord], column: str) -> list[str]:
    """Return the records' texts in a manifest column, "" of those that have none."""
    if column.startswith("x_"):
        return [record.extra.get(column) or "" for record in records]
    return [getattr(record, column, None) or "" for record in records]


def _rows_with(texts: Sequence[str], text: str) -> np.ndarray:
    """Return the rows of those that are a text."""
    import numpy as np  # here: the CLI lists the protocols in its help, which waits for no numpy

    return np.flatnonzero(np.fromiter((one == text for one in texts), bool, len(texts)))


def _fold(keys: np.ndarray, tested: Collection[int]) -> Fold:
    """Return the fold that tests the rows whose key of (V,) is in `tested` and trains on the others."""
    import numpy as np

    out = np.isin(keys, [*tested])
    return Fold(np.flatnonzero(~out), np.flatnonzero(out))


def _numbers(columns: Columns, column: str, largest: int, protocol: str) -> np.ndarray:
    """Return (V,) int64 the numbers at the end of the cells. Raises: SplitError if one is not within 1 to `largest`."""
    import numpy as np

    texts = cells(columns.records, column)
    number_of: dict[str, int] = {}
    for record, text in zip(columns.records, texts, strict=True):
        if text in number_of:
            continue
        match = re.search(r"(\d+)$", text)
        if match is None:
            raise SplitError(f"{protocol} needs a number in column {column}; {record.video_id} has {text!r}")
        if not 1 <= int(match[1]) <= largest:
            raise SplitError(
                f"{protocol}: {record.video_id}: {column} must be 1 to {largest}, not {text!r}; "
                "for other data use holdout, leave_one_subject_out or column"
            )
        number_of[text] = int(match[1])
    return np.fromiter(map(number_of.__getitem__, texts), np.int64, len(texts))


def _kth_original(columns: Columns, options: SplitOptions) -> list[Fold]:
    """Persons 2, 3, 5 to 10 and 22 test, the other 16 train and validate.

    Source: Schuldt 2004, which has 8 for training and 8 for validation.
    """
    return [_fold(_numbers(columns, "subject", 25, "kth_original"), KTH_TEST_PERSONS)]


def _kth_random5(columns: Columns, options: SplitOptions) -> list[Fold]:
    """Five random draws of 9 test persons out of 25; with fewer persons, the same proportion.

    Source: Baccouche 2011, section 4.
    """
    import numpy

    persons = _numbers(columns, "subject", 25, "kth_random5")
    there = numpy.unique(persons).tolist()
    rng = numpy.random.default_rng(options.seed)
    draws = [set(rng.choice(there, round(len(there) * 9 / 25), replace=False).tolist()) for _ in range(5)]
    return [_fold(persons, draw) for draw in draws]


def _official_lists(columns: Columns) -> list[Fold]:
    folds = []
    for column in ("x_split1", "x_split2", "x_split3"):
        if any(column in record.extra for record in columns.records):
            texts = cells(columns.records, column)
            folds.append(Fold(_rows_with(texts, "train"), _rows_with(texts, "test")))
    return folds


def _ucf101(columns: Columns, options: SplitOptions) -> list[Fold]:
    """The three official splits; without the official lists, split i tests groups 7i-6 to 7i, which is the same.

    Source: Soomro 2012.
    """
    if folds := _official_lists(columns):
        return folds
    groups = _numbers(columns, "group", 25, "ucf101")
    return [_fold(groups, range(7 * i - 6, 7 * i + 1)) for i in (1, 2, 3)]


def _hmdb51(columns: Columns, options: SplitOptions) -> list[Fold]:
    """The three official splits; needs the official lists.

    Source: Kuehne 2011.
    """
    folds = _official_lists(columns)
    if not folds:
        raise SplitError("hmdb51 needs the official lists: `har manifest build hmdb51 ROOT --splits FOLDER`")
    return folds


def _xsub(columns: Columns, options: SplitOptions) -> list[Fold]:
    """NTU RGB+D cross-subject: the 20 official subjects of 40 train (NTU RGB+D 120 has another list).

    Source: Shahroudy 2016.
    """
    subjects = _numbers(columns, "subject", 40, "xsub")
    return [_fold(subjects, set(range(1, 41)) - NTU_TRAIN_SUBJECTS)]


def _xview(columns: Columns, options: SplitOptions) -> list[Fold]:
    """NTU RGB+D cross-view: cameras 2 and 3 train, camera 1 tests.

    Source: Shahroudy 2016.
    """
    return [_fold(_numbers(columns, "camera", 3, "xview"), {1, 2, 3} - NTU_TRAIN_CAMERAS)]


def _leave_one_out(columns: Columns, column: Literal["subject", "group"]) -> list[Fold]:
    import numpy as np

    texts = cells(columns.records, column)
    values = sorted(set(texts))
    if "" in values:
        nameless = [record.video_id for record, text in zip(columns.records, texts, strict=True) if not text]
        raise SplitError(
            f"leave_one_{column}_out needs column {column!r} in every row of the manifest; "
            f"{len(nameless)} of {len(texts)} have none: {first_few(nameless)}"
        )
    if len(values) < 2:
        raise SplitError(f"leave_one_{column}_out needs at least two {column}s; found only {', '.join(values)!r}")
    number = {value: place for place, value in enumerate(values)}
    numbers = np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))
    return [_fold(numbers, (place,)) for place in range(len(values))]


def _leave_one_group_out(columns: Columns, options: SplitOptions) -> list[Fold]:
    """One split for each group of the manifest, which tests that group."""
    return _leave_one_out(columns, "group")


def _leave_one_subject_out(columns: Columns, options: SplitOptions) -> list[Fold]:
    """One split for each subject of the manifest, which tests that subject."""
    return _leave_one_out(columns, "subject")


def _group_kfold(columns: Columns, options: SplitOptions) -> list[Fold]:
    """--num-folds splits of whole subjects, groups and files, stratified by class.

    Source: scikit-learn's StratifiedGroupKFold.
    """
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    rows = np.arange(len(columns.records))
    groups = columns.units(rows, SOURCES)
    count = int(groups.max()) + 1
    if not 2 <= options.num_folds <= count:
        units = counted(count, "subject, group or file", "subjects, groups or files")
        raise SplitError(f"group_kfold: cannot make {options.num_folds} folds of {units}")
    folds = StratifiedGroupKFold(options.num_folds, shuffle=True, random_state=options.seed)
    with warnings.catch_warnings():
        # scikit-learn warns of classes with fewer videos than folds; they are just absent from some test sides.
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = list(folds.split(rows, [record.label for record in columns.records], groups))
        except ValueError as error:
            raise SplitError(f"group_kfold: no class has {options.num_folds} videos, one per fold") from error
    return [Fold(train, test) for train, test in found]


def _holdout(columns: Columns, options: SplitOptions) -> list[Fold]:
    """One split of whole subjects, groups and files; --test-fraction of every class tests."""
    import numpy as np

    rows = np.arange(len(columns.records))
    return [
        Fold(*take_share(columns, rows, options.test_fraction, options.seed, "holdout", SOURCES, "another protocol"))
    ]


def _column(columns: Columns, options: SplitOptions) -> list[Fold]:
    """The train, val and test videos that the manifest column --column names; other values are not used."""
    if options.column != "split" and not options.column.startswith("x_"):
        raise SplitError(f"the protocol column reads column split or one that starts with x_, not {options.column!r}")
    texts = cells(columns.records, options.column)
    values = set(texts)
    if not {"train", "test"} <= values:
        found = f"found: {sorted(values - {''})[:6]}" if values - {""} else "it is empty"
        way_out = "; write test in the place of val to test on those videos" if {"train", "val"} <= values else ""
        raise SplitError(f"column {options.column!r} must contain train and test; {found}{way_out}")
    return [Fold(*(_rows_with(texts, part) for part in ("train", "test", "val")))]


def _all(columns: Columns, options: SplitOptions) -> list[Fold]:
    """All videos train and none tests: for a final model, whose accuracy is not measured."""
    import numpy as np

    rows = np.arange(len(columns.records))
    return [Fold(rows, rows[:0])]


PROTOCOLS: dict[str, Protocol] = {
    "kth_original": Protocol(_kth_original, copies_apart=False),
    "kth_random5": Protocol(_kth_random5, copies_apart=False),
    "ucf101": Protocol(_ucf101, copies_apart=False),
    # Its lists keep the clips of one film together within a class, but not from one class to another.
    "hmdb51": Protocol(
        _hmdb51,
        test_apart=("subject", "group of class", "file"),
        val_apart=("subject", "group of class", "file"),
        copies_apart=False,
    ),
    "xsub": Protocol(_xsub, copies_apart=False),
    # All cameras film the same performances.
    "xview": Protocol(_xview, test_apart=("file",), copies_apart=False),
    # One person may act in several groups, so groups are all that can be kept apart.
    "leave_one_group_out": Protocol(_leave_one_group_out, test_apart=("group", "file"), val_apart=("group", "file")),
    "leave_one_subject_out": Protocol(_leave_one_subject_out),
    "group_kfold": Protocol(_group_kfold, reads=("num_folds",)),
    "holdout": Protocol(_holdout, reads=("test_fraction",)),
    "column": Protocol(_column, reads=("column",)),
    "all": Protocol(_all, tests=False),
}


def has_test_part(protocol: str) -> bool:
    """Return whether splits of a protocol test videos; those of the user's own always do."""
    return protocol not in PROTOCOLS or PROTOCOLS[protocol].tests


# What else protocols are called.
_OTHER_NAMES = {
    **dict.fromkeys(("loso", "lopo", "leave_one_person_out", "leave_one_actor_out"), "leave_one_subject_out"),
    **dict.fromkeys(("logo", "leave_one_sequence_out", "leave_one_scene_out"), "leave_one_group_out"),
    **dict.fromkeys(("cross_subject", "x_sub", "cs"), "xsub"),
    **dict.fromkeys(("cross_view", "x_view", "cv"), "xview"),
    **dict.fromkeys(("kfold", "k_fold", "gkfold", "stratified_group_kfold"), "group_kfold"),
    **dict.fromkeys(("hold_out", "random"), "holdout"),
}


def protocol_name(name: str) -> str:
    """Return the name in `PROTOCOLS` of a protocol that may be called otherwise, such as `loso` or `cross-subject`.

    Raises: UsageError with the names, if there is none.
    """
    plain = name.strip().lower().replace("-", "_")
    found = _OTHER_NAMES.get(plain, plain)
    if found not in PROTOCOLS:
        raise UsageError(unknown("protocol", name, PROTOCOLS))
    return found
