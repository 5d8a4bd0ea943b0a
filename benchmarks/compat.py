"""Install the wheel in a fresh environment of each Python, with the oldest and the newest versions it may meet, and use it.

    python benchmarks/compat.py [--write docs/compatibility.md]

`make compat` runs this. Needs uv, the package registry, some 25 GB of disk and a few minutes for each environment. The sdist is
built first, the wheel from the sdist. Each environment then renders the embedded data set, extracts, trains, evaluates and
predicts, from a folder outside the checkout; a warning counts as a failure. An environment is deleted before the next is made;
what uv has downloaded stays in its cache. Prints JSON, and progress on stderr; exit code 1 if a job failed or none ran.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OLDEST = int(PROJECT["requires-python"].removeprefix(">=3."))
# As far as one looks for a Python that torch has wheels for.
NEWEST = 20
VIDEO = "data/boxing/person01_boxing_d1_uncomp.avi"
STEPS = {
    "render": "synth data --subjects 3 --scenario d1 --depth",
    "extract": "extract data/manifest.csv store.zarr --sampling first --num-clips 8 --device cpu",
    "train": "train data/manifest.csv store.zarr --features eff --head lstm --units 16 --epochs 5 --device cpu -o run",
    "train a support vector machine": "train data/manifest.csv store.zarr --features eff --head svm --device cpu -o svm",
    "reduce": "features reduce store.zarr --manifest data/manifest.csv --features eff --dim 4",
    "frames": "frames data/manifest.csv frames.zarr --fps 3 --size 48",
    "train on raw depth": "train-video data/manifest.csv --store frames.zarr --epochs 1 --width 0.25 --device cpu -o raw",
    "evaluate": "evaluate run",
    "fuse": "fuse run svm -o fused",
    "predict": f"predict {VIDEO} --run run --picture top.png --device cpu",
    "verify": "features verify store.zarr",
}


@dataclass(slots=True)
class Job:
    """One environment: a Python, the versions taken, and what came of it."""

    python: str
    # lowest: of each direct dependency the lowest version declared; newest: the newest that the registry serves.
    versions: str
    result: str = ""
    seconds: float = 0.0
    # Of the direct dependencies.
    packages: dict[str, str] = field(default_factory=dict)


class Failed(Exception):
    """What a command printed last before it failed."""


def call(command: Sequence[str | Path], cwd: Path, environment: dict[str, str]) -> str:
    """Return a command's stdout. Raises: Failed if it ends with an error or warns."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    warned = next((line for line in done.stderr.splitlines() if re.search(r"\w+Warning\b", line)), "")
    if done.returncode or warned:
        raise Failed(warned or (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2])
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page to write the table to")
    parser.add_argument(
        "--only", help="run the jobs of this Python alone, such as 3.11; with :lowest or :newest one of them"
    )
    options = parser.parse_args()
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        sys.exit("needs uv: pip install uv")
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HAR_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # processes that share cores lose more to waiting threads than they gain
    environment["PATH"] = os.pathsep.join([*pyenv_folders(), environment["PATH"]])
    with tempfile.TemporaryDirectory(prefix="har-compat-") as folder:
        work = Path(folder)
        call([uv, "build", "--quiet", "--out-dir", work / "dist", ROOT], work, environment)
        jobs = [Job(f"3.{minor}", "newest") for minor in served(uv, environment)]
        jobs = [
            job for job in (Job(f"3.{OLDEST}", "lowest"), *jobs) if options.only in (None, job.python, name_of(job))
        ]
        for job in jobs:
            started = time.perf_counter()
            try:
                run(uv, job, next((work / "dist").glob("*.whl")), work, environment)
                job.result = "passed"
            except Failed as reason:
                job.result = f"{reason}"
            job.seconds = round(time.perf_counter() - started, 1)
            print(
                f"Python {job.python}, {job.versions}: {job.result} ({job.seconds:.0f} s)", file=sys.stderr, flush=True
            )
            for made in ("environment", "outside"):
                shutil.rmtree(work / made, ignore_errors=True)
    print(json.dumps([asdict(job) for job in jobs], indent=2))
    if options.write is not None:
        options.write.write_text(page(jobs), encoding="utf-8")
    ran = [job for job in jobs if not job.result.startswith("not run")]
    if not ran or any(job.result != "passed" for job in ran):
        sys.exit(1)


