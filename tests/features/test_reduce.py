from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from paths import python_path
from real_features import ucf101_fc6
from safetensors.numpy import load_file
from sklearn.decomposition import PCA
from train_split import train_split

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, RunError, StoreError
from har_pipeline.core.records import FeatureSpec, ReductionSpec, Split, VideoSource
from har_pipeline.features import reduce
from har_pipeline.features.fitted import read_fit, train_ids_sha256
from har_pipeline.features.pca import Projection
from har_pipeline.features.reduce import ReduceOptions, ReduceSummary, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.load import load_run
from har_pipeline.inference.predict import predict_scores
from har_pipeline.training.options import TrainConfig

CLASSES = ("boxing", "running", "walking")
OPTIONS = ReduceOptions(dim=4)
SMALL = TrainConfig(units=8, epochs=3, batch_size=5, learning_rate=1e-2, device="cpu")


def split_at(ids: Sequence[str], train_until: int, index: int = 0) -> Split:
    number = {video_id: int(video_id.rpartition("-")[2]) for video_id in ids}
    return split_of(
        [v for v in ids if number[v] < train_until], [v for v in ids if number[v] >= train_until], index=index
    )


@dataclasses.dataclass(frozen=True)
class Task:
    store: FeatureStore
    source: str
    features: Mapping[str, np.ndarray]
    labels: Mapping[str, str]
    split: Split

    def reduce(self, options: ReduceOptions = OPTIONS, split: Split | None = None) -> ReduceSummary:
        return reduce_features(self.store, self.source, split or self.split, options)

    def train_rows(self) -> np.ndarray:
        return np.concatenate([self.features[v] for v in sorted(self.split.train)]).astype(np.float64)


def task_in(folder: Path, *, dim: int = 12, dtype: str = "float32", seed: int = 0) -> Task:
    features, labels = blobs(CLASSES, 10, dim=dim, dtype=dtype, seed=seed)
    store, source = feature_store(folder / "store.zarr", features)
    return Task(store, source, features, labels, split_at(list(labels), 7))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return task_in(tmp_path)


def projection_in(task: Task, name: str) -> Projection:
    projection = read_fit(task.store, name, task.store.spec(name))
    assert isinstance(projection, Projection)
    return projection


def bits(store: FeatureStore, name: str) -> dict[str, bytes]:
    return {video_id: store.read(name, video_id).features.tobytes() for video_id in store.video_ids(name)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("dim", [12, 150])
@pytest.mark.parametrize("whiten", [False, True])
def test_stored_projections_are_scikit_learns(tmp_path: Path, dtype: str, dim: int, whiten: bool) -> None:
    """Both ways, more rows than features and fewer; up to sign, and to the rounding of the stored type."""
    task = task_in(tmp_path, dim=dim, dtype=dtype)
    summary = task.reduce(dataclasses.replace(OPTIONS, whiten=whiten))
    rows = task.train_rows()
    assert (len(rows) < dim) == (dim == 150)
    assert (summary.num_rows, summary.num_train) == (len(rows), 21)
    theirs = PCA(4, svd_solver="full", whiten=whiten).fit(rows)
    assert summary.explained == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-6)
    signs = np.sign((projection_in(task, summary.feature_set).components * theirs.components_).sum(axis=1))
    tolerance = 1e-4 if dtype == "float32" else 1e-3
    for video_id, features in task.features.items():
        stored = task.store.read(summary.feature_set, video_id, check=True).features
        assert stored.dtype == dtype
        expected = theirs.transform(features.astype(np.float64)) * signs
        assert np.linalg.norm(stored - expected) <= tolerance * np.linalg.norm(expected)


def test_the_spec_says_what_was_done(task: Task) -> None:
    summary = task.reduce(dataclasses.replace(OPTIONS, whiten=True, l2=True, seed=7))
    spec = task.store.spec(summary.feature_set)
    assert spec.reduction == ReductionSpec(
        source=task.source,
        dim=4,
        whiten=True,
        l2=True,
        solver="randomised:7",
        protocol="holdout",
        split=0,
        train_ids_sha256=train_ids_sha256(task.split),
    )
    assert dataclasses.replace(spec, feature_dim=12, reduction=None) == task.store.spec(task.source)
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert summary.feature_set == spec.name
    assert spec.name.startswith("drawn-rgb-")
    assert spec.name != task.source
    # A plain feature set keeps the name it had before there were reductions.
    assert "reduction" not in task.store.spec(task.source).to_dict()
    with pytest.raises(FeatureMismatchError, match="reduction"):
        dataclasses.replace(spec, reduction=None).require_equal(spec, "here")


