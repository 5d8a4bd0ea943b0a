"""Commands on an S3 server: the whole chain, three writers of which one is killed, copies, and what goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from har_command import har
from object_storage import SPEC, new_store, rows, s3_server, source, use_s3
from paths import python_path
from typer.testing import CliRunner
from video_files import make_video

from har_pipeline.cli import app
from har_pipeline.core import objects
from har_pipeline.core.errors import StoreError
from har_pipeline.core.objects import ObjectPath
from har_pipeline.features.copy import copy_features
from har_pipeline.features.store import FeatureStore

NAME = SPEC.name
VIDEOS = [f"v{number}" for number in range(6)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        yield endpoint


@pytest.fixture(autouse=True)
def _on_the_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(server, monkeypatch)


def features(command: str, *arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["features", command, *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


WRITER = f"""
import os, sys
from object_storage import rows, source
from har_pipeline.core.objects import ObjectPath
from har_pipeline.features.store import FeatureStore

put = ObjectPath.put

def killed_before_a_commit(path, *args, **options):
    if (path.parent.name, path.name) == (sys.argv[3], "zarr.json"):
        os.kill(os.getpid(), 9)
    return put(path, *args, **options)

ObjectPath.put = killed_before_a_commit
store = FeatureStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range({len(VIDEOS)}):
    store.write(sys.argv[2], f"v{{number}}", rows(seed=number), source())
