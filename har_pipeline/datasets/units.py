"""Videos of one origin: which sources they share, and drawing a share of them without separating any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from har_pipeline.core.errors import SplitError
from har_pipeline.core.records import VideoRecord

Source = Literal["subject", "group", "group of class", "file"]

# What two parts of a split do not share. Several rows of a manifest may be cut from one file.
SOURCES: tuple[Source, ...] = ("subject", "group", "file")


def source_of(record: VideoRecord, source: Source) -> str | None:
    """Return a video's subject, group or file, or None if the manifest does not tell."""
    if source == "file":
        return str(record.path or record.depth_path)
    if source == "group of class":
        return f"{record.label}/{record.group}" if record.group else None
    return record.subject if source == "subject" else record.group


def units(records: Sequence[VideoRecord], sources: Sequence[Source]) -> list[int]:
    """Return each record's unit number; records that share a source, directly or through others, are one unit."""
    unit = list(range(len(records)))

    def top(i: int) -> int:
        while unit[i] != i:
            unit[i] = unit[unit[i]]
            i = unit[i]
        return i

    for source in sources:
        first: dict[str, int] = {}
        for i, record in enumerate(records):
            value = source_of(record, source)
            if value is not None:
                unit[top(i)] = top(first.setdefault(value, i))
    number: dict[int, int] = {}
    return [number.setdefault(top(i), len(number)) for i in range(len(records))]


def take_share(
    side: Sequence[VideoRecord], fraction: float, seed: int, where: str, sources: Sequence[Source], way_out: str
) -> tuple[list[VideoRecord], list[VideoRecord]]:
    """Return (kept, taken): whole units, drawn at random, near the wanted share of every class.

    A unit is taken if that brings the counts per class nearer to `fraction` of each and leaves every class a kept
    video; if none does, the best of them is taken. Nothing is taken for 0.
    where, way_out: for the message of an error.
    Raises: SplitError if the share is outside [0, 1), or every unit is the only one of a class.
    """
    import numpy as np  # here: the CLI lists the protocols in its help, which waits for no numpy

    if not 0 <= fraction < 1:
        raise SplitError(f"{where}: the share must be in [0, 1), not {fraction:g}")
    side = sorted(side, key=lambda r: r.video_id)
    if fraction == 0:
        return side, []
    unit = np.array(units(side, sources))
    labels = np.unique([r.label for r in side], return_inverse=True)[1]
    counts = np.zeros((unit.max() + 1, labels.max() + 1))
    np.add.at(counts, (unit, labels), 1)
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
            raise SplitError(
                f"{where}: cannot divide {len(counts)} subjects, groups or files: each is the only one of a class; "
                f"use {way_out}"
            )
        chosen = [min(possible, key=lambda i: float(np.abs(counts[i] - wanted).sum()))]
    out = np.isin(unit, chosen)
    return [side[i] for i in np.flatnonzero(~out)], [side[i] for i in np.flatnonzero(out)]
