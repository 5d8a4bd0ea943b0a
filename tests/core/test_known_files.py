"""The memory of where weights files were used last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from har_pipeline.core import known_files
from har_pipeline.core.files import file_sha256
from har_pipeline.core.known_files import find_used, remember, used_last


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(known_files, "index_file", lambda: tmp_path / "cache" / known_files.INDEX)
    return tmp_path / "cache" / known_files.INDEX


def test_a_file_is_found_where_it_was_used_last_and_never_trusted(index: Path, tmp_path: Path) -> None:
    assert find_used("0" * 64) is None
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    sha256 = file_sha256(first)
    remember(first, sha256)
    remember(second, sha256)
    assert find_used(sha256) == second
    entry = json.loads(index.read_text())[sha256]
    assert (entry["path"], entry["size"]) == (str(second), 7)
    second.write_bytes(b"others!")  # of the same size
    assert find_used(sha256) is None
    assert used_last(sha256) == second
    second.unlink()
    assert find_used(sha256) is None


def test_a_damaged_index_is_replaced_and_an_unwritable_one_ignored(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(b"weights")
    sha256 = file_sha256(file)
    for text in ("{", "[]", f'{{"{sha256}": 3}}', f'{{"{sha256}": {{"path": 3}}}}'):
        index.parent.mkdir(exist_ok=True)
        index.write_text(text)
        assert find_used(sha256) is None
        remember(file, sha256)
        assert find_used(sha256) == file
    index.unlink()
    for path in index.parent.iterdir():
        path.unlink()
    index.parent.rmdir()
    index.parent.write_text("a file where the folder should be")
    remember(file, sha256)
    assert find_used(sha256) is None


def test_the_oldest_entries_go_first(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_files, "MOST_ENTRIES", 2)
    files = [tmp_path / f"{number}.pt" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(b"%d" % number)
        remember(file, file_sha256(file))
    assert [used_last(file_sha256(file)) for file in files] == [None, *files[1:]]


def test_several_processes_lose_no_entry(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from har_pipeline.core.known_files import remember\n"
        "for i in range(8): remember(Path(sys.argv[1]), f'{sys.argv[2]}{i}')"
    )
    file = tmp_path / "a.pt"
    file.write_bytes(b"weights")
    environment = {**os.environ, "HAR_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(file), name], env=environment)
        for name in ("one", "two", "three")
    ]
    assert [process.wait(600) for process in running] == [0, 0, 0]
    entries = json.loads((tmp_path / "cache" / "weights" / known_files.INDEX).read_text())
    assert len(entries) == 24
