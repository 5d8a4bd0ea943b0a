"""CPU and wall seconds of a training step with one thread and with all cores, alone and beside other load. Prints JSON.

The step is one of the stateful ConvLSTM, `--width` times the paper's size; or with `--net` the forward pass of a net that
extracts features, its weights random. The load is one process that computes without end. `spinning`: threads that wait as
OpenMP has them wait by default, in a loop, in place of asleep, as `har` has them. Each way is a process of its own, as that is
settled when torch is loaded; they take turns, `--rounds` times, of `--steps` steps each after two to warm up; medians.

    python benchmarks/threads.py --rounds 5
    python benchmarks/threads.py --rounds 5 --net efficientnet_lite0
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from har_pipeline import keep_freed_memory, let_idle_threads_sleep

# What GNU's OpenMP takes by itself where there are no more threads than cores.
OPENMPS_OWN = "300000"


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


def training_step(width: float) -> Callable[[], object]:
    import torch
    from torch.nn import functional as F

    from har_pipeline import build_network

    torch.manual_seed(0)
    network = build_network("convlstm-stateful", 27, width=width)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    clips, labels = torch.rand(6, network.clip_len, 1, 64, 64), torch.arange(6)

    def step() -> None:
        logits, _ = network(clips)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def forward_pass(net: str) -> Callable[[], object]:
    import torch

    from har_pipeline import build_extractor

    extractor = build_extractor(net, weights="random", device="cpu")
    clip_len = extractor.input.clips.clip_len
    clips = torch.zeros(max(1, 16 // clip_len), clip_len, *extractor.input.shape, 3, dtype=torch.uint8)
    return lambda: extractor(clips)


def work(args: argparse.Namespace) -> dict[str, list[float]]:
    """Return the CPU and wall seconds of each step in this process."""
    let_idle_threads_sleep()
    import torch

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    step = forward_pass(args.net) if args.net else training_step(args.width)
    found: dict[str, list[float]] = {"cpu_s": [], "wall_s": []}
    for number in range(args.steps + 2):
        cpu, wall = time.process_time(), time.perf_counter()
        step()
        if number >= 2:
            found["cpu_s"].append(time.process_time() - cpu)
            found["wall_s"].append(time.perf_counter() - wall)
    return found


def measure(ways: dict[str, tuple[int, dict[str, str]]], rounds: int) -> dict[str, dict[str, float]]:
    """Return for each way the median CPU and wall seconds of a step."""
    seconds: dict[str, dict[str, list[float]]] = {way: {"cpu_s": [], "wall_s": []} for way in ways}
    for _ in range(rounds):
        for way, (threads, environment) in ways.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--threads", str(threads)]
            output = subprocess.check_output(command, text=True, env={**os.environ, **environment})
            for what, values in json.loads(output).items():
                seconds[way][what] += values
    return {
        way: {what: round(statistics.median(all_of), 4) for what, all_of in own.items()} for way, own in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--net", default="", help="measure this net's forward pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        print(json.dumps(work(args)))
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ways: dict[str, tuple[int, dict[str, str]]] = {
        "1": (1, {}),
        str(cores): (cores, {}),
        f"{cores}, spinning": (cores, {"GOMP_SPINCOUNT": OPENMPS_OWN}),
    }
    result: dict[str, object] = {"benchmark": "threads", "cores": cores}
    result |= {"net": args.net} if args.net else {"width": args.width}
    for processes, name in ((0, "alone"), (1, "beside_one_process")):
        with other_load(processes):
            found = measure(ways, args.rounds)
        ratio = {way: round(own["cpu_s"] / found["1"]["cpu_s"], 2) for way, own in found.items()}
        result[name] = {
            "threads": found,
            "cpu_of_all_cores_to_one_thread": ratio[str(cores)],
            "cpu_to_one_thread": ratio,
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
