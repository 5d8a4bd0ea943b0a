from __future__ import annotations

import json
from pathlib import Path

from dataset_trees import tree
from typer.testing import CliRunner

from har_pipeline.cli import app
from har_pipeline.datasets.builders import build_manifest, left_out


def test_what_fits_no_rule_is_listed(tmp_path: Path) -> None:
    name = "S001C001P003R001A001"
    root = tree(
        tmp_path / "ntu",
        f"nturgb+d_depth_masked/{name}/MDepth-00000001.png",
        f"nturgb+d_depth_masked/{name}/notes.txt",
        f"nturgb+d_depth_masked/{name[:-3]}099_x/MDepth-00000001.png",
        f"nturgb+d_ir/deep/{name}_ir.avi",
        "readme.txt",
        ".hidden/readme.txt",
    )
    expected = [root / "nturgb+d_depth_masked" / f"{name[:-3]}099_x", root / "nturgb+d_ir", root / "readme.txt"]
    assert left_out(root, build_manifest("ntu", root)) == expected

    root = tree(tmp_path / "folder", "run/a.avi", "run/deep/a.txt", "run/a.txt", "jump/more/b.avi")
    (root / "walk").mkdir()
    (root / "run/also").symlink_to(root / "jump")
    records = build_manifest("folder", root)
    assert left_out(root, records) == [root / "run/a.txt", root / "run/deep", root / "walk"]
    assert left_out(root, records, known=(root / "walk", root / "run/a.txt", None)) == [root / "run/deep"]


def test_what_is_left_out_is_told_on_the_command_line(tmp_path: Path) -> None:
    root = tree(tmp_path, "a1_s1_t1_depth.mat", "a99_s1_t1_depth.mat")
    (root / "empty").mkdir()
    (root / "made").mkdir()
    command = ["manifest", "build", "utd_mhad", str(root), "-o", str(root / "made/manifest.csv")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        f"left out: {root}/a99_s1_t1_depth.mat: its name does not follow utd_mhad's rule",
        f"left out: {root}/empty: nothing in it is taken by utd_mhad's rule",
    ]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(done.stdout)["left_out"] == [f"{root}/a99_s1_t1_depth.mat", f"{root}/empty"]
