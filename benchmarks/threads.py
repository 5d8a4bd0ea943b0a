"""CPU and wall seconds of a training step with one thread and with all cores, alone and beside other load. Prints JSON.

The step is one of the stateful ConvLSTM, `--width` times the paper's size. The load is one process that computes without
end. Thread counts take turns, `--rounds` times after one to warm up; medians.

    python benchmarks/threads.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from har_pipeline import build_network, keep_freed_memory


def compute_without_end() -> None:
    while True:
        pass


@contextmanager
def other_load(processes: int) -> Iterator[None]:
    busy = [multiprocessing.get_context("spawn").Process(target=compute_without_end) for _ in range(processes)]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def measure(width: float, rounds: int, cores: int) -> dict[str, dict[str, float]]:
    """Return for each number of threads the median CPU and wall seconds of a step."""
    torch.manual_seed(0)
    network = build_network("convlstm-stateful", 27, width=width)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    clips, labels = torch.rand(6, network.clip_len, 1, 64, 64), torch.arange(6)

    def step() -> None:
        logits, _ = network(clips)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    seconds: dict[int, list[tuple[float, float]]] = {1: [], cores: []}
    for _ in range(rounds + 1):
        for threads, found in seconds.items():
            torch.set_num_threads(threads)
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            found.append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        str(threads): {
            what: round(statistics.median(one[place] for one in found[1:]), 3)
            for place, what in enumerate(("cpu_s", "wall_s"))
        }
        for threads, found in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    result: dict[str, object] = {"benchmark": "threads", "width": args.width, "cores": cores}
    for processes, name in ((0, "alone"), (1, "beside_one_process")):
        with other_load(processes):
            found = measure(args.width, args.rounds, cores)
        ratio = found[str(cores)]["cpu_s"] / found["1"]["cpu_s"]
        result[name] = {"threads": found, "cpu_of_all_cores_to_one_thread": round(ratio, 2)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
