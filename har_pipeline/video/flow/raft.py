"""torchvision's RAFT (Teed and Deng 2020): its two nets and their weights, for frames of any size."""

from __future__ import annotations

import functools
import urllib.error
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.files import cached_weights, file_sha256
from har_pipeline.video.flow.spec import RAFT_URLS, published_digits

# The feature maps are an eighth of the frame, and their correlation is halved three times: to no less than 2 px.
STRIDE_PX, MIN_SIDE_PX = 8, 128


@functools.lru_cache(maxsize=2)
def load_raft(method: str, weights: str | None, device: torch.device) -> nn.Module:
    """Return `raft_small` or `raft_large` on the device, ready to run; the last two are cached.

    weights: a local file, `random` (seed 0), or None for torchvision's, cached or downloaded, with their hash checked.
    Raises: WeightsError if the file is missing, damaged or of another net, or cannot be downloaded.
    """
    from torchvision.models.optical_flow import raft_large, raft_small

    build = {"raft_small": raft_small, "raft_large": raft_large}[method]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = build(weights=None)
    if weights != "random":
        path = Path(weights).expanduser() if weights is not None else published_raft(method)
        try:
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # the reader raises whatever a damaged byte leads it to
            reason = str(error).strip().split("\n")[0][:200]
            raise WeightsError(f"{path}: not the weights of {method} ({reason})") from error
    return net.to(device).eval()


def published_raft(method: str) -> Path:
    """Return torchvision's weights file, downloaded if it is not in the cache, its hash checked. Raises: WeightsError."""
    url, digits = RAFT_URLS[method], published_digits(method)
    path = cached_weights(url.rsplit("/", 1)[1])
    if not path.exists():
        try:
            # Writes to another name, checks the hash, then renames.
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise WeightsError(
                f"{method}: cannot download {url} ({error}). Download it on another machine and give the file as RAFT's "
                f"weights, or put it at {path}"
            ) from error
    if not file_sha256(path).startswith(digits):
        raise WeightsError(f"{path}: its sha256 does not begin with the published {digits}: delete it and try again")
    return path


def raft_flow(net: nn.Module, first: torch.Tensor, second: torch.Tensor, num_updates: int) -> torch.Tensor:
    """Return the flow (P, H, W, 2) float32 px of RGB frames (P, H, W, 3) uint8 on the net's device.

    Frames are padded with their border's pixels to a multiple of 8 px, at least 128 px, and the flow is cut out again.
    """
    height, width = first.shape[1:3]
    rows, columns = (max(-(-side // STRIDE_PX) * STRIDE_PX, MIN_SIDE_PX) - side for side in (height, width))
    top, left = rows // 2, columns // 2
    with torch.inference_mode():
        images = [
            F.pad(
                frames.permute(0, 3, 1, 2).float() / 127.5 - 1,
                (left, columns - left, top, rows - top),
                mode="replicate",
            )
            for frames in (first, second)
        ]
        flow = net(*images, num_flow_updates=num_updates)[-1]
        flow = flow[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
    return flow.clone()