def test_rows_keep_their_videos_clips_and_notes(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    source = VideoSource(
        clip_starts=np.array([3, 9]),
        clip_ends=np.array([8, 14]),
        num_frames=17,
        fps=29.97,
        padded=True,
        decode_notes=("cut short",),
        provenance={"decoder": "pyav"},
    )
    task.store.write(task.source, "odd-8", np.ones((2, 12), np.float32), source)
    task.store.record_failure(task.source, "broken-9", "no frames")
    summary = task.reduce(split=task.split)
    assert task.store.video_ids(summary.feature_set) == task.store.video_ids(task.source)
    assert summary.total == summary.done == 31
    record = task.store.read(summary.feature_set, "odd-8")
    assert (record.num_frames, record.fps, record.padded) == (17, 29.97, True)
    assert (record.clip_starts.tolist(), record.clip_ends.tolist()) == ([3, 9], [8, 14])
    assert record.decode_notes == ("cut short",)
    assert record.provenance == {"decoder": "pyav"}
    assert task.store.failures(summary.feature_set) == {"broken-9": "no frames"}
    assert task.store.feature_sets() == sorted([task.source, summary.feature_set])
    assert [damage for damage in task.store.verify(summary.feature_set) if damage] == []
    facts = task.store.fit_attributes(summary.feature_set)
    assert facts is not None
    assert (facts["protocol"], facts["split"], facts["num_train"]) == ("holdout", 0, 21)
    assert facts["train_ids_sha256"] == train_ids_sha256(task.split)


@pytest.mark.parametrize("dim", [12, 150])
def test_videos_outside_training_do_not_touch_the_components(tmp_path: Path, dim: int) -> None:
    one, other = task_in(tmp_path / "one", dim=dim), task_in(tmp_path / "other", dim=dim)
    for video_id in other.split.test:
        other.store.delete(other.source, video_id)
        starts = np.arange(3)
        source = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=3, fps=25.0)
        other.store.write(other.source, video_id, np.full((3, dim), 1e4, np.float32) * (1 + starts[:, None]), source)
    # Validation videos are not training ones either: here they are half of the test videos.
    split = dataclasses.replace(one.split, val=one.split.test[:5], test=one.split.test[5:])
    names = (one.reduce(split=split).feature_set, other.reduce(split=split).feature_set)
    assert names[0] == names[1]
    first, second = one.store.read_fit(names[0]), other.store.read_fit(names[1])
    assert all(np.array_equal(first[key], second[key]) for key in first)
    test = one.split.test[0]
    assert not np.array_equal(one.store.read(names[0], test).features, other.store.read(names[1], test).features)
    # And a training video does.
    task = task_in(tmp_path / "third", dim=dim)
    moved = split_at(list(task.labels), 6)
    assert not np.array_equal(task.store.read_fit(task.reduce(split=moved).feature_set)["mean"], first["mean"])


