"""What a trained 3D-ConvNet sees: the maps of its first layer over clips of videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from har_pipeline.core.errors import RunError
from har_pipeline.evaluation.plots import save_maps
from har_pipeline.inference.load import NetworkRun, load_network
from har_pipeline.models.convlstm.networks import ClipVoter
from har_pipeline.models.convlstm.windows import voting_indices
from har_pipeline.video.contrast import local_contrast


def first_maps(run: NetworkRun | Path | str, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps (7, 48, 28) float32 of C1 at the middle of a video's middle clip, and its window (54, 34) uint8.

    run: of a 3D-ConvNet; windows: (L, 54 * 34) uint8, as stored for a video. Raises: RunError if the run is of another
    network.
    """
    found = load_network(run)
    if not isinstance(found.network, ClipVoter):
        raise RunError(f"{found.path}: {found.config.model} has no such maps; give a run of --model convnet3d")
    _, height, width = found.frame_shape
    clips = voting_indices(len(windows), found.network.clip_len, 1)
    clip = windows.reshape(-1, height, width)[clips[len(clips) // 2]]
    with torch.inference_mode():
        maps = found.network.net.c1(local_contrast(torch.from_numpy(clip)[None, None].float() / 255))[0]
    return maps[:, maps.shape[1] // 2].numpy(), clip[len(clip) // 2]


def save_first_maps(path: Path, run: NetworkRun | Path | str, videos: Mapping[str, np.ndarray]) -> None:
    """Draw the maps of C1 (PNG), a column for each video, below the window that they were made of.

    videos: title -> windows, as in `first_maps`. Source: Baccouche 2011, figure 2, which shows three maps and four actions.
    """
    network = load_network(run)
    found = [first_maps(network, windows) for windows in videos.values()]
    save_maps(path, [window for _, window in found], [maps for maps, _ in found], list(videos))
