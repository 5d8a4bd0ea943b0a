"""Optical flow from frame to frame, for descriptors that need it between all frames of a video."""

from __future__ import annotations

import cv2
import numpy as np

from har_pipeline.video.flow.spec import DIS_MIN_SIDES_PX

# What moves up to so many px/frame counts as not moving. Source: the public code of Wang 2013's dense trajectories.
STILL_PX = 0.4


def flow_method() -> cv2.DISOpticalFlow:
    """Return OpenCV's DIS (Kroeger 2016) down to single px, which no other thread may use at the same time.

    On rendered people, whose flow is exact, its error is smaller than that of Farneback's method, which the papers used.
    """
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setFinestScale(0)  # the preset stops at half the size, and misses forearms in frames of 160x120 px
    return method


def flow_between(method: cv2.DISOpticalFlow, before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Return where each px of `before` moves, (H, W, 2) float32 px, x then y.

    before, now: (H, W) uint8; frames that are too small for DIS are continued by their border.
    """
    height, width = before.shape
    shorter, longer = DIS_MIN_SIDES_PX
    add_y = max(0, (longer if height >= width else shorter) - height)
    add_x = max(0, (longer if width > height else shorter) - width)
    if add_x or add_y:
        before, now = (cv2.copyMakeBorder(grey, 0, add_y, 0, add_x, cv2.BORDER_REPLICATE) for grey in (before, now))
    return np.ascontiguousarray(method.calc(before, now, None)[:height, :width])  # type: ignore[call-overload]
