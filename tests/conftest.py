"""Shared fixtures; everything is made here, nothing is downloaded."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import typer.testing
from hypothesis import settings

from har_pipeline.core import known_files
from har_pipeline.evaluation import plots

DRAW = plots._save

# Time limits per example would fail on a busy machine. `make test-all` takes the second profile.
settings.register_profile("short", deadline=None, max_examples=30)
settings.register_profile("exhaustive", deadline=None, max_examples=100)
settings.load_profile("short")

# Nothing here outlives a power cut; the tests of durability set it anew.
os.environ.setdefault("HAR_FSYNC", "0")

# Trainings choose their threads by what is free, which changes while tests run; two that are compared need the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REAL_DATA = Path(os.environ.get("HAR_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "real"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips; the test skips where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA} (set HAR_REAL_DATA)")
    return REAL_DATA


@pytest.fixture(autouse=True, scope="session")
def known_files_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the index of used weights files, which belongs to the user, out of the tests; give the one that stands in."""
    index = tmp_path_factory.getbasetemp() / known_files.INDEX
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_files, "index_file", lambda: index)
        yield index


@pytest.fixture(autouse=True, scope="session")
def commands_built_once() -> Iterator[None]:
    """Build the tree of commands once: Typer does so at every call, which takes longer than most commands."""
    built = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", built)
        patch.setattr(typer.testing, "_get_command", built)
        yield


@pytest.fixture(autouse=True, scope="session")
def pictures_not_drawn() -> Iterator[None]:
    """Leave the files of plots empty: drawing them takes nine tenths of an evaluation. All else of them is made."""

    def save(figure: object, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", save)
        yield


@pytest.fixture
def pictures_drawn() -> Iterator[None]:
    """Draw plots after all, for tests of what is on them."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo its patches
        patch.setattr(plots, "_save", DRAW)
        yield


@pytest.hookimpl(optionalhook=True)  # a machine for benchmarks/gpu.py has no xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one worker more than there are cores: many tests wait for processes, and leave a core idle meanwhile."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long tests, so that no worker is left with one in the end; count coverage over the others only.

    Counting costs a third, and what only a long test reaches is tested badly.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if config.pluginmanager.hasplugin("_cov"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker("no_cover")
