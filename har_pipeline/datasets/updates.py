"""A manifest that was edited by hand, brought up to date with its videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.manifests import NUMBER_COLUMNS, TEXT_COLUMNS, TIME_COLUMNS

_TEXTS = ("label", *TEXT_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestUpdate:
    """The rows of an updated manifest, and what became of those before."""

    # Rows that stay, in their order, then new ones.
    records: tuple[VideoRecord, ...]
    # Ids of new videos, and of rows whose video is gone.
    added: tuple[str, ...]
    removed: tuple[str, ...]
    # Ids of rows that stay with another path.
    moved: tuple[str, ...]
    # Column -> rows whose cell stays although the data set's rule says something else.
    edited: dict[str, int]


def update_records(before: Sequence[VideoRecord], built: Sequence[VideoRecord]) -> ManifestUpdate:
    """Return the rows of a manifest after its videos have changed.

    before: the rows there were, maybe edited by hand; built: those that a builder makes of the videos there are. A row of
    before stays if its file is still there, or a row of its id whose file has moved: as it is, but for its paths, and for
    columns that no row filled before, which are filled. A file that was divided into several rows stays divided.
    """
    by_id = {record.video_id: record for record in built}
    of_file: dict[object, list[VideoRecord]] = {}
    for record in built:
        of_file.setdefault(_file(record), []).append(record)

    def built_row(old: VideoRecord) -> VideoRecord | None:
        there = of_file.get(_file(old), [])
        same = [new for new in there if new.describe_span() == old.describe_span()]
        same = same or [new for new in there if new.video_id == old.video_id or len(there) == 1]
        same.sort(key=lambda new: new.video_id != old.video_id)  # two labels of one part are two rows
        return next(iter(same), None) if there else by_id.get(old.video_id)

    pairs = [(old, built_row(old)) for old in before]
    filled = {name for name in _TEXTS if any(getattr(old, name) for old in before)}
    filled |= {name for old in before for name in old.extra}
    kept = [(old, _merged(old, new, filled), new) for old, new in pairs if new is not None]
    met = {new.video_id for _, _, new in kept}
    added = [record for record in built if record.video_id not in met]
    edited = Counter(name for _, row, new in kept for name in _differing(row, new))
    return ManifestUpdate(
        records=(*(row for _, row, _ in kept), *added),
        added=tuple(record.video_id for record in added),
        removed=tuple(old.video_id for old, new in pairs if new is None),
        moved=tuple(old.video_id for old, row, _ in kept if _file(old) != _file(row)),
        edited=dict(edited),
    )


def _file(record: VideoRecord) -> object:
    return record.path or record.depth_path


def _merged(old: VideoRecord, new: VideoRecord, filled: Collection[str]) -> VideoRecord:
    """Return the old row with the new one's paths, and its cells of the columns that are not in `filled`."""
    changes: dict[str, Any] = {name: getattr(new, name) for name in _TEXTS if name not in filled}
    extra = {**{name: value for name, value in new.extra.items() if name not in filled}, **old.extra}
    return replace(old, path=new.path, depth_path=new.depth_path, extra=extra, **changes)


def _differing(row: VideoRecord, new: VideoRecord) -> list[str]:
    """Return the columns in which a row differs from what the rule says of its video."""
    names = [
        name for name in (*_TEXTS, *NUMBER_COLUMNS, *TIME_COLUMNS) if getattr(new, name)
    ]  # else the rule says nothing
    own = [name for name, value in new.extra.items() if row.extra.get(name) != value]
    return [name for name in names if getattr(row, name) != getattr(new, name)] + own
