"""Everything that needs a GPU, in one command: the CUDA tests, then the benchmarks that have a GPU side. Prints JSON.

Each part is a command of its own with a time limit; one that fails or runs out of time costs its own figures only, and the
end of what it printed stands in the result. The limits of all parts are 8 minutes together, and what has not begun after
`--minutes` is left out. Weights are random, which changes no timing; videos are rendered; no network is needed: `make
gpu-bundle` collects the wheels of what a machine with PyTorch lacks. `--out` has what is known after each part, for when the
machine is taken away. `--dry-run` does the same on the CPU, with sizes whose figures mean nothing.

    build/gpu-bundle/install python3
    PYTHONPATH=build/gpu-bundle/site python3 benchmarks/gpu.py --out gpu.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]

# Of torchvision, or ours: no other package is needed.
NETS = ("vgg16", "tsn_resnet50", "i3d", "r3d_18", "s3d", "swin3d_t")

# The packages of a machine with a GPU are rarely the versions that our own runs use: their warnings are no faults of ours.
LENIENT = ("-o", "filterwarnings=default", "--continue-on-collection-errors")


def parts(dry: bool) -> dict[str, tuple[int, list[str]]]:
    """Return the time limit in seconds and the command of each part."""
    device = ["--device", "cpu" if dry else "cuda"]
    few = ["--rounds", "1"] if dry else ["--rounds", "5"]
    small = ["--network", "convlstm-stateful", "--batch", "1"] if dry else []
    tests = ["-m", "pytest", "-q", "-m", "needs_cuda", "-p", "no:cacheprovider", *LENIENT, *cuda_tests()]
    # Enough that starting the workers, about two seconds a round, is a small part.
    videos = ["--rounds", "1", "--videos", "1"] if dry else ["--rounds", "3", "--videos", "360"]
    net = "efficientnet_lite0" if dry else "vgg16"
    # Most of the time is OpenCV's, half a second a pair.
    pairs = ["--rounds", "1", "--pairs", "1"] if dry else ["--rounds", "2", "--pairs", "32"]
    table = ["--videos", "20", "--clips", "4", "--dim", "8", "--loader-workers", "0"] if dry else ["--videos", "4000"]
    loaders = [] if dry else ["--loader-workers", "0", "8"]
    return {
        "tests": (60, tests),
        "extract": (120, ["benchmarks/extract.py", "--extractor", net, *videos, *device]),
        "flow": (90, ["benchmarks/flow.py", *pairs, *device, *(["--eager"] * dry)]),
        "train": (60, ["benchmarks/train.py", *few, *table, *loaders, *device]),
        "nets": (60, ["benchmarks/nets.py", *device, "--nets", *((net,) if dry else NETS)]),
        "convlstm": (90, ["benchmarks/convlstm.py", *few, *device, *small]),
    }


def cuda_tests() -> list[str]:
    """Return the files of tests that have tests for CUDA: the others may import what such a machine lacks."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.needs_cuda" in path.read_text(encoding="utf-8")
    ]


def run(command: list[str], limit: float) -> dict[str, Any]:
    """Return what one part printed, and how it ended."""
    started = time.perf_counter()
    # The checkout, whether it is installed or not.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile() as out_file, tempfile.TemporaryFile() as err_file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=out_file,
            stderr=err_file,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:  # its workers would go on using the device
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out, err = _text(out_file), _text(err_file)
    found: dict[str, Any] = {"command": " ".join(command), "seconds": round(time.perf_counter() - started, 1)}
    try:
        found["result"] = json.loads(out)
    except ValueError:
        found["printed"] = out[-1500:]
    if code != 0:
        found["error"] = err[-1500:]
    return {**found, "exit_code": code, "note": "out of time" if code is None else ""}


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--out", type=Path, help="also write the result here, after each part")
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
        # A dry run tells whether the parts work, on whatever machine.
        result["parts"][name] = run(command, left if args.dry_run else min(limit, left))
        if args.out:
            args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