def pyenv_folders() -> list[str]:
    """Return the folders of pyenv's interpreters, of which its own `python3.12` finds only those in use."""
    if not shutil.which("pyenv"):
        return []
    root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
    return [str(path) for path in sorted(Path(root, "versions").glob("3.*/bin"))]


def name_of(job: Job) -> str:
    return f"{job.python}:{job.versions}"


def served(uv: str, environment: dict[str, str]) -> list[int]:
    """Return the minor versions of Python from the oldest supported on that the registry serves wheels of torch for."""
    found = []
    for minor in range(OLDEST, NEWEST):
        command = [
            uv,
            "pip",
            "compile",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--python-version",
            f"3.{minor}",
            "-",
        ]
        if subprocess.run(
            command, input="torch", env=environment, text=True, capture_output=True, check=False
        ).returncode:
            break
        found.append(minor)
    return found


def run(uv: str, job: Job, wheel: Path, work: Path, environment: dict[str, str]) -> None:
    """Make the environment of a job and use the wheel in it. Raises: Failed."""
    python = work / "environment/bin/python"
    try:
        call([uv, "venv", "--quiet", "--python", job.python, work / "environment"], work, environment)
    except Failed:
        raise Failed(f"not run: no interpreter of Python {job.python} here") from None
    job.python = call([python, "-c", "import platform; print(platform.python_version())"], work, environment).strip()
    resolution = "lowest-direct" if job.versions == "lowest" else "highest"
    compiled: list[str | Path] = [
        uv,
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--python",
        python,
        "--resolution",
        resolution,
    ]
    # A file of each job's own: uv keeps to the versions of one that exists.
    versions = work / f"{job.python}-{job.versions}.txt"
    call([*compiled, ROOT / "pyproject.toml", "-o", versions], work, environment)
    install: list[str | Path] = [uv, "pip", "install", "--quiet", "--python", python]
    call([*install, "-r", versions], work, environment)
    call([*install, "--no-deps", wheel], work, environment)
    listed = json.loads(call([uv, "pip", "list", "--quiet", "--format", "json", "--python", python], work, environment))
    direct = {re.split(r"[<>=;\[ ]", text)[0] for text in PROJECT["dependencies"]}
    job.packages = {row["name"]: row["version"] for row in listed if row["name"] in direct}
    outside = work / "outside"
    outside.mkdir()
    for step, arguments in STEPS.items():
        try:
            call([python.with_name("har"), *arguments.split()], outside, environment)
        except Failed as reason:
            raise Failed(f"{step}: {reason}") from reason


def page(jobs: list[Job]) -> str:
    """Return docs/compatibility.md."""
    ran = [job for job in jobs if job.packages]
    names = sorted({name for job in ran for name in job.packages})
    lines = [
        "# Compatibility",
        "",
        f"What `make compat` found for har_pipeline {PROJECT['version']} on {platform.system()} ({platform.machine()}). It",
        "builds the sdist, and the wheel from that, installs the wheel in a fresh environment of each Python, and renders,",
        "extracts, trains, evaluates and predicts there, from another folder.",
        "",
        "| Python | versions | result | seconds |",
        "|---|---|---|---|",
        *(f"| {job.python} | {job.versions} | {job.result} | {job.seconds:.0f} |" for job in jobs),
        "",
        "*lowest*: of each direct dependency the lowest version that pyproject.toml allows; *newest*: what the registry served",
        "on the day of the run.",
        "",
        "| package | " + " | ".join(f"{job.python}, {job.versions}" for job in ran) + " |",
        "|---" * (1 + len(ran)) + "|",
        *(f"| {name} | " + " | ".join(job.packages.get(name, "") for job in ran) + " |" for name in names),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
