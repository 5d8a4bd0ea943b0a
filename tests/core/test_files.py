"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from paths import python_path

from har_pipeline.core.errors import RunError, WeightsError
from har_pipeline.core.files import (
    cached_weights,
    locked,
    new_file,
    new_folder,
    partial_path,
    process_lives,
    publish,
    read_json,
    remove_debris,
    replace_folder,
    weights_cache,
    write_json,
)


def names(folder: Path) -> set[str]:
    return {node.name for node in folder.iterdir()}


@pytest.mark.parametrize("sync", [False, True])
def test_a_new_file_replaces_the_old_one_only_when_it_is_complete(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with contextlib.suppress(ZeroDivisionError), new_file(path, sync=sync) as partial:
        partial.write_text("half")
        assert (path.read_text(), partial.suffix) == ("old", ".csv")
        1 / 0  # noqa: B018
    assert (path.read_text(), names(tmp_path)) == ("old", {"a.csv"})
    with new_file(path, sync=sync) as first, new_file(path, sync=sync) as second:
        first.write_text("new")
        second.write_text("newer")
    assert (path.read_text(), names(tmp_path)) == ("new", {"a.csv"})


def test_a_new_folder_replaces_the_old_one_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "on the way" / "run"
    with new_folder(path) as partial:
        (partial / "old").touch()
    with contextlib.suppress(ZeroDivisionError), new_folder(path) as partial:
        (partial / "half").touch()
        assert names(path) == {"old"}
        1 / 0  # noqa: B018
    assert (names(path), names(path.parent)) == ({"old"}, {"run"})
    with new_folder(path) as partial:
        (partial / "new").touch()
    assert (names(path), names(path.parent)) == ({"new"}, {"run"})


def test_the_first_to_publish_stays(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "marker").write_text(name)
    assert publish(tmp_path / "first", tmp_path / "final", "marker")
    assert not publish(tmp_path / "second", tmp_path / "final", "marker")
    assert (tmp_path / "final" / "marker").read_text() == "first"
    assert not (tmp_path / "second").exists()
    with pytest.raises(OSError, match="not empty"):
        publish(tmp_path / "third", tmp_path / "final", "other")
    assert (tmp_path / "third").exists()


def test_only_debris_of_dead_processes_of_this_host_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, token = socket.gethostname(), "0123456789ab"
    debris = {f".a.partial-{host}.{dead.pid}.{token}", f".a.partial-{host}.{dead.pid}.{token}.csv"}
    staged = {f"{host}.{dead.pid}.{token}", f"{host}.{dead.pid}.{token * 2}01234567"}
    others = {
        f".b.partial-{host}.{dead.pid}.{token}",
        f".a.partial-{host}.{os.getpid()}.{token}",
        f".a.partial-{host}.{os.getppid()}.{token}",
        f".a.partial-elsewhere.{dead.pid}.{token}",
        f".a.partial-{host}.{dead.pid}.{os.getpid()}.{token}",
        ".a.partial-notes",
        "a",
    }
    for name in debris:
        (tmp_path / name).write_text("half")
    for name in staged | others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    assert remove_debris(tmp_path, "a") == 2
    assert names(tmp_path) == staged | others
    assert remove_debris(tmp_path) == 2
    assert names(tmp_path) == others
    assert remove_debris(tmp_path / "missing") == 0


def test_names_are_of_one_writer_alone(tmp_path: Path) -> None:
    made = {partial_path(tmp_path / "a.mp4") for _ in range(100)}
    assert len(made) == 100
    assert {(path.parent, path.suffix, path.name[0]) for path in made} == {(tmp_path, ".mp4", ".")}


def test_processes_live_or_not() -> None:
    assert process_lives(os.getpid())
    assert process_lives(1)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not process_lives(process.pid)


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from har_pipeline.core.files import locked\n"
        "with locked(Path(sys.argv[1])) as held:\n"
        "    print(held, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=python_path()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with locked(tmp_path / "lock") as held:
            assert not held
        process.kill()
        process.wait()
        with locked(tmp_path / "lock") as held:
            assert held


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_says_who_may_read_a_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~umask
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'
    assert read_json(tmp_path / "a.json", RunError, "train again") == {"b": 1, "a": [2]}


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, r"cannot be read \(No such file"), ("{", "not valid JSON"), ("[1]", "not a JSON object")],
)
def test_what_is_no_json_object_is_an_error_of_the_callers_kind(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(RunError, match=rf"a\.json: {says}.*; train again$"):
        read_json(tmp_path / "a.json", RunError, "train again")


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))
    assert weights_cache() == tmp_path / "weights"
    monkeypatch.delenv("HAR_CACHE")
    assert weights_cache().parent.name == "har_pipeline"


@pytest.mark.parametrize("kind", ["a file", "below a file", "read-only"])
def test_an_unusable_cache_names_the_variable_that_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "taken").touch()
    cache = {"a file": tmp_path / "taken", "below a file": tmp_path / "taken/cache", "read-only": tmp_path / "cache"}[
        kind
    ]
    if kind == "read-only":
        monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere else
    monkeypatch.setenv("HAR_CACHE", str(cache))
    with pytest.raises(WeightsError, match=rf"^{cache}/weights: cannot be used .*set HAR_CACHE to a folder") as caught:
        cached_weights("net.pth")
    assert "\n" not in str(caught.value)


def test_weights_in_a_read_only_cache_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/net.pth").touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert cached_weights("net.pth") == tmp_path / "weights/net.pth"


def test_a_user_without_a_home_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder called ~ is made in the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("HAR_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where the password file has no such user
    with pytest.raises(WeightsError, match=r"no home folder.*set HAR_CACHE"):
        cached_weights("net.pth")
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/old").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "nothing", tmp_path / "run")
    assert (names(tmp_path), names(tmp_path / "run")) == ({"run"}, {"old"})