def test_an_interrupted_job_goes_on_with_its_fit(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(task.store.path, tmp_path / "whole.zarr")
    whole = FeatureStore(tmp_path / "whole.zarr")
    name = reduce_features(whole, task.source, task.split, OPTIONS).feature_set

    class KilledError(Exception):
        pass

    def stop_at(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("project", 11):
            raise KilledError

    with pytest.raises(KilledError):
        reduce_features(task.store, task.source, task.split, OPTIONS, stop_at)
    assert len(task.store.video_ids(name)) == 11
    monkeypatch.setattr(reduce, "fit_exact", None)
    summary = task.reduce()
    assert (summary.fitted, summary.already, summary.done, summary.num_train) == (False, 11, 19, 21)
    assert bits(task.store, name) == bits(whole, name)
    before = task.store.read_fit(name)
    task.store.delete(name, "walking-9")
    assert task.reduce().done == 1
    assert bits(task.store, name) == bits(whole, name)
    assert all(np.array_equal(before[key], array) for key, array in task.store.read_fit(name).items())


def test_a_video_that_was_made_anew_from_another_file_is_projected_anew(task: Task) -> None:
    name = task.reduce().feature_set
    before = bits(task.store, name)
    task.store.delete(task.source, "boxing-9")
    source = VideoSource(
        clip_starts=np.arange(1), clip_ends=np.arange(1, 2), num_frames=1, fps=25.0, file={"name": "other.avi"}
    )
    task.store.write(task.source, "boxing-9", np.ones((1, 12), np.float32), source)
    assert task.reduce().done == 1
    after = bits(task.store, name)
    assert {video_id for video_id in before if before[video_id] != after[video_id]} == {"boxing-9"}


def test_a_kill_in_the_fit_leaves_no_feature_set(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reduce_features(task.store, task.source, task.split, OPTIONS, stop)
    assert task.store.feature_sets() == [task.source]
    assert task.reduce().fitted


KILLED = """
import sys
from feature_sets import split_of
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore

store = FeatureStore(sys.argv[1])
(source,) = store.feature_sets()
ids = store.video_ids(source)
print("ready", flush=True)
reduce_features(store, source, split_of(ids[:200], ids[200:]), ReduceOptions(dim=8))
"""


@pytest.mark.exhaustive  # `test_faults.py` has a kill of each command
@pytest.mark.parametrize("done_before", [0, 20])
def test_a_killed_process_leaves_whole_videos_only(tmp_path: Path, done_before: int) -> None:
    rng = np.random.default_rng(0)
    features = {f"v-{number:03d}": rng.standard_normal((4, 30)).astype(np.float32) for number in range(300)}
    store, source = feature_store(tmp_path / "store.zarr", features)
    environment = {**python_path(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(store.path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None and len(projected_in(store)) < done_before:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    ids = list(features)
    split = split_of(ids[:200], ids[200:])
    summary = reduce_features(store, source, split, ReduceOptions(dim=8))
    assert summary.already >= done_before
    assert summary.done == 300 - summary.already > 0
    assert summary.fitted == (done_before == 0)
    assert [damage for damage in store.verify(summary.feature_set) if damage] == []
    fresh, _ = feature_store(tmp_path / "fresh.zarr", features)
    again = reduce_features(fresh, source, split, ReduceOptions(dim=8))
    assert again.feature_set == summary.feature_set
    for video_id in ids:
        one, two = (s.read(summary.feature_set, video_id).features for s in (store, fresh))
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert [path for path in (store.path / "_staging").iterdir() if path.is_dir()] == []


def projected_in(store: FeatureStore) -> list[str]:
    return [v for name in store.feature_sets() if store.spec(name).reduction for v in store.video_ids(name)]


def test_what_cannot_be_reduced(task: Task) -> None:
    with pytest.raises(ExtractionError, match=r"--dim 13: \d+ training rows of 12 features allow 1 to 12"):
        task.reduce(dataclasses.replace(OPTIONS, dim=13))
    with pytest.raises(ExtractionError, match="at least 1, not 0"):
        task.reduce(dataclasses.replace(OPTIONS, dim=0))
    name = task.reduce().feature_set
    with pytest.raises(FeatureMismatchError, match=f"reduced already: reduce its source, {task.source}"):
        reduce_features(task.store, name, task.split, OPTIONS)
    task.store.delete(task.source, "boxing-0")
    options = dataclasses.replace(OPTIONS, dim=3)
    with pytest.raises(StoreError, match=r"no features of 1 of the 21 training videos, such as \['boxing-0'\]"):
        task.reduce(options)
    summary = task.reduce(dataclasses.replace(options, allow_missing=True))
    assert (summary.missing, summary.num_train, summary.total) == (("boxing-0",), 20, 29)
    with pytest.raises(StoreError, match="has no features of 'boxing-0'; create them with `har features reduce`"):
        task.store.read(summary.feature_set, "boxing-0")


def test_a_feature_that_is_not_finite_is_named(task: Task) -> None:
    starts = np.arange(1)
    source = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=1, fps=25.0)
    task.store.delete(task.source, "boxing-2")
    task.store.write(task.source, "boxing-2", np.full((1, 12), np.inf, np.float32), source)
    with pytest.raises(ExtractionError, match="boxing-2: a feature is not finite"):
        task.reduce()


def test_damaged_components_are_found(task: Task) -> None:
    name = task.reduce().feature_set
    (chunk,) = (
        p for p in (task.store.path / "_reduction" / name / "mean").rglob("*") if p.is_file() and p.name != "zarr.json"
    )
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged.*the command that made the set again"):
        task.store.read_fit(name)
    shutil.rmtree(task.store.path / "_reduction" / name)
    with pytest.raises(StoreError, match=r"no fit of .* run the command that made the set again"):
        task.store.read_fit(name)


def train_on(task: Task, name: str, split: Split, run_dir: Path) -> None:
    train_split(task.store, name, manifest(task.labels), split, SMALL, run_dir)


def test_training_on_another_split_is_refused(task: Task, tmp_path: Path) -> None:
    name = task.reduce().feature_set
    train_on(task, name, task.split, tmp_path / "run")
    # The order of ids is no difference; val and test videos are not training ones.
    same = dataclasses.replace(
        task.split, train=task.split.train[::-1], val=task.split.test[:3], test=task.split.test[3:]
    )
    train_on(task, name, same, tmp_path / "same")
    other = dataclasses.replace(split_at(list(task.labels), 6), protocol="column", index=1)
    way_out = (
        f"har features reduce STORE --features {task.source} --dim 4 --manifest MANIFEST --protocol column --split 1"
    )
    message = rf"training videos of holdout split 0 .* but column split 1 trains on 18 others .*{way_out}"
    with pytest.raises(FeatureMismatchError, match=message):
        train_on(task, name, other, tmp_path / "other")
    # As --patience does: some training videos become validation videos.
    fewer = dataclasses.replace(task.split, train=task.split.train[1:], val=task.split.train[:1])
    with pytest.raises(FeatureMismatchError, match=r"another holdout split 0 .*this holdout split 0.*--patience"):
        train_on(task, name, fewer, tmp_path / "fewer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "same", "store.zarr"]


@pytest.mark.parametrize("whiten", [False, True])
def test_a_run_projects_as_training_did(task: Task, tmp_path: Path, whiten: bool) -> None:
    name = task.reduce(dataclasses.replace(OPTIONS, whiten=whiten, l2=True)).feature_set
    train_on(task, name, task.split, tmp_path / "run")
    shutil.rmtree(task.store.path)
    run = load_run(tmp_path / "run")
    projection = run.fit()
    assert isinstance(projection, Projection)
    scores = run.scores()
    for row, video_id in enumerate(scores.video_ids):
        projected = projection.apply(task.features[video_id], run.spec.dtype)
        np.testing.assert_allclose(predict_scores(run, projected), scores.probabilities[row], atol=1e-6)
    arrays = load_file(tmp_path / "run/reduction.safetensors")
    assert {key: (array.shape, str(array.dtype)) for key, array in arrays.items()} == {
        "mean": ((12,), "float64"),
        "components": ((4, 12), "float32"),
        "explained_variance": ((4,), "float64"),
    }
    (tmp_path / "run/reduction.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"reduction.safetensors: damaged, or changed after the training"):
        run.fit()


def test_a_run_on_plain_features_has_no_projection(task: Task, tmp_path: Path) -> None:
    train_on(task, task.source, task.split, tmp_path / "run")
    assert load_run(tmp_path / "run").fit() is None
    assert not (tmp_path / "run/reduction.safetensors").exists()


@pytest.mark.exhaustive
@pytest.mark.needs_real_data
def test_real_features_keep_their_accuracy(real_data: Path, tmp_path: Path) -> None:
    """4,096 values of VGG16's fc6 to 256, fitted on 4,068 clips, so through the Gram matrix."""
    store, source, records, split = ucf101_fc6(real_data, tmp_path / "store.zarr")
    config = TrainConfig(head="mean_pool", device="cpu")
    plain = train_split(store, source, records, split, config, tmp_path / "plain")
    summary = reduce_features(store, source, split, ReduceOptions(dim=256))
    assert summary.num_rows == 4068
    assert 0.85 < summary.explained < 0.9
    reduced = train_split(store, summary.feature_set, records, split, config, tmp_path / "reduced")
    assert reduced.test_accuracy >= plain.test_accuracy - 0.01
