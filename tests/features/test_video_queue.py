"""Who gets which video, and what becomes of the videos of workers that die."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from decode_tasks import task_for

from har_pipeline.core.records import ClipSpec
from har_pipeline.features.video_queue import AHEAD, MAX_LOSSES, VideoQueue
from har_pipeline.video.clip_worker import View
from har_pipeline.video.process import Task


def tasks(count: int) -> list[Task]:
    return [
        Task(
            video_id=f"v{number}",
            path=Path(f"v{number}.avi"),
            start_frame=0,
            end_frame=None,
            time_limit_s=1.0,
            memory_limit_gb=1.0,
        )
        for number in range(count)
    ]


def ids(gifts: Sequence[Task | None]) -> list[str | None]:
    return [gift and gift.video_id for gift in gifts]


def test_workers_take_videos_in_order_and_finish_at_the_end() -> None:
    queue = VideoQueue(tasks(5))
    queue.join("a")
    queue.join("b")
    assert ids(queue.to_give("a")) == ["v0", "v1"]
    assert ids(queue.to_give("b")) == ["v2", "v3"]
    assert queue.to_give("a") == []
    queue.begun("a", "v0")
    # The last one: who has it finishes what it has, and so does every other.
    assert ids(queue.to_give("a")) == ["v4", None]
    assert ids(queue.to_give("b")) == [None]
    for worker, video_id in (("a", "v1"), ("a", "v4"), ("b", "v2"), ("b", "v3")):
        queue.begun(worker, video_id)
    for worker, video_id in (("a", "v4"), ("a", "v0"), ("a", "v1"), ("b", "v2"), ("b", "v3")):
        assert not queue.over
        queue.finished(worker, video_id, 0)
    assert not queue.over  # they have not said so
    assert queue.idle("a") == queue.idle("b") == []
    assert queue.over
    assert queue.to_give("a") == []


def test_a_lost_worker_costs_no_video() -> None:
    queue = VideoQueue(tasks(4))
    queue.join("a")
    queue.to_give("a")
    queue.begun("a", "v0")
    assert ids(queue.to_give("a")) == ["v2"]
    assert queue.lost("a", "killed") == []
    # Those it had not begun with are as if nothing had happened, in their order; the other one is done alone, last.
    queue.join("b")
    assert ids(queue.to_give("b")) == ["v1", "v2"]
    queue.begun("b", "v1")
    queue.begun("b", "v2")
    assert ids(queue.to_give("b")) == ["v3", None]
    queue.begun("b", "v3")
    for video_id in ("v1", "v2", "v3"):
        queue.finished("b", video_id, 0)
    assert queue.idle("b") == []
    assert ids(queue.to_give("b")) == ["v0", None]
    queue.begun("b", "v0")
    queue.finished("b", "v0", 0)
    assert queue.idle("b") == []
    assert queue.over


def test_a_worker_lost_at_its_start_had_nothing() -> None:
    queue = VideoQueue(tasks(1))
    assert queue.lost("never ready", "killed") == []
    assert not queue.over


def test_a_video_that_kills_its_workers_fails_alone() -> None:
    queue = VideoQueue(tasks(9))
    done: set[str] = set()
    failed = {}
    deaths = 0
    while not queue.over:
        worker = f"worker {deaths}"
        queue.join(worker)
        had: list[str] = []
        while not queue.over:
            gifts = queue.to_give(worker)
            for gift in filter(None, gifts):
                queue.begun(worker, gift.video_id)
                had.append(gift.video_id)
            if "v4" in had:
                deaths += 1
                failed |= {one.task.video_id: one.reason for one in queue.lost(worker, "signal 11")}
                break
            for video_id in had:
                queue.finished(worker, video_id, 0)
                done.add(video_id)
            had = []
            if None in gifts:
                assert queue.idle(worker) == []
    assert deaths == MAX_LOSSES
    assert done == {f"v{number}" for number in range(9)} - {"v4"}
    assert failed == {"v4": "v4.avi: 3 workers that worked on it died, the last one: signal 11"}


def test_what_a_worker_says_nothing_of_is_done_again() -> None:
    queue = VideoQueue(tasks(1))
    queue.join("a")
    for time in range(MAX_LOSSES):
        assert ids(queue.to_give("a")) == ["v0", None]
        queue.begun("a", "v0")
        lost = queue.idle("a")
        assert [one.task.video_id for one in lost] == ["v0"] * (time == MAX_LOSSES - 1)
    assert queue.over


def test_only_the_feature_sets_that_lack_a_video_are_made_again() -> None:
    clips = ClipSpec(sampling="uniform", num_clips=2)
    views = tuple(View(lane, clips, "stretch-32", flow=False, whole=False) for lane in range(3))
    task = task_for(Path("v.avi"), clips, views=views)
    queue = VideoQueue([task])
    queue.join("a")
    queue.to_give("a")
    queue.begun("a", task.video_id)
    queue.finished("a", task.video_id, 1)
    queue.lost("a", "killed")
    queue.join("b")
    again, end = queue.to_give("b")
    assert again is not None
    assert [view.lane for view in again.views] == [0, 2]  # type: ignore[attr-defined]
    assert end is None
    queue.finished("b", task.video_id, 0)
    queue.finished("b", task.video_id, 2)
    queue.idle("b")
    assert queue.over


@pytest.mark.parametrize("seed", range(20))
def test_every_video_ends_once_whatever_happens(seed: int) -> None:
    """Workers begin, finish, come and go at random; a dead one never had more than one video that it had not begun with."""
    rng = random.Random(seed)
    queue = VideoQueue(tasks(30))
    inboxes: dict[int, list[Task | None]] = {}
    begun: dict[int, list[str]] = {}
    ended: list[str] = []
    losses = {f"v{number}": 0 for number in range(30)}
    names = iter(range(10_000))
    while not queue.over:
        if len(inboxes) < 3:
            name = next(names)
            queue.join(name)
            inboxes[name], begun[name] = [], []
        name = rng.choice(list(inboxes))
        inboxes[name] += queue.to_give(name)
        assert sum(gift is not None for gift in inboxes[name]) <= AHEAD
        what = rng.random()
        if what < 0.03:
            for video_id in begun[name]:
                losses[video_id] += 1
            ended += [one.task.video_id for one in queue.lost(name, "killed")]
            del inboxes[name], begun[name]
        elif what < 0.5 and inboxes[name] and inboxes[name][0] is not None:
            gift = inboxes[name].pop(0)
            assert gift is not None
            queue.begun(name, gift.video_id)
            begun[name].append(gift.video_id)
        elif begun[name]:
            video_id = begun[name].pop(rng.randrange(len(begun[name])))
            queue.finished(name, video_id, 0)
            ended.append(video_id)
        elif inboxes[name] == [None]:
            inboxes[name].clear()
            assert queue.idle(name) == []
    assert sorted(ended) == sorted(losses)
    assert max(losses.values()) <= MAX_LOSSES
