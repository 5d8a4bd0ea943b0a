"""Runs decode tasks in a worker and collects the clips that it sends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from video_files import read_number

from har_pipeline.core.records import ClipSpec
from har_pipeline.video.clip_worker import Chunk, ClipPlan, DecodeTask, DecodeWorker, View

FRAME_BYTES = 160 * 160 * 3


def task_for(path: Path, clips: ClipSpec, **changes) -> DecodeTask:
    fields = {
        "video_id": path.stem,
        "path": path,
        "start_frame": 0,
        "end_frame": None,
        "fps": None,
        "views": (View(0, clips, "stretch-160"),),
        "decoder": "pyav",
        "time_limit_s": 60.0,
        "memory_limit_gb": 4.0,
        "max_frames": 100_000,
    }
    return DecodeTask(**{**fields, **changes})


def receive(worker: DecodeWorker):
    while (message := worker.receive()) is None:
        pass
    return message


def run(worker: DecodeWorker, task: DecodeTask):
    """Return (plans, clips, end): all plans, the last plan's clips as a list of (T, 160, 160, 3), the last message."""
    plans, clips = [], []
    worker.start(task)
    while True:
        message = receive(worker)
        if isinstance(message, ClipPlan):
            plans.append(message)
            clips = []
        elif isinstance(message, Chunk):
            assert np.prod(message.shape) <= worker.slots.shape[1]
            clips += list(worker.frames(message)[message.clips])
            worker.release(message.slot)
        else:
            return plans, clips, message


def numbers(clips) -> list[list[int]]:
    return [[read_number(frame) for frame in clip] for clip in clips]


def cut(task: DecodeTask, frames_per_slot: int = 5):
    worker = DecodeWorker(FRAME_BYTES * frames_per_slot)
    try:
        return run(worker, task)
    finally:
        worker.close()
