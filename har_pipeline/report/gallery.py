"""Which videos a report shows, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from har_pipeline.core.errors import HarError
from har_pipeline.core.records import Scores, VideoRecord
from har_pipeline.evaluation.categories import Grouping
from har_pipeline.evaluation.metrics import TOP
from har_pipeline.video.preview import preview

# The share of a gallery that is kept for videos that were classified right.
RIGHT_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A video of the gallery."""

    video_id: str
    label: str
    top: tuple[tuple[str, float], ...]  # the five most probable classes at most: (class, probability), best first
    right: bool  # whether the first of them is the label
    group: str  # coarse group of the label, or ""
    strip: bytes  # a JPEG filmstrip, at most 120 px high, evenly spaced frames side by side; b"" if there is a problem
    clip: bytes  # a short MP4 for browsers, see `video.preview`; b"" if not asked for, or there is a problem
    problem: str  # why there is no picture, "" otherwise


def shown_videos(
    scores: Scores,
    records: Mapping[str, VideoRecord],
    *,
    at_most: int = 24,
    clips: bool = True,
    grouping: Grouping | None = None,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> list[Shown]:
    """Return the videos to show: wrong ones first, the most confident mistakes first, then right ones, spread over the classes.

    scores: of one part; a video in several folds or repeats is shown once, as a mistake if it was one. records: video_id ->
    row of the manifest, where the files are looked for. A quarter of the places are for right ones, if there are so many.
    A video without record, or whose file is missing or broken, is listed with its problem. on_video: called with the videos
    done and their total.
    """
    rows, shown = chosen_rows(scores, at_most=at_most), []
    for done, row in enumerate(rows):
        on_video(done, len(rows))
        shown.append(_shown(scores, row, records, clips=clips, grouping=grouping))
    return shown


def chosen_rows(scores: Scores, *, at_most: int) -> list[int]:
    """Return the row numbers of the videos that `shown_videos` shows, in its order."""
    best = scores.probabilities.argmax(axis=1)
    confidence = scores.probabilities.max(axis=1)
    wrong: dict[str, int] = {}
    right: dict[str, int] = {}
    order = sorted(range(len(best)), key=lambda row: (-confidence[row], scores.video_ids[row]))
    for row in order:
        found = right if scores.classes[best[row]] == scores.labels[row] else wrong
        found.setdefault(scores.video_ids[row], row)
    mistakes = list(wrong.values())
    others = _spread([row for video_id, row in right.items() if video_id not in wrong], scores.labels)
    kept_for_right = min(len(others), int(RIGHT_SHARE * at_most))
    mistakes = mistakes[: max(0, at_most - kept_for_right)]
    return [*mistakes, *others[: max(0, at_most - len(mistakes))]]


def _spread(rows: Sequence[int], labels: Sequence[str]) -> list[int]:
    """Return rows in turns over their classes, which are in alphabetical order."""
    by_class: dict[str, list[int]] = {}
    for row in rows:
        by_class.setdefault(labels[row], []).append(row)
    turns = [(turn, label, row) for label, own in by_class.items() for turn, row in enumerate(own)]
    return [row for _, _, row in sorted(turns)]


def _shown(
    scores: Scores, row: int, records: Mapping[str, VideoRecord], *, clips: bool, grouping: Grouping | None
) -> Shown:
    values = scores.probabilities[row]
    order = sorted(range(len(values)), key=lambda k: -values[k])[:TOP]
    video_id, label = scores.video_ids[row], scores.labels[row]
    strip, clip, problem = b"", b"", ""
    record = records.get(video_id)
    if record is None:
        problem = "the manifest does not list it"
    else:
        try:
            pictures = preview(record, clip=clips)
            strip, clip = pictures.strip, pictures.clip
        except (HarError, OSError, ValueError, MemoryError) as error:
            problem = str(error) or type(error).__name__
    return Shown(
        video_id=video_id,
        label=label,
        top=tuple((scores.classes[k], float(values[k])) for k in order),
        right=scores.classes[order[0]] == label,
        group=grouping.group_of.get(label, "") if grouping else "",
        strip=strip,
        clip=clip,
        problem=problem,
    )
