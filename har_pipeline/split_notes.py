"""What a reader should know of the splits that were chosen: sentences, without the files or options around them."""

from __future__ import annotations

from collections.abc import Sequence

from har_pipeline.core.records import Split, VideoRecord

LISTED_AT_MOST = 5


def unused_videos(splits: Sequence[Split], records: Sequence[VideoRecord]) -> list[str]:
    """Return a sentence on the manifest's videos that stand in no part of any of the splits, if there are such."""
    used = {video_id for split in splits for part in (split.train, split.val, split.test) for video_id in part}
    unused = [record.video_id for record in records if record.video_id not in used]
    if not unused:
        return []
    first = splits[0]
    where = f"{first.protocol} split {first.index}" if len(splits) == 1 else f"{len(splits)} splits of {first.protocol}"
    listed = ", ".join(unused[:LISTED_AT_MOST]) + ", ..." * (len(unused) > LISTED_AT_MOST)
    return [f"{len(unused)} of {len(records)} videos of the manifest are in no part of {where}: {listed}"]


def odd_validation_share(splits: Sequence[Split], fraction: float) -> list[str]:
    """Return a sentence if the validation videos are far from the share of the training side that was asked for.

    fraction: in [0, 1). Far is less than half of it or more than one and a half times, and two videos at least.
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
    more = f" (in {len(odd)} of {len(splits)} splits the share is far from it)" * (len(splits) > 1)
    return [
        f"--val-fraction {fraction:g}: {held} of {side} training videos ({100 * held / side:.0f} %){where} are for "
        f"validation, for subjects and groups stay whole{more}"
    ]


def unread_column(splits: Sequence[Split], records: Sequence[VideoRecord]) -> list[str]:
    """Return a sentence if the manifest's column `split` names train and test videos and none of the splits tests those.

    splits: all of a protocol.
    """
    train, test = ({record.video_id for record in records if record.split == part} for part in ("train", "test"))
    if not train or not test or any(set(split.test) == test for split in splits):
        return []
    return ["the manifest's column split names train and test videos: --protocol column uses it"]
