"""Run a command that prints JSON, and keep what it printed in `benchmarks/results`, with command, commit and machine.

    python benchmarks/record.py extract_vgg16 python benchmarks/extract.py --extractor vgg16

Refuses a working tree with changes in what is measured: the commit would not say what ran.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def machine() -> str:
    """Return processor, number of cores, GPU and versions in a line."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    features = torch.backends.cpu.get_cpu_capability()
    return f"{cores} cores, {names[0] if names else platform.machine()} ({features}), {gpu}, torch {torch.__version__}"


def _of_project(part: str) -> bool:
    """Whether a word of the command names no file outside this project."""
    return "/" not in part or (ROOT / part).resolve().is_relative_to(ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the result: benchmarks/results/NAME.json")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, with its options; prints JSON")
    options = parser.parse_args()
    name, command = options.name, options.command
    if not command:
        parser.error("name the command that prints the result")
    git = ["git", "-C", str(ROOT)]
    changed = subprocess.check_output([*git, "status", "--porcelain", "har_pipeline", "pipelines", "benchmarks/*.py"])
    if changed:
        sys.exit("commit first: the working tree differs from the commit that the result would name")
    commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
    output = subprocess.check_output(command, text=True, cwd=ROOT)
    # Where a user keeps the data is no part of the result.
    words = [part if _of_project(part) else f"<{Path(part).name}>" for part in command]
    shown = " ".join(f"'{word}'" if " " in word else word for word in words)
    content = {"command": shown, "commit": commit, "machine": machine(), "result": json.loads(output)}
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
