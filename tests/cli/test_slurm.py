"""The example of a job array: what it runs is a command line of ours, and the parts are all videos, once each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import typer
from paths import ROOT

from har_pipeline.cli import app_of
from har_pipeline.cli.options import parse_shard
from har_pipeline.core.records import VideoRecord
from har_pipeline.features.job import shard_of
from har_pipeline.features.options import JobOptions

SCRIPT = ROOT / "docs" / "slurm_extract.sh"


def submitted(folder: Path, number: int, first: int = 1, count: int = 3, code: int = 0) -> list[str]:
    """Return the words that the script runs as task `number` of an array of `count` tasks from `first` to 3; of none: 0."""
    (folder / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "srun").chmod(0o755)
    array = {"ID": number, "MIN": first, "MAX": 3, "COUNT": count} if count else {}
    done = subprocess.run(
        ["bash", str(SCRIPT), "my manifest.csv", "store.zarr", "--extractor", "i3d", "--num-clips", "2"],
        env={
            **os.environ,
            **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()},
            "PATH": f"{folder}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return (done.stdout or done.stderr).splitlines()


@pytest.mark.skipif(os.name != "posix", reason="a script of bash")
def test_the_job_array_s_command_line_is_ours(tmp_path: Path) -> None:
    records = [VideoRecord(video_id=f"v{number}", label="a", path=Path(f"{number}.avi")) for number in range(10)]
    taken: list[str] = []
    for number in (1, 2, 3):
        program, command, *words = submitted(tmp_path, number)
        assert (program, command) == ("har", "extract")
        extract = typer.main.get_command(app_of()).commands["extract"]  # type: ignore[attr-defined]
        given = extract.make_context("extract", words).params
        assert (str(given["manifest"]), str(given["store"]), given["extractor"]) == (
            "my manifest.csv",
            "store.zarr",
            ["i3d"],
        )
        taken += [one.video_id for one in shard_of(records, JobOptions(shard=parse_shard(given["shard"])))]
    assert sorted(taken) == [one.video_id for one in records]


def test_an_array_that_would_leave_videos_out_is_refused(tmp_path: Path) -> None:
    told = ["submit an array that is numbered from 1 without gaps: --array=1-N"]
    assert submitted(tmp_path, 0, first=0, code=2) == told
    assert submitted(tmp_path, 1, count=2, code=2) == told  # --array=1,3 or 1-3:2
    assert submitted(tmp_path, 1, count=0, code=2) == told  # no array at all


@pytest.mark.skipif(os.name != "posix", reason="a script of bash")
def test_a_word_that_is_missing_is_told_with_the_usage() -> None:
    for words in ([], ["manifest.csv"]):
        done = subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, check=False)
        told = "usage: sbatch --array=1-N slurm_extract.sh MANIFEST STORE [OPTIONS OF har extract]\n"
        assert (done.returncode, done.stderr) == (2, told)
