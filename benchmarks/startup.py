"""CPU and wall seconds from a command's start to its end, beside those of Python with torch alone. Prints JSON.

Each command is a process of its own; they take turns, `--rounds` times after one to warm up; medians. The CPU seconds are those
of its workers too. The video is a small one that `har synth` draws; weights are random where they would be downloaded.

- `har --help`, `har models`;
- `extract, all there`: into a store that has everything already, with EfficientNet-Lite0 and with VGG16;
- `extract, one video`: into a new store;
- `python`, `import typer`, `import torch`, `import torchvision`: what such a start takes at least.

    python benchmarks/startup.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HAR = [sys.executable, "-m", "har_pipeline"]
NETS = {"Lite0": ["efficientnet_lite0"], "VGG16": ["vgg16", "--weights", "random"]}


def seconds_of(command: list[str], cwd: Path) -> tuple[float, float]:
    """Return the CPU and wall seconds of a command and of what it started."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def extraction(net: str, store: str) -> list[str]:
    return [*HAR, "extract", "one.csv", store, "--extractor", *NETS[net], "--device", "cpu", "--num-clips", "4"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import typer": [sys.executable, "-c", "import typer, typer.rich_utils"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import torchvision": [sys.executable, "-c", "import torchvision"],
        "har --help": [*HAR, "--help"],
        "har models": [*HAR, "models"],
        **{f"extract, all there, {net}": extraction(net, "full.zarr") for net in NETS},
        **{f"extract, one video, {net}": extraction(net, f"new-{net}.zarr") for net in NETS},
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subprocess.run(
            [*HAR, "synth", "drawn", "--subjects", "1", "--scenario", "d1"], cwd=work, check=True, capture_output=True
        )
        lines = next((work / "drawn").glob("*.csv")).read_text(encoding="utf-8").splitlines()
        (work / "drawn/one.csv").write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
        work = work / "drawn"
        for net in NETS:
            subprocess.run(extraction(net, "full.zarr"), cwd=work, check=True, capture_output=True)
        for number in range(rounds + 1):
            for name, command in commands.items():
                for net in NETS:
                    shutil.rmtree(work / f"new-{net}.zarr", ignore_errors=True)
                seconds = seconds_of(command, work)
                if number:
                    found[name].append(seconds)
    medians = {
        name: {
            "cpu_s": round(statistics.median(cpu for cpu, _ in seconds), 3),
            "wall_s": round(statistics.median(wall for _, wall in seconds), 3),
        }
        for name, seconds in found.items()
    }
    every = {name: [round(cpu, 3) for cpu, _ in seconds] for name, seconds in found.items()}
    print(json.dumps({"benchmark": "startup", "rounds": rounds, "medians": medians, "all_cpu_s": every}, indent=2))


if __name__ == "__main__":
    main()
