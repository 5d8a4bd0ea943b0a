"""Time of a training epoch on cached features, against its arithmetic and against the usual way. Prints JSON.

Features of UCF-101's size are drawn at random: 9,537 videos of 25 clips, 1,024 values each, float16 (`--videos` shrinks it).
Measured per epoch, the three in turn, `--rounds` times after one round to warm up:

- `ours`: `train_epoch`, as `har train` runs it: shuffled, gathered, float32, forward, backward, step, loss and accuracy;
- `limit`: forward, backward and step over the same number of batches already on the device as float32;
- `usual`: the same loop over a torch DataLoader that reads one .npy file per video, with the best of the worker counts
  tried (pinned memory and persistent workers where they apply); the files are in the page cache after the first round.

    python benchmarks/train.py --videos 600 --head res_lstm
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from har_pipeline import (
    FeatureBatch,
    FeatureBatches,
    FeatureTable,
    SequenceClassifier,
    TrainConfig,
    build_head,
    pick_device,
    train_epoch,
)

CLASSES = 101


class NpyFiles(Dataset[tuple[torch.Tensor, int]]):
    """One .npy file per video, as extraction scripts leave them."""

    def __init__(self, paths: list[Path], labels: np.ndarray) -> None:
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(np.load(self.paths[index])), int(self.labels[index])


def draw_table(videos: int, clips: int, dim: int) -> FeatureTable:
    rng = np.random.default_rng(0)
    features = np.empty((videos * clips, dim), np.float16)
    for start in range(0, len(features), 4096):
        part = features[start : start + 4096]
        part[:] = rng.standard_normal(part.shape, np.float32)
    offsets = clips * np.arange(videos + 1, dtype=np.int64)
    return FeatureTable(tuple(map(str, range(videos))), np.arange(videos) % CLASSES, features, offsets)


class Trainer:
    """A fresh head with its optimizer, and the plain loop over batches that `limit` and `usual` share."""

    def __init__(self, config: TrainConfig, dim: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.config, self.device = config, device
        self.head: SequenceClassifier = build_head(config.head_config, dim, CLASSES).to(device)
        self.optimizer = torch.optim.RMSprop(self.head.parameters(), lr=config.learning_rate, alpha=0.9, eps=1e-7)

    def step(self, features: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor) -> None:
        """Move the weights by one batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            log_probabilities = self.head(features, lengths)
        loss = nn.functional.nll_loss(log_probabilities, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def limit(self, batches: list[FeatureBatch], videos: int) -> None:
        """Train on batches that are on the device already, over and over until so many videos are done."""
        self.head.train()
        done = 0
        while done < videos:
            for batch in batches:
                self.step(batch.features, batch.lengths, batch.labels)
                done += len(batch.labels)
                if done >= videos:
                    break

    def usual(self, loader: DataLoader[tuple[torch.Tensor, int]]) -> None:
        """Train on what a DataLoader gives, one pass."""
        self.head.train()
        for features, labels in loader:
            moved = features.to(self.device, non_blocking=True).float()
            self.step(moved, torch.full((len(labels),), features.shape[1]), labels.to(self.device, non_blocking=True))


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def loaders_of(
    files: NpyFiles, batch_size: int, device: torch.device, worker_counts: list[int]
) -> dict[int, DataLoader[tuple[torch.Tensor, int]]]:
    pin = device.type == "cuda"
    return {
        count: DataLoader(
            files, batch_size, shuffle=True, num_workers=count, pin_memory=pin, persistent_workers=count > 0
        )
        for count in worker_counts
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    device = pick_device(args.device)
    config = TrainConfig(head=args.head, batch_size=args.batch_size, precision=args.precision, units=args.units)
    table = draw_table(args.videos, args.clips, args.dim)
    rows = np.arange(args.videos)
    data = FeatureBatches(table, device)
    # The limit goes over a few batches again and again: all of them as float32 would not fit into a laptop's memory.
    ready = [batch for number, batch in enumerate(data.batches(args.batch_size)) if number < args.ready_batches]
    paths = []
    for video in rows:
        paths.append(folder / f"{video}.npy")
        np.save(paths[-1], table.features[table.offsets[video] : table.offsets[video + 1]])
    loaders = loaders_of(NpyFiles(paths, table.labels), args.batch_size, device, args.loader_workers)
    ours, limit = Trainer(config, args.dim, device), Trainer(config, args.dim, device)
    usual = {count: Trainer(config, args.dim, device) for count in loaders}
    generator = torch.Generator().manual_seed(0)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: train_epoch(ours.head, ours.optimizer, data, rows, config, generator),
        "limit": lambda: limit.limit(ready, args.videos),
    }
    for count, loader in loaders.items():
        ways[f"usual, {count} workers"] = lambda count=count, loader=loader: usual[count].usual(loader)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, work in ways.items():
            cpu = time.process_time()
            elapsed = timed(work, device)
            if number:
                seconds[name].append(elapsed)
                cpu_seconds[name].append(time.process_time() - cpu)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best_usual = min(value for name, value in medians.items() if name.startswith("usual"))
    return {
        "benchmark": "train",
        "videos": args.videos,
        "clips": args.clips,
        "dim": args.dim,
        "head": dataclasses.asdict(config.head_config),
        "batch_size": args.batch_size,
        "precision": args.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "features_on_device": data.resident,
        "epoch_seconds": seconds,
        "median_seconds": medians,
        # Of this process: without those of the loader's workers.
        "median_cpu_seconds": {name: statistics.median(values) for name, values in cpu_seconds.items()},
        "ours_over_limit": round(medians["ours"] / medians["limit"], 3),
        "usual_over_ours": round(best_usual / medians["ours"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=9537)
    parser.add_argument("--clips", type=int, default=25)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--head", default="res_lstm")
    parser.add_argument("--units", type=int, default=TrainConfig().units)
    parser.add_argument("--batch-size", type=int, default=TrainConfig().batch_size)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ready-batches", type=int, default=40)
    parser.add_argument("--device", default="auto")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--loader-workers", type=int, nargs="+", default=sorted({0, max(1, cores // 2), cores}))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
