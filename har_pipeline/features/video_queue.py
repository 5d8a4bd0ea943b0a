"""The queue of videos that several workers take from: who has which video, and what becomes of those of a lost worker.

Plain bookkeeping: nothing here starts or waits for anything. A worker that is lost costs none of its videos. Those that it
had begun are done again, each alone on a worker and after all others, so that the next death can be blamed on one; a video
that was there at `MAX_LOSSES` deaths fails. Those that it was given ahead of time go back to where they were.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from har_pipeline.video.clip_worker import DecodeTask
from har_pipeline.video.process import Task

# Deaths of workers with the same video begun, after which it fails.
MAX_LOSSES = 3
# Videos given to a worker before it asks for them, so that it never waits.
AHEAD = 2


@dataclass(slots=True)
class _Given:
    """A video and the numbers of the feature sets that still wait for it."""

    task: Task
    lanes: set[int]
    begun: bool = False


@dataclass(slots=True)
class _Share:
    """What one worker has."""

    given: dict[str, _Given] = field(default_factory=dict)
    # It was told to finish what it has, and has not said that it did.
    finishing: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """A video that fails because its workers died."""

    task: Task
    lanes: frozenset[int]
    reason: str


class VideoQueue:
    """Hands tasks to workers, which are any hashable values."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._waiting = deque(tasks)
        self._alone: deque[Task] = deque()
        self._losses: dict[str, int] = {}
        self._shares: dict[Hashable, _Share] = {}

    @property
    def over(self) -> bool:
        """Whether no video waits, none is with a worker, and all workers have said that they have finished."""
        at_work = any(share.given or share.finishing for share in self._shares.values())
        return not (self._waiting or self._alone or at_work)

    def join(self, worker: Hashable) -> None:
        """Take a worker that is ready."""
        self._shares[worker] = _Share()

    def to_give(self, worker: Hashable) -> list[Task | None]:
        """Return what to send to a worker now: tasks, and None = finish those that you have, and say so."""
        share = self._shares[worker]
        if share.finishing:
            return []
        gifts: list[Task | None] = []
        ahead = sum(not one.begun for one in share.given.values())
        while self._waiting and ahead < AHEAD:
            gifts.append(_give(share, self._waiting.popleft()))
            ahead += 1
        if not self._waiting and self._alone and not share.given:
            gifts.append(_give(share, self._alone.popleft()))
        if share.given and not self._waiting:
            share.finishing = True
            gifts.append(None)
        return gifts

    def begun(self, worker: Hashable, video_id: str) -> None:
        """Note that a worker has begun with a video."""
        self._shares[worker].given[video_id].begun = True

    def finished(self, worker: Hashable, video_id: str, lane: int) -> None:
        """Note that a video needs no more work for one of its feature sets."""
        given = self._shares[worker].given
        given[video_id].lanes.discard(lane)
        if not given[video_id].lanes:
            del given[video_id]

    def idle(self, worker: Hashable) -> list[Lost]:
        """Note that a worker has finished what it had. What it has said nothing of counts as lost; see `lost`."""
        share = self._shares[worker]
        share.finishing = False
        left, share.given = share.given, {}
        return self._take_back(left.values(), "it said nothing of it")

    def lost(self, worker: Hashable, cause: str) -> list[Lost]:
        """Take back what a worker had that is gone; returns the videos that fail for it."""
        share = self._shares.pop(worker, _Share())
        return self._take_back(share.given.values(), cause)

    def _take_back(self, given: Iterable[_Given], cause: str) -> list[Lost]:
        failed = []
        for one in reversed(list(given)):
            again = _for_lanes(one.task, one.lanes)
            if not one.begun:
                self._waiting.appendleft(again)
                continue
            count = self._losses[one.task.video_id] = self._losses.get(one.task.video_id, 0) + 1
            if count < MAX_LOSSES:
                self._alone.append(again)
            else:
                reason = f"{one.task.path}: {count} workers that worked on it died, the last one: {cause}"
                failed.append(Lost(one.task, frozenset(one.lanes), reason))
        return failed


def _give(share: _Share, task: Task) -> Task:
    share.given[task.video_id] = _Given(task, _lanes_of(task))
    return task


def _lanes_of(task: Task) -> set[int]:
    return {view.lane for view in task.views} if isinstance(task, DecodeTask) else {0}


def _for_lanes(task: Task, lanes: set[int]) -> Task:
    """Return the task without the feature sets that have the video."""
    if not isinstance(task, DecodeTask):
        return task
    return dataclasses.replace(task, views=tuple(view for view in task.views if view.lane in lanes))
