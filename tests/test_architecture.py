"""The dependency rules of the project: which module may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "har_pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Where a third-party package may be imported; a name ending in / is a folder.
ALLOWED = {
    "zarr": ("store.py", "feature_writer.py"),
    "typer": ("cli/",),
    "decord": ("video/",),
    "av": ("video/",),
    "cv2": ("video/", "synthetic.py", "synthetic_motion.py", "synthetic_scene.py"),
    "torchvision": ("extractors/", "video/"),
    "pytorchvideo": ("extractors/", "video/"),
    "matplotlib": ("report/",),
}
NO_TORCH = (
    "errors.py",
    "records.py",
    "manifests.py",
    "splits.py",
    "split_files.py",
    "split_notes.py",
    "clips.py",
    "feature_writer.py",
    "store.py",
    "source_files.py",
    "raw_frames.py",
    "packed_store.py",
    "pack.py",
    "video/",
    "synthetic",
    "cli/",
)
# Flow is computed where the net is, not in the decode workers.
FLOW = ("video/flow.py", "video/flow_video.py", "video/raft.py", "video/tvl1.py")


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path, *, everywhere: bool = True) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name.startswith(place) if place.endswith("/") else name == place for place in places)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_packages_are_imported_where_they_belong(path: Path) -> None:
    for name in {module.split(".")[0] for module in imports(path)} & ALLOWED.keys():
        assert within(relative(path), ALLOWED[name]), f"{relative(path)} imports {name}"


def test_heads_never_import_extractors() -> None:
    for path in MODULES:
        if relative(path).startswith("heads/"):
            assert not any(module.startswith("har_pipeline.extractors") for module in imports(path))


@pytest.mark.parametrize(
    "path", [p for p in MODULES if relative(p).startswith(NO_TORCH) and relative(p) not in FLOW], ids=relative
)
def test_light_modules_import_no_torch(path: Path) -> None:
    everywhere = not relative(path).startswith("cli/")
    assert not {module.split(".")[0] for module in imports(path, everywhere=everywhere)} & {"torch", "torchvision"}


def test_help_and_workers_load_no_torch() -> None:
    code = "import sys, {}; sys.exit('torch' in sys.modules)"
    for module in ("har_pipeline.cli", "har_pipeline.video.worker", "har_pipeline.store"):
        done = subprocess.run([sys.executable, "-c", code.format(module)], check=False)
        assert done.returncode == 0, f"{module} loads torch"


def test_help_loads_no_numpy() -> None:
    code = "import sys, har_pipeline.cli; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
