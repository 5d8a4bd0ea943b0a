"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import python_path

from har_pipeline.core.errors import RunError, WeightsError
from har_pipeline.core.files import (
    LEASE_DAYS,
    cached_weights,
    lock_owner,
    locked,
    new_file,
    new_folder,
    partial_path,
    process_lives,
    publish,
    read_json,
    recover_folder,
    remove_debris,
    replace_folder,
    staging_name,
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


def age(node: Path, days: float) -> None:
    """Make a file, or a folder with all it holds, that old."""
    for one in (*(node.rglob("*") if node.is_dir() else ()), node):
        os.utime(one, (time.time() - days * 86400,) * 2)


def dead_owner() -> str:
    """The staging name of a process of this machine that has ended."""
    code = "from har_pipeline.core.files import staging_name; print(staging_name())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=python_path())
    return done.stdout.strip()


def owner_elsewhere(machine: str = "m01234567", pid: int | None = None) -> str:
    """The staging name of a process of another machine that has our host name; by default with our process number."""
    return f"{socket.gethostname()}.{machine}.{pid or os.getpid()}.0123456789ab01234567"


def fill(folder: Path, *found: str) -> None:
    for name in found:
        (folder / name).mkdir()
        (folder / name / "file").touch()


def test_debris_is_removed_if_its_process_has_ended_on_this_machine(tmp_path: Path) -> None:
    dead = dead_owner()
    host, machine, pid, token = dead.rsplit(".", 3)
    for name in (f".a.partial-{dead}", f".a.partial-{dead}.csv"):
        (tmp_path / name).write_text("half")
    of_staging = {dead, f"{host}.{machine}.{pid}.{token[::-1]}", f"{host}.{machine}.{os.getpid()}.0123456789ab01234567"}
    others = {
        f".b.partial-{dead}",
        partial_path(tmp_path / "a").name,
        f".a.partial-{host}.{machine}.{os.getppid()}.{token}",
        f".a.partial-{owner_elsewhere()}",
        f".a.partial-{owner_elsewhere(pid=int(pid))}",
        f".a.partial-{host}.{pid}.0123456789ab",  # of an older version, which wrote no machine
        ".a.partial-notes",
        "a",
    }
    fill(tmp_path, *of_staging, *others)
    assert remove_debris(tmp_path, "a") == 2
    assert names(tmp_path) == of_staging | others
    assert remove_debris(tmp_path) == 3
    assert names(tmp_path) == others
    assert remove_debris(tmp_path, "*") == 1
    assert names(tmp_path) == others - {f".b.partial-{dead}"}
    assert remove_debris(tmp_path / "missing") == 0


def test_debris_of_other_machines_goes_when_its_lease_is_over(tmp_path: Path) -> None:
    """Two containers may share host name and process number; what one writes is not the other's to delete."""
    of_old = f"{socket.gethostname()}.{os.getpid()}.0123456789ab"
    fill(tmp_path, owner_elsewhere(), of_old, "elsewhere.7.0123456789ab")
    before = names(tmp_path)
    for name in before:
        age(tmp_path / name, LEASE_DAYS - 0.1)
    assert remove_debris(tmp_path) == 0
    for name in before:
        age(tmp_path / name, LEASE_DAYS + 0.1)
    (tmp_path / owner_elsewhere() / "file").write_text("still at work")
    assert remove_debris(tmp_path) == 2
    assert names(tmp_path) == {owner_elsewhere()}


def test_a_container_of_the_same_host_name_is_another_machine(tmp_path: Path) -> None:
    """A process in a namespace of its own, whose number there may be any process's here."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from har_pipeline.core.files import remove_debris, staging_name\n"
        "Path(sys.argv[1], staging_name()).mkdir()\n"
        "print(remove_debris(Path(sys.argv[1])))\n"
    )
    if not shutil.which("unshare"):
        pytest.skip("no command for namespaces here")
    ours, theirs = tmp_path / dead_owner(), ["unshare", "--pid", "--fork", "--mount-proc", sys.executable]
    ours.mkdir()
    done = subprocess.run([*theirs, "-c", code, str(tmp_path)], check=False, capture_output=True, env=python_path())
    if done.returncode:
        pytest.skip("no namespaces of process numbers here")
    assert done.stdout.split() == [b"0"]
    assert len(names(tmp_path)) == 2
    assert remove_debris(tmp_path) == 1
    assert ours.name not in names(tmp_path)


@pytest.mark.parametrize("hidden", [".plan.partial-{}.json", ".run.partial-{}"])
def test_the_next_job_in_a_folder_removes_what_dead_writers_left_there(tmp_path: Path, hidden: str) -> None:
    (tmp_path / hidden.format(dead_owner())).write_text("half")
    living = tmp_path / hidden.format(owner_elsewhere())
    living.touch()
    write_json(tmp_path / "other.json", {})
    assert names(tmp_path) == {"other.json", living.name}


def test_what_tells_no_owner_goes_by_its_age_and_unfinished_trainings_stay(tmp_path: Path) -> None:
    debris = {".plan.json.123.partial", "zarr.0a1b.partial", ".f00.123.partial.npy", ".f00.123.456.partial"}
    kept = {".run.partial", ".run.7.partial", "notes.partial", "zarr.json"}
    for name in debris:
        (tmp_path / name).touch()
    fill(tmp_path, *kept)
    assert remove_debris(tmp_path, "*") == 0
    for name in debris | kept:
        age(tmp_path / name, LEASE_DAYS + 1)
    assert remove_debris(tmp_path, "*") == 4
    assert names(tmp_path) == kept


def test_a_fork_is_another_owner() -> None:
    ours = staging_name()
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, staging_name().encode())
        os._exit(0)
    os.wait()
    theirs = os.read(read, 1000).decode()
    assert ours.rsplit(".", 2)[0] == theirs.rsplit(".", 2)[0]
    assert ours.rpartition(".")[2][:8] != theirs.rpartition(".")[2][:8]


def test_names_are_of_one_writer_alone(tmp_path: Path) -> None:
    made = {partial_path(tmp_path / "a.mp4") for _ in range(100)}
    assert len(made) == 100
    assert {(path.parent, path.suffix, path.name[0]) for path in made} == {(tmp_path, ".mp4", ".")}


def test_processes_live_or_not() -> None:
    assert process_lives(os.getpid())
    assert process_lives(os.getppid())
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
            assert f"process {process.pid} on" in lock_owner(tmp_path / "lock")
        process.kill()
        process.wait()
        with locked(tmp_path / "lock") as held:
            assert held
            assert f"process {os.getpid()} on" in lock_owner(tmp_path / "lock")


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


REPLACE = """
import os, sys
from pathlib import Path
from har_pipeline.core import files
old = Path.rename
def rename(self, target):
    if sys.argv[2] in (self.name, Path(target).name) or sys.argv[2] == "trash" and ".replaced-" in self.name:
        os.kill(os.getpid(), 9)
    return old(self, target)
Path.rename = rename
with files.new_folder(Path(sys.argv[1])) as partial:
    (partial / "run.json").write_text("new")
    if sys.argv[2] == "staged":
        sys.argv[2] = partial.name
"""


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_whose_replacement_was_killed_is_brought_back(tmp_path: Path, again: bool) -> None:
    path = tmp_path / "run.v1"
    path.mkdir()
    (path / "run.json").write_text("old")
    killed = subprocess.run([sys.executable, "-c", REPLACE, str(path), "staged"], check=False, env=python_path())
    assert killed.returncode == -9
    assert not path.exists()
    assert len(names(tmp_path)) == 2
    if again:  # whoever does not recover does not delete it either
        remove_debris(tmp_path, "*")
        write_json(tmp_path / "x.json", {})
    assert not recover_folder(path, "other.json")
    assert recover_folder(path, "run.json")
    assert not recover_folder(path, "run.json")
    assert (path / "run.json").read_text() == "old"
    with new_folder(path) as partial:
        (partial / "run.json").write_text("newer")
    assert names(tmp_path) - {"x.json"} == {"run.v1"}
    assert (path / "run.json").read_text() == "newer"


def test_what_was_replaced_and_not_deleted_is_no_copy_to_bring_back(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "run.json").write_text("old")
    subprocess.run([sys.executable, "-c", REPLACE, str(path), "trash"], check=False, env=python_path())
    assert (path / "run.json").read_text() == "new"
    assert len(names(tmp_path)) == 2
    assert not recover_folder(path, "run.json")
    with new_folder(path) as partial:
        (partial / "run.json").write_text("newer")
    assert names(tmp_path) == {"run"}


def test_a_replacement_under_way_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "run", Path.rename
    path.mkdir()
    (path / "run.json").write_text("old")

    def look_between(self: Path, target: Path) -> Path:
        if target == path:
            assert not recover_folder(path, "run.json")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", look_between)
    with new_folder(path) as partial:
        (partial / "run.json").write_text("new")
    assert (path / "run.json").read_text() == "new"


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """In this order: files and folders of what is staged, the renaming, the folder that has the new name."""
    monkeypatch.setenv("HAR_FSYNC", "1" if durable else "0")
    done: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (done.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number))
    )
    monkeypatch.setattr(Path, "rename", lambda self, target: (done.append("name"), rename(self, target))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("name"), replace(self, target))[1])
    write_json(tmp_path / "a.json", {})
    with new_folder(tmp_path / "run") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").touch()
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "marker").touch()
    assert publish(staged, tmp_path / "final", "marker")
    shown = [one if one == "name" else str(Path(one).relative_to(tmp_path)).replace(partial.name, "P") for one in done]
    shown = ["F" if one.startswith(".a.partial") else one for one in shown]
    if durable:
        of_folder = ["P/sub/file", "P/sub", "P", "name", "."]
        assert shown == ["F", "name", ".", *of_folder, "staged/marker", "staged", "name", "."]
    else:
        assert shown == ["name"] * 3


def test_a_file_system_that_cannot_flush_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAR_FSYNC", "1")

    def fsync(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "a.json", {})

    def fail(number: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "b.json", {})
    assert names(tmp_path) == {"a.json"}


def test_a_lock_tells_who_holds_it(tmp_path: Path) -> None:
    assert lock_owner(tmp_path / "lock") == "another process"
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
        told = lock_owner(tmp_path / "lock")
        assert told.startswith(f"process {os.getpid()} on {socket.gethostname()} since 20")
        assert told.endswith(" UTC")
    with locked(tmp_path / "lock") as held:
        assert held
