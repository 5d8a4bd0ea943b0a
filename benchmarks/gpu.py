"""Everything that needs a GPU, in one command: the CUDA tests, then the benchmarks that have a GPU side. Prints JSON.

Each part is a command of its own with a time limit; one that fails or runs out of time costs its own figures only, and the
end of what it printed stands in the result. Weights are random, which changes no timing; videos are rendered. Takes up to
`--minutes`, and leaves out what has not begun by then; needs no network. `--dry-run` does the same on the CPU, with sizes
whose figures mean nothing.

    python benchmarks/gpu.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Of torchvision, or ours: no other package is needed.
NETS = ("vgg16", "tsn_resnet50", "i3d", "r3d_18", "s3d", "swin3d_t")

# The packages of a machine with a GPU are rarely the versions that our own runs use: their warnings are no faults of ours.
LENIENT = ("-o", "filterwarnings=default")


def parts(dry: bool) -> dict[str, tuple[int, list[str]]]:
    """Return the time limit in seconds and the command of each part."""
    device = ["--device", "cpu" if dry else "cuda"]
    few = ["--rounds", "1"] if dry else ["--rounds", "5"]
    small = ["--network", "convlstm-stateful", "--batch", "1"] if dry else []
    tests = ["-m", "pytest", "-q", "-m", "needs_cuda", "-p", "no:cacheprovider", *LENIENT, "tests"]
    # Enough that starting the workers, about two seconds a round, is a small part.
    videos = ["--rounds", "1", "--videos", "2"] if dry else ["--rounds", "3", "--videos", "360"]
    # Most of the time is OpenCV's, half a second a pair.
    pairs = ["--rounds", "1", "--pairs", "1"] if dry else ["--rounds", "2", "--pairs", "32"]
    table = ["--videos", "20", "--clips", "4", "--dim", "8", "--loader-workers", "0"] if dry else ["--videos", "4000"]
    loaders = [] if dry else ["--loader-workers", "0", "8"]
    return {
        **({} if dry else {"tests": (90, tests)}),
        "convlstm": (120, ["benchmarks/convlstm.py", *few, *device, *small]),
        "extract": (170, ["benchmarks/extract.py", "--extractor", "vgg16", *videos, *device]),
        "nets": (60, ["benchmarks/nets.py", *device, "--nets", *(NETS[:1] if dry else NETS)]),
        "flow": (150, ["benchmarks/flow.py", *pairs, *device, *(["--eager"] * dry)]),
        "train": (60, ["benchmarks/train.py", *few, *table, *loaders, *device]),
    }


def run(command: list[str], limit: float) -> dict[str, Any]:
    """Return what one part printed, and how it ended."""
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        code, out, err = None, _text(late.stdout), _text(late.stderr)
    found: dict[str, Any] = {"command": " ".join(command), "seconds": round(time.perf_counter() - started, 1)}
    try:
        found["result"] = json.loads(out)
    except ValueError:
        found["printed"] = out[-1500:]
    if code:
        found["error"] = err[-1500:]
    return {**found, "exit_code": code, "note": "out of time" if code is None else ""}


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--only", nargs="+", choices=tuple(parts(False)), help="some of the parts")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("no CUDA device; --dry-run tries the parts on the CPU")
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "device": "cpu" if args.dry_run else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "parts": {},
    }
    end = time.monotonic() + 60 * args.minutes
    for name, (limit, command) in parts(args.dry_run).items():
        left = end - time.monotonic()
        if (args.only and name not in args.only) or left < 1:
            continue
        print(name, file=sys.stderr, flush=True)
        result["parts"][name] = run(command, min(limit, left))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
