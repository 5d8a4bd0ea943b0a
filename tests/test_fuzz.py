"""Whatever stands in a file that a user brings, reading it ends in a value or in an error that the package means: no other
exception, no hang, no memory without bound.

Each reader gets small valid files that are made here, changed at random: bytes flipped, cut, zeroed, repeated; entries of
JSON replaced by values of other types, huge numbers, deep nesting, NaN.
"""

from __future__ import annotations

import copy
import json
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depth_files import moving_body, write_ffv1, write_folder, write_mat
from feature_sets import blobs, feature_store, manifest, split_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_sets import drawn_videos, raw_store
from safetensors.torch import save_file
from train_split import train_split
from video_files import make_video

from har_pipeline.core.errors import HarError
from har_pipeline.core.records import ClipSpec
from har_pipeline.datasets.manifests import read_manifest, write_manifest
from har_pipeline.datasets.official_lists import read_hmdb51_lists, read_kth_sequences, read_ucf101_lists
from har_pipeline.datasets.splits import read_split_file, write_split_file
from har_pipeline.evaluation.categories import read_groups
from har_pipeline.evaluation.members import load_member
from har_pipeline.evaluation.plan import Plan, planned_runs, write_plan
from har_pipeline.evaluation.run_folder import read_history
from har_pipeline.evaluation.scores import read_scores
from har_pipeline.features.pack import open_features, pack_features
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.load import HeadRun, load_run
from har_pipeline.models.extractors import vgg16
from har_pipeline.models.extractors.c3d import read_mean_cube
from har_pipeline.models.extractors.weights import load_strictly, read_state_dict
from har_pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from har_pipeline.training.options import TrainConfig, VideoTrainConfig
from har_pipeline.video.clip_worker import Chunk, DecodeTask, DecodeWorker, Done, View
from har_pipeline.video.flow.cache import FlowCache
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.frame_worker import RawTask, raw_worker
from har_pipeline.video.process import Failed, Worker

SECONDS, GIGABYTES = 20, 2.0
# What a worker calls a failure that it did not foresee.
UNFORESEEN = re.compile(
    r": (Type|Key|Index|Attribute|ZeroDivision|Assertion|Recursion|UnboundLocal|Unicode\w+|Value)Error:"
)


@dataclass(frozen=True)
class Door:
    """A reader of foreign bytes."""

    # Writes valid files into an empty folder and returns those that are changed.
    make: Callable[[Path], list[Path]]
    # Reads that of the folder which holds the changed file.
    read: Callable[[Path, Path], object]


# Changes of bytes: (what, where as a share of the file, a number).
BYTES = st.tuples(
    st.sampled_from(("flip", "cut", "zero", "repeat", "set", "insert")), st.floats(0, 1), st.integers(0, 255)
)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -0.5, float("nan"), float("inf"), "", "a", "\x1b[2J$", "../..", "9" * 5000,
    [], {}, [[]], {"a": 1}, [None], "@deep",
)  # fmt: skip
# Changes of JSON: (where as a share of all entries, the number of a value; one more takes the entry away).
ENTRIES = st.tuples(st.floats(0, 1), st.integers(0, len(VALUES)))
MUTATIONS = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.lists(ENTRIES, min_size=1, max_size=2), st.lists(BYTES, min_size=1, max_size=3)),
)


