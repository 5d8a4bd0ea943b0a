"""The benchmarks of training run at small sizes and print the measures that the README quotes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from experiments import BENCHMARKS, load
from paths import ROOT
from raw_runs import make_depth_set


def run(*command: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_load() -> None:
    result = run("benchmarks/load.py", "--videos", "12", "--clips", "3", "--dim", "8", "--rounds", "1")
    assert result["bit_equal"] is True
    assert set(result["median_seconds"]) == {"store", "pack", "npy_files", "read_once", "store_reads", "zarr_arrays"}
    ratio = result["median_seconds"]["store"] / result["median_seconds"]["pack"]
    assert abs(result["store_over_pack"] - ratio) < 0.01


def test_train() -> None:
    small = ("--videos", "12", "--clips", "3", "--dim", "8", "--rounds", "1", "--units", "4", "--loader-workers", "0")
    result = run("benchmarks/train.py", *small, "--head", "lstm", "--device", "cpu")
    median = result["median_seconds"]
    assert set(median) == {"ours", "limit", "usual, 0 workers"}
    assert abs(result["ours_over_limit"] - median["ours"] / median["limit"]) < 0.001


def test_live(tmp_path: Path) -> None:
    result = run("benchmarks/live.py", str(make_depth_set(tmp_path).train()), "--minutes", "2", "--fps", "2")
    assert result["windows"] == 2 * 60 * 2 // 8
    assert result["finite"] is True
    assert result["peak_mib_last_minute"] >= result["peak_mib_first_minute"] > 0


def test_durability() -> None:
    result = run("benchmarks/durability.py", "--videos", "3", "--clips", "2", "--dim", "8", "--rounds", "1")
    assert set(result["commit_ms"]) == {"fsync", "none"}
    # Each of the three is rounded to 0.001.
    ratio = result["commit_ms"]["fsync"] / result["commit_ms"]["none"]
    assert result["commit_ratio"] == pytest.approx(ratio, rel=0.01, abs=0.001)


def test_record_tells_its_usage() -> None:
    command = [sys.executable, "benchmarks/record.py"]
    told = subprocess.run([*command, "--help"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert "usage:" in told
    for arguments in ([], ["name"]):
        failed = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True, cwd=ROOT)
        assert failed.returncode == 2
        assert "usage:" in failed.stderr
        assert "Traceback" not in failed.stderr


def test_what_needs_a_gpu_takes_eight_minutes_at_most_and_a_part_that_fails_costs_itself_only(tmp_path: Path) -> None:
    gpu = load("gpu", BENCHMARKS)
    parts = gpu.parts(dry=False)
    assert sum(limit for limit, _ in parts.values()) == 8 * 60
    (tests,) = [command for name, (_, command) in parts.items() if name == "tests"]
    assert "tests/models/convlstm/test_fused.py" in tests
    assert all((ROOT / name).is_file() for name in tests if name.startswith("tests"))
    assert list(gpu.parts(dry=True)) == list(parts)
    pid = tmp_path / "pid"
    for code, expected in {
        "print('{\"a\": 1}')": {"result": {"a": 1}, "exit_code": 0},
        "import sys; print('half'); sys.exit('why')": {"printed": "half\n", "error": "why\n", "exit_code": 1},
        "import os; os.abort()": {"printed": "", "exit_code": -6},
        f"import os, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(pid)!r}, 'w').write(str(p.pid)); print('so far', flush=True); time.sleep(600)": {
            "printed": "so far\n",
            "exit_code": None,
            "note": "out of time",
        },
    }.items():
        found = gpu.run(["-c", code], 30 if "600" not in code else 5)
        assert {key: found.get(key) for key in expected} == expected, found
    # The child of what ran out of time has ended as well.
    if pid.exists():
        psutil.wait_procs([one for one in psutil.process_iter() if one.pid == int(pid.read_text())], timeout=60)
        assert not psutil.pid_exists(int(pid.read_text())) or psutil.Process(int(pid.read_text())).status() == "zombie"


def test_the_tests_are_found_without_xdist() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--collect-only", "-q", "tests/test_no_pickle.py"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def test_without_keras_the_other_rival_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    convlstm = load("convlstm", BENCHMARKS)
    monkeypatch.setattr(convlstm, "find_spec", lambda name: None)
    runs = convlstm.build_runs("convlstm-stateful", 1, "cpu")
    assert runs.keys() == {(who, precision) for who in ("ours", "steps") for precision in ("fp32", "bf16")}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_each_part_that_needs_a_gpu_runs_on_the_cpu(tmp_path: Path) -> None:
    result = run("benchmarks/gpu.py", "--dry-run", "--minutes", "60", "--out", str(tmp_path / "gpu.json"))
    assert {name: (part["exit_code"], "result" in part) for name, part in result["parts"].items()} == {
        "tests": (0, False),
        **dict.fromkeys(("extract", "flow", "train", "nets", "convlstm"), (0, True)),
    }
    assert json.loads((tmp_path / "gpu.json").read_text()) == result
    extract = result["parts"]["extract"]["result"]
    assert {"engine_fp32", "limit_fp32", "decode"} <= set(extract["frames_per_s"])
    assert extract["start_s"] > 0


def test_the_papers_epochs_are_chosen_by_held_out_groups_among_those_that_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    papers = importlib.import_module("papers_real")
    # Head -> training accuracy from each epoch on; held-out accuracy falls from 1.
    heads = {"early": {1: 1.0}, "late": {1: 0.5, 9: 0.94, 17: 0.96}}

    def train(data: Any, epochs: int) -> None:
        for head, steps in heads.items():
            for fold in range(2):
                folder = data.out / head / f"split{fold}"
                folder.mkdir(parents=True)
                rows = ["epoch,learning_rate,train_loss,train_accuracy,val_loss,val_accuracy,seconds"]
                for epoch in range(1, epochs + 1):
                    accuracy = steps[max(start for start in steps if start <= epoch)]
                    rows.append(f"{epoch},0.001,1.0,{accuracy},1.0,{1 - epoch / 100},0.1")
                (folder / "history.csv").write_text("\n".join(rows) + "\n")

    def chosen(folder: str, *tried: int) -> Any:
        data = papers.lakhal2018.Data(tmp_path / folder, None, [], [])
        return papers.Task(data, data, "features", (1,), tried, (), "cpu").enough_epochs("lstm", train)

    # In epochs 9 and 10 the late head knows 94 %, and the held-out groups are best after them.
    epochs, rows = chosen("enough", 10, 20, 40)
    assert epochs == 20
    assert [(row["epochs"], round(row["training, least"], 3), round(row["held out"], 3)) for row in rows] == [
        (10, 0.94, 0.9),
        (20, 0.96, 0.8),
        (40, 0.96, 0.6),
    ]
    assert chosen("too few", 5, 10)[0] == 10
