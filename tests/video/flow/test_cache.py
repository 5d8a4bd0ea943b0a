"""The cache of computed flow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import python_path

from har_pipeline.synthetic.dataset import render_video
from har_pipeline.video.flow.cache import FlowCache
from har_pipeline.video.flow.compute import compute_flow
from har_pipeline.video.flow.spec import FlowSpec, Tvl1Params


def test_cache_gives_back_what_was_computed(tmp_path: Path) -> None:
    spec, size = FlowSpec(tvl1=Tvl1Params(num_warps=1, outer_iterations=1)), (120, 160)
    frames = render_video(1, "walking", "d1").frames
    flow = compute_flow(frames[20:21], frames[21:22], spec, "cpu", compiled=False)[0].numpy()
    cache = FlowCache(tmp_path / "flows")
    assert cache.get("video", (20, 21), spec, size) is None
    cache.put("video", (20, 21), spec, size, flow)
    found = cache.get("video", (20, 21), spec, size)
    assert found is not None
    assert found.dtype == np.float32
    assert np.array_equal(found, flow)
    assert np.array_equal(np.load(cache.path("video", (20, 21), spec, size)), flow.astype(np.float16))
    for other in (
        cache.get("film", (20, 21), spec, size),
        cache.get("video", (21, 22), spec, size),
        cache.get("video", (20, 21), FlowSpec(), size),
        cache.get("video", (20, 21), spec, (160, 120)),
    ):
        assert other is None
    assert [path.name for path in (tmp_path / "flows").rglob("*.partial-*")] == []


def test_a_damaged_file_is_none_and_is_replaced(tmp_path: Path) -> None:
    cache, spec, size = FlowCache(tmp_path), FlowSpec(), (6, 8)
    flow = np.random.default_rng(0).normal(size=(6, 8, 2)).astype(np.float16).astype(np.float32)
    path = cache.path("video", (0, 1), spec, size)
    cache.put("video", (0, 1), spec, size, flow)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[150] ^= 1
    for damaged in (b"", whole[:3], whole[:-4], whole[:-100], bytes(flipped), whole + b"x"):
        path.write_bytes(damaged)
        assert cache.get("video", (0, 1), spec, size) is None
    cache.put("video", (0, 1), spec, size, flow)
    assert np.array_equal(cache.get("video", (0, 1), spec, size), flow)


def test_cache_takes_only_rounded_flow_of_the_size(tmp_path: Path) -> None:
    cache = FlowCache(tmp_path)
    with pytest.raises(ValueError, match="float16"):
        cache.put("video", (0, 1), FlowSpec(), (2, 2), np.full((2, 2, 2), 0.1, np.float32))
    with pytest.raises(ValueError, match="frames"):
        cache.put("video", (0, 1), FlowSpec(), (2, 3), np.zeros((2, 2, 2), np.float32))


def test_a_kill_while_writing_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """The process ends in the middle of the first file; what is left is no flow, and the next run writes it."""
    code = (
        "import os, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from har_pipeline.video.flow.cache import FlowCache\n"
        "from har_pipeline.video.flow.spec import FlowSpec\n"
        "def torn(path, data):\n"
        "    with open(path, 'wb') as file: file.write(data[: len(data) // 2])\n"
        "    os._exit(9)\n"
        "Path.write_bytes = torn\n"
        "FlowCache(Path(sys.argv[1])).put('video', (0, 1), FlowSpec(), (6, 8), np.zeros((6, 8, 2), np.float32))\n"
    )
    environment = python_path()
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=environment).returncode == 9
    cache = FlowCache(tmp_path)
    assert len(list(tmp_path.rglob("*.partial-*"))) == 1
    assert cache.get("video", (0, 1), FlowSpec(), (6, 8)) is None
    cache.put("video", (0, 1), FlowSpec(), (6, 8), np.ones((6, 8, 2), np.float32))
    found = cache.get("video", (0, 1), FlowSpec(), (6, 8))
    assert found is not None
    assert found.min() == 1
    # The first writing of a process into a folder removes what dead ones left there.
    assert not list(tmp_path.rglob("*.partial-*"))


def test_a_cache_that_cannot_be_written_costs_the_reuse_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, place = np.zeros((6, 8, 2), np.float32), ("video", (0, 1), FlowSpec(), (6, 8))
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "full"):
        cache = FlowCache(folder)
        if folder.name == "full":

            def full(self: Path, data: bytes) -> int:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(Path, "write_bytes", full)
        cache.put(*place, flow)
        assert cache.problem.startswith(f"{folder}: flow is not kept any more (")
        assert cache.get(*place) is None
        cache.put(*place, flow)  # not tried again