"""


def test_three_writers_one_of_them_killed(tmp_path: Path) -> None:
    address = "s3://bucket/three/store.zarr"
    new_store(address)
    environment = python_path()
    environment["PYTHONPATH"] = f"{Path(__file__).parents[1]}:{environment['PYTHONPATH']}"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, address, NAME, dies_at],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for dies_at in ("v0", "", "")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    assert writers[0].communicate("go\n")[0] == ""
    assert writers[0].returncode == -signal.SIGKILL
    assert FeatureStore(address).video_ids(NAME) == []
    for writer in writers[1:]:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers[1:]:
        writer.communicate()
        assert writer.returncode == 0
    code, out, _ = features("verify", address, "--json")
    assert (code, json.loads(out)["checked"]) == (0, len(VIDEOS))
    local = new_store(tmp_path / "store.zarr")
    for number, video_id in enumerate(VIDEOS):
        local.write(NAME, video_id, rows(seed=number), source())
    there = FeatureStore(address)
    assert there.checksums(NAME) == local.checksums(NAME)
    assert all(there.read(NAME, v).features.tobytes() == local.read(NAME, v).features.tobytes() for v in VIDEOS)


def test_a_copy_is_verified_and_goes_on(tmp_path: Path) -> None:
    address, back = "s3://bucket/copy/store.zarr", tmp_path / "back.zarr"
    local = new_store(tmp_path / "store.zarr")
    for number, video_id in enumerate(VIDEOS):
        local.write(NAME, video_id, rows(seed=number), source())
    local.record_failure(NAME, "broken", "empty", {"name": "b.avi"})
    local.write_fit("other", {"mean": rows(seed=1)}, {})
    local.give_name(NAME, "first")
    chunk = local.path / NAME / "v1" / "c.0.0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1])
    code, out, err = features("copy", local.path, address)
    assert (code, out) == (1, f"{NAME}: 5 videos copied (0.0 MiB), 0 already there, 1 failed\n")
    assert "failed: v1: " in err
    assert "damaged" in err
    chunk.write_bytes(content)
    code, out, _ = features("copy", local.path, address, "--json")
    assert (code, json.loads(out)[0]["done"], json.loads(out)[0]["already"]) == (0, 1, 5)
    assert features("copy", address, back)[0] == 0
    for path in (address, back):
        assert features("verify", path)[:2] == (0, "6 videos checked, 0 damaged\n")
        opened = FeatureStore(str(path))
        assert (opened.failed_files(NAME), opened.names()) == ({"broken": {"name": "b.avi"}}, {"first": NAME})
        for number, video_id in enumerate(VIDEOS):
            assert opened.read(NAME, video_id).features.tobytes() == rows(seed=number).tobytes()
    FeatureStore(address).delete(NAME, "v2")
    there = FeatureStore(address)
    assert there.write(NAME, "v2", rows(seed=2), source())
    there.write(NAME, "more", rows(seed=9), source())
    local.write(NAME, "more", rows(seed=8), source())
    meta = ObjectPath(address, f"{NAME}/v0/zarr.json")
    commit = meta.read_bytes()
    meta.put(commit[:-9])
    code, out, err = features("copy", local.path, address)
    assert code == 1
    assert "failed: v0: s3://bucket/copy/store.zarr/" in err
    assert "v0: damaged" in err
    meta.put(commit)
    assert "failed: more: s3://bucket/copy/store.zarr has other features of it" in err
    assert there.read(NAME, "more").features.tobytes() == rows(seed=9).tobytes()
    code, _, _ = features("pack", address, "-o", tmp_path / "p.pack")
    assert code == 0
    assert features("copy", tmp_path / "p.pack", tmp_path / "unpacked.zarr")[0] == 0
    assert FeatureStore(tmp_path / "unpacked.zarr").checksums(NAME) == there.checksums(NAME)
    with pytest.raises(StoreError, match="is not copied onto itself"):
        copy_features(FeatureStore(back), NAME, FeatureStore(back))


def test_the_chain_from_videos_to_a_prediction(tmp_path: Path) -> None:
    for label, seed in (("left", 0), ("right", 50)):
        for number in range(3):
            make_video(tmp_path / "videos" / label / f"{label}{number}.avi", 6, seed=seed + number)
    har("manifest", "build", "folder", "videos", "-o", "manifest.csv", cwd=tmp_path)
    address = "s3://bucket/chain/store.zarr"
    options = ("--num-clips", 2, "--device", "cpu", "--workers", 1)
    har("extract", "manifest.csv", address, *options, cwd=tmp_path)
    har("extract", "manifest.csv", "local.zarr", *options, cwd=tmp_path)
    again = har("extract", "manifest.csv", address, *options, "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["already"] == 6
    (name,) = FeatureStore(address).feature_sets()
    assert FeatureStore(address).checksums(name) == FeatureStore(tmp_path / "local.zarr").checksums(name)
    shown = json.loads(har("features", "show", address, "--json", cwd=tmp_path).stdout)
    assert (shown["videos"], shown["failures"]) == (6, {})
    assert json.loads(har("features", "list", address, "--json", cwd=tmp_path).stdout)[0]["videos"] == 6
    har("features", "pack", address, cwd=tmp_path)
    har("features", "verify", "s3://bucket/chain/store.pack", cwd=tmp_path)
    har("features", "export", address, "-o", "x.npz", cwd=tmp_path)
    har("features", "reduce", address, "--manifest", "manifest.csv", "--dim", 2, cwd=tmp_path)
    for out, store in (("run", address), ("packed", "s3://bucket/chain/store.pack"), ("local", "local.zarr")):
        options = ("--features", "eff", "--head", "mean_pool", "--epochs", 2, "-o", out)
        har("train", "manifest.csv", store, *options, cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["store"] == address
    scores = {(tmp_path / out / "scores.csv").read_text() for out in ("run", "packed", "local")}
    assert len(scores) == 1
    video = tmp_path / "videos" / "left" / "left0.avi"
    answer = json.loads(har("predict", video, "--run", "run", "--json", cwd=tmp_path).stdout)
    assert {row["label"] for row in answer[0]["top"]} == {"left", "right"}
    har("report", "run", "--videos", 0, cwd=tmp_path)
    assert "no feature" not in (tmp_path / "report" / "index.html").read_text()


class Denying(BaseHTTPRequestHandler):
    """Answers as S3 does who may do nothing."""

    def do_GET(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_what_goes_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_video(tmp_path / "videos" / "a" / "v.avi", 4)
    har("manifest", "build", "folder", "videos", "-o", "manifest.csv", cwd=tmp_path)

    def line(address: str) -> set[str]:
        first = har("features", "list", address, cwd=tmp_path, code=1).stderr
        second = har("extract", "manifest.csv", address, "--device", "cpu", cwd=tmp_path, code=1).stderr
        assert len(first.splitlines()) == 1
        return {first, second.splitlines()[-1] + "\n"}

    missing = line("s3://nothing/store.zarr")
    assert all(one.startswith("error: s3://nothing/store.zarr") for one in missing)
    assert all("there is no such bucket" in one for one in missing)
    denying = HTTPServer(("127.0.0.1", 0), Denying)
    thread = threading.Thread(target=denying.serve_forever, daemon=True)
    thread.start()
    use_s3(f"http://127.0.0.1:{denying.server_port}", monkeypatch)
    assert all("access denied: check the credentials" in one for one in line("s3://closed/store.zarr"))
    denying.shutdown()
    denying.server_close()
    thread.join()
    monkeypatch.setattr(objects, "RETRIES", 1)
    use_s3("http://127.0.0.1:9", monkeypatch)
    assert all("no answer: check the network, and the endpoint" in one for one in line("s3://away/store.zarr"))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("train m.csv s3://bucket/store.zarr --out s3://bucket/run", "--out"),
        ("evaluate s3://bucket/run", "RUN"),
        ("predict v.avi --run gs://bucket/run", "--run"),
        ("extract s3://bucket/m.csv s3://bucket/store.zarr", "MANIFEST"),
        ("features export s3://bucket/store.zarr --out s3://bucket/features.npz", "--out"),
        ("features list s3:/bucket/store.zarr", "STORE"),
    ],
)
def test_what_is_no_store_cannot_be_there(
    words: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a path, the address would be a folder of this machine, in which nobody looks for a run."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words.split())
    told = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2, told
    assert name in told
    assert "only feature stores and packs can be in object storage" in told
    assert not list(tmp_path.iterdir())