def change_bytes(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    for what, share, number in changes:
        at = int(share * len(data))
        if what == "flip":
            data = data[:at] + bytes(byte ^ (1 << number % 8) for byte in data[at : at + 1]) + data[at + 1 :]
        elif what == "cut":
            data = data[:at]
        elif what == "zero":
            data = data[:at] + bytes(min(4 * number, len(data) - at)) + data[at + 4 * number :]
        elif what == "repeat":
            data = data[: at + number] + data[at:]
        elif what == "set":
            data = data[:at] + bytes([number]) * min(8, len(data) - at) + data[at + 8 :]
        else:
            data = data[:at] + bytes([number]) * 8 + data[at:]
    return data


def change_json(values: Any, changes: list[tuple[float, int]]) -> bytes:
    values = copy.deepcopy(values)
    for share, number in changes:
        places = list(entries(values))
        if not places:
            break
        holder, key = places[min(int(share * len(places)), len(places) - 1)]
        if number < len(VALUES):
            holder[key] = copy.deepcopy(VALUES[number])
        else:
            del holder[key]
    return json.dumps(values).replace('"@deep"', "[" * 50_000 + "]" * 50_000).encode()


def entries(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (object or array, key or index) of every entry."""
    keys = list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in keys:
        yield values, key
        yield from entries(values[key])


def mutate(data: bytes, is_json: bool, changes: list[Any]) -> bytes:
    if len(changes[0]) == 3:
        return change_bytes(data, changes)
    if is_json:
        return change_json(json.loads(data), changes)
    return change_bytes(data, [("set", share, number * 11 % 256) for share, number in changes])


class TooLong(BaseException):
    """A case took more processor time than it may; nothing that is read may catch this."""


@contextmanager
def limits() -> Iterator[None]:
    """Let what runs inside take `SECONDS` of processor time and `GIGABYTES` more memory than it has now (Linux)."""

    def stop(number: int, frame: object) -> None:
        raise TooLong(f"more than {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGPROF, stop)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + int(GIGABYTES * 1e9), hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def write_video(folder: Path) -> list[Path]:
    files = [make_video(folder / f"v.{suffix}", 12, width=48, height=32) for suffix in ("avi", "mp4", "mkv")]
    files += [make_video(folder / "v.mpg", 12, width=48, height=32, codec="mpeg1video")]
    depth = write_ffv1(folder / "f.mkv", moving_body(6))
    shutil.copy(files[0], folder / "whole.avi")
    return [*files, depth]


DECODER: list[DecodeWorker] = []
PREPARER: list[Worker[Any, Any]] = []


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """End the worker processes that the cases share."""
    yield
    for worker in (*DECODER, *PREPARER):
        worker.close()
    DECODER.clear()
    PREPARER.clear()


def last_message(worker: Worker[Any, Any], task: Any) -> Any:
    worker.start(task)
    while True:
        message = worker.receive()
        if isinstance(message, Chunk):
            worker.release(message.slot)  # type: ignore[attr-defined]
        if message is not None and worker.task is None:
            return message


def check_failure(message: Any, path: Path) -> None:
    if isinstance(message, Failed):
        assert str(path) in message.reason
        assert not UNFORESEEN.search(message.reason), message.reason


def task_fields(path: Path) -> dict[str, Any]:
    limit = {"time_limit_s": 60.0, "memory_limit_gb": GIGABYTES, "max_frames": 10_000}
    return {"video_id": "v", "path": path, "start_frame": 0, "end_frame": None, **limit}


def read_video(folder: Path, changed: Path) -> None:
    """The changed one, and a whole one with the same worker."""
    if not DECODER:
        DECODER.append(DecodeWorker(5 * 160 * 160 * 3))
    views = (View(0, ClipSpec(sampling="uniform", num_clips=6), "stretch-160"),)
    for path in (changed, folder / "whole.avi"):
        task = DecodeTask(**task_fields(path), fps=None, views=views, decoder="pyav")
        message = last_message(DECODER[0], task)
        check_failure(message, path)
    assert isinstance(message, Done)


def write_depth(folder: Path) -> list[Path]:
    pngs = sorted(write_folder(folder / "pngs", moving_body(4)).iterdir())
    return [pngs[1], write_mat(folder / "d.mat", moving_body(4)), write_ffv1(folder / "d.mkv", moving_body(4))]


def read_depth(folder: Path, changed: Path) -> None:
    if not PREPARER:
        PREPARER.append(raw_worker())
    path = folder / changed.relative_to(folder).parts[0]
    task = RawTask(**task_fields(path), stream="depth", size=48, aspect="stretch", causal=False, fps=30.0)
    check_failure(last_message(PREPARER[0], task), path)


def write_lists(folder: Path) -> list[Path]:
    ucf, hmdb = folder / "ucf101", folder / "hmdb51"
    ucf.mkdir()
    hmdb.mkdir()
    for number in (1, 2, 3):
        (ucf / f"trainlist0{number}.txt").write_text(
            "Archery/v_Archery_g08_c01.avi 1\nBowling/v_Bowling_g08_c01.avi 2\n"
        )
        (ucf / f"testlist0{number}.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
        (hmdb / f"wave_test_split{number}.txt").write_text("a_wave_u.avi 1 \nb_wave_u.avi 2 \nc_wave_u.avi 0 \n")
    kth, groups = folder / "00sequences.txt", folder / "groups.csv"
    kth.write_text("person01_boxing_d1\t\tframes\t1-95, 96-185\nperson13_handclapping_d3\t*missing*\n")
    groups.write_text("class,group\nwave,hands\nrun,legs\n")
    return [ucf / "trainlist01.txt", hmdb / "wave_test_split1.txt", kth, groups]


def read_list(folder: Path, changed: Path) -> None:
    readers = {"ucf101": read_ucf101_lists, "hmdb51": read_hmdb51_lists, "00sequences.txt": read_kth_sequences}
    name = changed.relative_to(folder).parts[0]
    attempt(readers.get(name, read_groups), folder / name)


def attempt(read: Callable[..., Any], *arguments: object) -> Any:
    """Return what a reader returns, None after an error that the package means."""
    try:
        return read(*arguments)
    except HarError:
        return None


def write_table(folder: Path) -> list[Path]:
    _, labels = blobs(("a", "b"), 3)
    write_manifest(folder / "m.csv", manifest(labels), root=Path("/nowhere"))
    write_split_file(folder / "split.json", split_of(["a-0", "b-0"], ["a-1", "b-1"], ["a-2"]))
    return [folder / "m.csv", folder / "split.json"]


def read_table(folder: Path, changed: Path) -> None:
    attempt(read_split_file if changed.suffix == ".json" else read_any_manifest, changed)


def read_any_manifest(path: Path) -> object:
    return read_manifest(path, check_files=False)


def reduced_store(folder: Path) -> tuple[FeatureStore, str, str, dict[str, str]]:
    features, labels = blobs(("a", "b"), 4, dim=6)
    store, name = feature_store(folder / "store.zarr", features)
    store.record_failure(name, "c-0", "no video stream")
    split = split_of([v for v in labels if v[-1] in "01"], [v for v in labels if v[-1] in "23"])
    return store, name, reduce_features(store, name, split, ReduceOptions(dim=2)).feature_set, labels


def write_store(folder: Path) -> list[Path]:
    store, name, reduced, _ = reduced_store(folder)
    nodes = [store.path, store.path / name, store.path / name / "a-0", store.path / "_failures" / name / "c-0"]
    nodes += [store.path / "_reduction" / reduced, store.path / "_reduction" / reduced / "mean"]
    chunks = [store.path / name / "a-0" / "c.0.0", store.path / "_reduction" / reduced / "mean" / "c.0"]
    return [*(node / "zarr.json" for node in nodes), *chunks]


def read_reader(path: Path) -> None:
    reader = attempt(open_features, path)
    if reader is None:
        return
    for name in attempt(reader.feature_sets) or ():
        spec = attempt(reader.spec, name)
        for what in ("checksums", "failures", "num_clips", "decode_notes"):  # a pack has not all of them
            attempt(getattr(reader, what, len), name)
        for video_id in attempt(reader.video_ids, name) or ():
            attempt(lambda *ids: reader.read(*ids, check=True), name, video_id)
        attempt(lambda name: list(reader.verify(name)), name)
        if spec is not None and spec.reduction is not None:
            attempt(reader.read_fit, name)


def read_store(folder: Path, changed: Path) -> None:
    read_reader(folder / "store.zarr")


def write_pack(folder: Path) -> list[Path]:
    store, name, reduced, _ = reduced_store(folder)
    for one in (name, reduced):
        pack_features(store, one, folder / "store.pack")
    shutil.rmtree(store.path)
    return sorted(path for path in (folder / "store.pack").iterdir() if path.suffix in (".json", ".safetensors"))


def read_pack(folder: Path, changed: Path) -> None:
    read_reader(folder / "store.pack")


def write_runs(folder: Path) -> list[Path]:
    store, name, reduced, labels = reduced_store(folder)
    split = split_of([v for v in labels if v[-1] in "01"], [v for v in labels if v[-1] in "23"])
    configs = {"lstm": TrainConfig(units=3, epochs=2, device="cpu"), "res": TrainConfig(head="mean_pool", device="cpu")}
    for run, config in configs.items():
        train_split(store, reduced if run == "res" else name, manifest(labels), split, config, folder / run)
    shutil.rmtree(store.path)
    write_plan(Plan(folder / "job", ("split0", "split1")))
    runs = [path for run in configs for path in sorted((folder / run).iterdir()) if path.suffix != ".png"]
    return [*runs, folder / "job" / "plan.json"]


def read_run_file(folder: Path, changed: Path) -> None:
    if changed.name == "plan.json":
        attempt(planned_runs, changed.parent)
        return
    run = attempt(load_run, changed.parent)
    if isinstance(run, HeadRun):
        attempt(run.fit)
    attempt(read_history, changed.parent)
    attempt(read_scores, changed.parent / "scores.csv")
    attempt(load_member, changed.parent, "one")


def write_network(folder: Path) -> list[Path]:
    videos, labels = drawn_videos({f"{k}-{i}": 10 for k in range(2) for i in range(3)})
    store, name = raw_store(folder / "store.zarr", videos)
    split = split_of([v for v in labels if v[-1] in "01"], [v for v in labels if v[-1] in "2"])
    config = VideoTrainConfig(width=0.05, epochs=1, schedule="constant", device="cpu", precision="fp32")
    train_split(store, name, manifest(labels), split, config, folder / "run")
    shutil.rmtree(store.path)
    return [folder / "run" / name for name in ("run.json", "split.json", "network.safetensors")]


def read_network(folder: Path, changed: Path) -> None:
    attempt(load_run, changed.parent)


def module() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


class Convolution(torch.nn.Module):
    """VGG16's first parameters, by name, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3))


def write_keras(path: Path) -> None:
    """Write an HDF5 file with the names and ranks of Keras's VGG16, few values."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for block, count in enumerate((2, 2, 3, 3, 3), 1):
            for number in range(1, count + 1):
                group = file.create_group(f"block{block}_conv{number}")
                group["kernel"], group["bias"] = np.zeros((3, 3, 2, 3), np.float32), np.zeros(3, np.float32)


def write_weights(folder: Path) -> list[Path]:
    state = module().state_dict()
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "w.pth")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    np.save(folder / "cube.npy", np.zeros((3, 16, 112, 112), np.float32))
    save_checkpoint(folder / "checkpoint.pt", {"epoch": 1, "model": state, "history": [{"epoch": 1, "loss": 0.5}]})
    write_keras(folder / "w.h5")
    return sorted(folder.iterdir())


def read_weights(folder: Path, changed: Path) -> None:
    if changed.name == "checkpoint.pt":
        attempt(load_checkpoint, changed)
    elif changed.suffix == ".npy":
        attempt(read_mean_cube, changed)
    elif changed.suffix == ".h5":
        attempt(vgg16.NET.load, Convolution(), changed)
    elif (state := attempt(read_state_dict, changed)) is not None:
        attempt(load_strictly, module(), state, changed)


FLOW = ("content", (0, 1), FlowSpec(method="dis"), (6, 8))


def write_flow(folder: Path) -> list[Path]:
    cache = FlowCache(folder)
    cache.put(*FLOW, np.ones((6, 8, 2), np.float32))
    return [cache.path(*FLOW)]


def read_flow(folder: Path, changed: Path) -> None:
    found = FlowCache(folder).get(*FLOW)
    assert found is None or np.array_equal(found, np.ones((6, 8, 2)))


DOORS = {
    "videos": Door(write_video, read_video),
    "depth": Door(write_depth, read_depth),
    "manifest and split": Door(write_table, read_table),
    "official lists": Door(write_lists, read_list),
    "store": Door(write_store, read_store),
    "pack": Door(write_pack, read_pack),
    "runs": Door(write_runs, read_run_file),
    "network run": Door(write_network, read_network),
    "weights": Door(write_weights, read_weights),
    "flow cache": Door(write_flow, read_flow),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[Path]]]:
    """Give the folder of a door and its files; made once."""
    there: dict[str, tuple[Path, list[Path]]] = {}

    def make(name: str) -> tuple[Path, list[Path]]:
        if name not in there:
            folder = tmp_path_factory.mktemp("door")
            there[name] = folder, DOORS[name].make(folder)
        return there[name]

    return make


def fuzz(name: str, folder: Path, files: list[Path], cases: int) -> None:
    read, whole = DOORS[name].read, {file: file.read_bytes() for file in files}
    for file in files:
        read(folder, file)

    @settings(max_examples=cases, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(MUTATIONS)
    def case(mutation: tuple[float, list[Any]]) -> None:
        share, changes = mutation
        file = files[int(share * len(files))]
        file.write_bytes(mutate(whole[file], file.suffix == ".json", changes))
        try:
            with limits():
                read(folder, file)
        finally:
            file.write_bytes(whole[file])

    case()


@pytest.mark.parametrize("name", DOORS)
def test_a_few_changed_files(name: str, made: Callable[[str], tuple[Path, list[Path]]]) -> None:
    fuzz(name, *made(name), 8)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", DOORS)
def test_many_changed_files(name: str, made: Callable[[str], tuple[Path, list[Path]]]) -> None:
    fuzz(name, *made(name), 100)
