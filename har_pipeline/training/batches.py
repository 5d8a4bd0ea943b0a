"""Features as padded batches and raw frames as clips, gathered on the device if they fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from har_pipeline.features.table import MEMORY_FRACTION, FeatureTable
from har_pipeline.models.device import in_float64
from har_pipeline.models.heads.classifier import SequenceClassifier
from har_pipeline.video.clips import sparse_clip_indices

# Batches of a shuffled set hold videos of similar length, sorted within pools of this many batches.
POOLED_BATCHES = 8

# Videos that are scored at once, and of token features the most values of them: 256 MiB in float32.
EVAL_BATCH_SIZE, EVAL_BATCH_VALUES = 64, 2**26


def resident_features(
    table: FeatureTable, device: torch.device, memory_fraction: float = MEMORY_FRACTION
) -> tuple[torch.Tensor, bool]:
    """Return the table's features, on the device if they take no more than a fraction of its free memory, and whether."""
    flat, resident = torch.from_numpy(table.features), device.type == "cpu"
    if device.type == "cuda":
        resident = table.features.nbytes <= memory_fraction * torch.cuda.mem_get_info(device)[0]
    return flat.to(device) if resident else flat, resident


class Frames:
    """The frames of a table's videos, on the device if they fit there, otherwise in the host's memory.

    table: features (sum L, H * W * C) uint8; shape: (C, H, W). What a batch needs is gathered as uint8, and made float on
    the device.
    """

    def __init__(self, table: FeatureTable, shape: tuple[int, int, int], device: torch.device) -> None:
        self.device, self.shape = device, shape
        self.lengths = table.lengths
        self._starts = table.offsets[:-1]
        self.labels = torch.from_numpy(table.labels).to(device)
        self._flat, self.resident = resident_features(table, device)

    def clips(self, rows: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        """Return (B, T, C, H, W) float32 in [0, 1]: of each video in `rows` (B,) the frames `indices` (B, T)."""
        channels, height, width = self.shape
        places = torch.from_numpy(self._starts[rows][:, None] + indices).flatten()
        pixels = self._flat[places.to(self._flat.device, non_blocking=True)].to(self.device, non_blocking=True)
        frames = pixels.view(*indices.shape, height, width, channels).movedim(-1, 2)
        return frames.to(torch.float32).div_(255)


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """B videos of up to Nmax clips."""

    # (B, Nmax, D) float32, zeros after a video's end; of M tokens a clip (B, Nmax * M, D).
    features: torch.Tensor
    # (B,) int64 clips (or tokens) of each video, on the CPU.
    lengths: torch.Tensor
    # (B,) int64 class numbers.
    labels: torch.Tensor


class FeatureBatches:
    """A table's features where batches are made of them: on the device if they fit there, otherwise in the host's memory.

    On the device an epoch copies nothing but indices; `resident` tells which of the two it is.
    """

    def __init__(
        self, table: FeatureTable, device: torch.device | str = "cpu", *, memory_fraction: float = MEMORY_FRACTION
    ) -> None:
        self.device = torch.device(device)
        self._rows_per_clip = table.rows_per_clip
        self._starts = torch.from_numpy(table.offsets[:-1]) // table.rows_per_clip
        self._lengths, self._labels = torch.from_numpy(table.lengths), torch.from_numpy(table.labels)
        flat, self.resident = resident_features(table, self.device, memory_fraction)
        self._flat = flat.view(-1, table.rows_per_clip * table.feature_dim)

    @property
    def scored_at_once(self) -> int:
        """How many videos to score at once: 64, or fewer if they have so many tokens that a batch would fill the memory."""
        longest = int(self._lengths.max()) if len(self._lengths) else 1
        if self._rows_per_clip == 1:
            return EVAL_BATCH_SIZE
        return max(1, min(EVAL_BATCH_SIZE, EVAL_BATCH_VALUES // max(1, longest * self._flat.shape[1])))

    def batches(
        self,
        batch_size: int,
        *,
        rows: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        jitter: float = 0.0,
        crop: float = 0.0,
        num_steps: int | None = None,
    ) -> Iterator[FeatureBatch]:
        """Yield the videos `rows` (default: all) in batches; shuffled when a generator is given, in order otherwise.

        Features become float32 after they were gathered. With jitter, which needs a generator, each video keeps
        ceil((1 - jitter) N) of its clips, drawn at random and left in order. With crop, which needs one too, it keeps
        ceil((1 - crop) N) clips in a row from a random place, and of these `num_steps` evenly spaced ones. Large sets are
        shuffled so that videos of like length share a batch: less of it is padding.
        """
        chosen = torch.arange(len(self._labels)) if rows is None else torch.from_numpy(np.asarray(rows, np.int64))
        for batch in _batch_rows(chosen, self._lengths, batch_size, generator):
            lengths = self._lengths[batch]
            if jitter and generator is not None:
                step, lengths = _kept_clips(lengths, jitter, generator)
            elif crop and generator is not None:
                step, lengths = _sub_videos(lengths, crop, num_steps, generator)
            else:
                step = torch.arange(int(lengths.max())).expand(len(batch), -1)
            valid = torch.arange(step.shape[1]) < lengths[:, None]
            index = self._starts[batch][:, None] + torch.where(valid, step, 0)
            features = self._flat[index.flatten().to(self._flat.device, non_blocking=True)].view(*index.shape, -1)
            features = features.to(self.device, torch.float32)
            if not valid.all():
                features *= valid[..., None].to(self.device, non_blocking=True)
            labels = self._labels[batch].to(self.device, non_blocking=True)
            if self._rows_per_clip > 1:
                features = features.view(len(batch), index.shape[1] * self._rows_per_clip, -1)
            yield FeatureBatch(features, lengths * self._rows_per_clip, labels)


def _batch_rows(
    chosen: torch.Tensor, lengths: torch.Tensor, batch_size: int, generator: torch.Generator | None
) -> Sequence[torch.Tensor]:
    if generator is None:
        return chosen.split(batch_size)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    pool = POOLED_BATCHES * batch_size
    # In a small set the batches would be sorted by length as a whole, and so in part by class.
    if len(chosen) < 2 * pool or bool((lengths[chosen] == lengths[chosen[0]]).all()):
        return chosen.split(batch_size)
    by_length = torch.cat([part[lengths[part].argsort(stable=True)] for part in chosen.split(pool)])
    batches = by_length.split(batch_size)
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]


def _kept_clips(lengths: torch.Tensor, jitter: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, Nmax') the numbers of the clips that are kept, in order, and how many each video keeps."""
    longest = int(lengths.max())
    kept = _share(lengths, 1 - jitter)
    keys = torch.rand(len(lengths), longest, generator=generator)
    keys[torch.arange(longest) >= lengths[:, None]] = 2.0
    drawn = keys.argsort(dim=1)[:, : int(kept.max())]
    drawn[torch.arange(drawn.shape[1]) >= kept[:, None]] = longest
    return drawn.sort(dim=1).values, kept


def _sub_videos(
    lengths: torch.Tensor, crop: float, num_steps: int | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, Nmax') the numbers of the clips of a sub-video of each video, and how many each has."""
    kept = _share(lengths, 1 - crop)
    starts = (torch.rand(len(lengths), generator=generator, dtype=torch.float64) * (lengths - kept + 1)).long()
    if num_steps is None:
        return starts[:, None] + torch.arange(int(kept.max())), kept
    taken = [torch.from_numpy(sparse_clip_indices(number, num_steps)) for number in kept.tolist()]
    return starts[:, None] + torch.stack(taken), torch.full_like(kept, num_steps)


def _share(lengths: torch.Tensor, share: float) -> torch.Tensor:
    return (share * lengths.double() - 1e-9).ceil().long().clamp(min=1)


@torch.inference_mode()
def class_probabilities(head: SequenceClassifier, batches: Iterable[FeatureBatch], videos: int) -> np.ndarray:
    """Return (V, K) float64 probabilities, rows summing to 1, in the batches' order; the head is put in eval mode.

    videos: V, of all batches.
    """
    head.eval()
    # One array for all: a small one beside each batch would keep the C library from using the batch's memory again.
    found, done = np.empty((videos, head.classifier.out_features)), 0
    for batch in batches:
        part = in_float64(head(batch.features, batch.lengths)).softmax(dim=1).cpu().numpy()
        found[done : done + len(part)] = part
        done += len(part)
    assert done == videos
    return found
