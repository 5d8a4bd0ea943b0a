"""Encoded feature sets: fitted on training videos only, whole or absent, resumed, refused on other splits."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from feature_sets import feature_store, manifest, split_of
from paths import python_path
from train_split import train_split

from har_pipeline.core.errors import ExtractionError, FeatureMismatchError, RunError, StoreError
from har_pipeline.core.records import ClipSpec, FeatureSpec, Split, VideoSource
from har_pipeline.evaluation.plan import require_one_job
from har_pipeline.evaluation.run_folder import read_run
from har_pipeline.features import encode
from har_pipeline.features.encode import EncodeSummary, encode_features, encoded_spec
from har_pipeline.features.fisher import Encoder
from har_pipeline.features.fitted import NO_ROWS, read_fit, source_spec, train_ids_sha256
from har_pipeline.features.options import EncodeOptions, RawOptions
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.reduce import ReduceOptions, reduce_features, reduced_spec
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams
from har_pipeline.inference.load import load_run
from har_pipeline.inference.predict import predict_scores
from har_pipeline.training.data import load_training_data
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.options import TrainConfig

CLASSES = ("jump", "run", "wave")
OPTIONS = EncodeOptions(gaussians=4)
SPEC = FeatureSpec(
    extractor="harris3d_hof",
    weights="none",
    layer="hof",
    feature_dim=90,
    clips=ClipSpec(sampling="dense", num_clips=None),
    dtype="float16",
)
EMPTY = "wave-7"


def source_of(video_id: str, points: int) -> VideoSource:
    starts = np.arange(5, 5 + points)
    return VideoSource(clip_starts=starts, clip_ends=starts + 15, num_frames=90, fps=25.0, file={"name": video_id})


@dataclasses.dataclass(frozen=True)
class Task:
    store: FeatureStore
    source: str
    labels: dict[str, str]
    split: Split

    def encode(self, options: EncodeOptions = OPTIONS, split: Split | None = None) -> EncodeSummary:
        return encode_features(self.store, self.source, split or self.split, options)


def task_in(folder: Path, *, changed_tests: bool = False) -> Task:
    """Eight videos of each class, of 3 to 30 points around places of their class; the last of all has none."""
    rng = np.random.default_rng(0)
    store = FeatureStore(folder / "store.zarr", create=True)
    source, labels = store.create_feature_set(SPEC), {}
    for label in CLASSES:
        places = rng.random((3, 90))
        for number in range(8):
            video_id = f"{label}-{number}"
            count = int(rng.integers(3, 30))
            points = places[rng.integers(0, 3, count)] + 0.3 * rng.random((count, 90))
            if changed_tests and number >= 6:
                points = np.concatenate([points, 50 * points])
            if video_id == EMPTY:
                points = np.zeros((1, 90))
            store.write(source, video_id, points.astype(np.float16), source_of(video_id, len(points)))
            labels[video_id] = label
    return Task(store, source, labels, split_at(list(labels), 6))


def split_at(ids: Sequence[str], train_until: int, index: int = 0) -> Split:
    train = [v for v in ids if int(v[-1]) < train_until]
    return split_of(train, [v for v in ids if v not in train], index=index)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return task_in(tmp_path)


def bits(store: FeatureStore, name: str) -> dict[str, bytes]:
    return {video_id: store.read(name, video_id).features.tobytes() for video_id in store.video_ids(name)}


@pytest.mark.parametrize("kind", ["fisher", "words"])
def test_every_video_has_one_row_of_its_points(task: Task, kind: str) -> None:
    summary = task.encode(dataclasses.replace(OPTIONS, encoding=kind, words=5))
    dim = 2 * 4 * 45 if kind == "fisher" else 5
    assert (summary.dim, summary.total, summary.done, summary.num_train) == (dim, 24, 24, 18)
    assert summary.feature_set.startswith(f"harris3d_hof-rgb-{kind}{4 if kind == 'fisher' else 5}-")
    encoder = read_fit(task.store, summary.feature_set, task.store.spec(summary.feature_set))
    assert isinstance(encoder, Encoder)
    for video_id in task.labels:
        rows, made = task.store.read(task.source, video_id), task.store.read(summary.feature_set, video_id, check=True)
        assert np.array_equal(made.features, encoder.apply(rows.features, "float16"))
        assert (made.clip_starts.tolist(), made.clip_ends.tolist()) == ([5], [5 + len(rows.features) - 1 + 15])
        assert made.clip_times_s.tolist() == [[5 / 25, (5 + len(rows.features) - 1 + 15) / 25]]
        assert (made.num_frames, made.file) == (90, {"name": video_id})
        assert made.decode_notes == ((NO_ROWS,) if video_id == EMPTY else ())
        assert made.features.any() == (video_id != EMPTY)
    assert [damage for damage in task.store.verify(summary.feature_set) if damage] == []


def test_the_spec_names_the_encoding_and_leads_back_to_its_source(task: Task) -> None:
    summary = task.encode(dataclasses.replace(OPTIONS, seed=3, components=7, sample=99))
    spec = task.store.spec(summary.feature_set)
    assert spec.encoding is not None
    assert (spec.encoding.size, spec.encoding.components, spec.encoding.sample, spec.encoding.seed) == (4, 7, 99, 3)
    assert spec.encoding.train_ids_sha256 == train_ids_sha256(task.split)
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert source_spec(spec, 90) == task.store.spec(task.source)
    # A plain feature set keeps the name it had before there were encodings.
    assert "encoding" not in task.store.spec(task.source).to_dict()
    with pytest.raises(FeatureMismatchError, match="was not made from"):
        source_spec(spec, 91)
    assert task.store.resolve("harris3d") == task.source
    with pytest.raises(StoreError, match="no features of 'jump-9'; create them with `har features encode`"):
        task.store.read(summary.feature_set, "jump-9")


@pytest.mark.parametrize("kind", ["fisher", "words"])
def test_videos_outside_training_do_not_touch_the_fit(tmp_path: Path, kind: str) -> None:
    options = dataclasses.replace(OPTIONS, encoding=kind, words=5, sample=100)
    one, other = task_in(tmp_path / "one"), task_in(tmp_path / "other", changed_tests=True)
    split = dataclasses.replace(one.split, val=one.split.test[:3], test=one.split.test[3:])
    names = one.encode(options, split).feature_set, other.encode(options, split).feature_set
    assert names[0] == names[1]
    first, second = one.store.read_fit(names[0]), other.store.read_fit(names[1])
    assert all(np.array_equal(first[key], second[key]) for key in first)
    mine, theirs = bits(one.store, names[0]), bits(other.store, names[1])
    differing = {v for v in mine if mine[v] != theirs[v]}
    # Other points may be of the same words.
    assert differing <= {v for v in mine if int(v[-1]) >= 6} - {EMPTY}
    assert len(differing) == 5 or (kind == "words" and differing)
    # And a training video does.
    moved = one.store.read_fit(one.encode(options, split_at(list(one.labels), 5)).feature_set)
    assert not all(np.array_equal(first[key], moved[key]) for key in first)


def test_the_fit_reads_an_equal_share_of_each_training_video(task: Task) -> None:
    lengths = task.store.num_clips(task.source)
    summary = task.encode(dataclasses.replace(OPTIONS, sample=18 * 5 + 17))
    assert summary.num_rows == sum(min(5, lengths[video_id]) for video_id in task.split.train)
    with pytest.raises(ExtractionError, match="--sample 17: fewer rows than the 18 training videos"):
        task.encode(dataclasses.replace(OPTIONS, sample=17))


def test_training_videos_without_points_are_counted(task: Task) -> None:
    split = split_of([v for v in task.labels if v[-1] in "1234567"], [v for v in task.labels if v[-1] == "0"])
    summary = task.encode(split=split)
    assert (summary.without_rows, summary.num_train) == (1, 21)


def test_an_interrupted_job_goes_on_with_its_fit(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(task.store.path, tmp_path / "whole.zarr")
    whole = FeatureStore(tmp_path / "whole.zarr")
    name = encode_features(whole, task.source, task.split, OPTIONS).feature_set

    class KilledError(Exception):
        pass

    def stop_at(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("encode", 11):
            raise KilledError

    with pytest.raises(KilledError):
        encode_features(task.store, task.source, task.split, OPTIONS, stop_at)
    assert len(task.store.video_ids(name)) == 11
    monkeypatch.setattr(encode, "fit_encoder", None)
    summary = task.encode()
    assert (summary.fitted, summary.already, summary.done, summary.num_train) == (False, 11, 13, 18)
    assert summary.blocks == ("hof",)
    assert bits(task.store, name) == bits(whole, name)


KILLED = """
import sys
from feature_sets import split_of
from har_pipeline.features.encode import encode_features
from har_pipeline.features.options import EncodeOptions
from har_pipeline.features.store import FeatureStore

store = FeatureStore(sys.argv[1])
(source,) = store.feature_sets()
ids = store.video_ids(source)
encode_features(store, source, split_of(ids[:100], ids[100:]), EncodeOptions(gaussians=3))
"""


@pytest.mark.exhaustive
def test_a_killed_process_leaves_whole_videos_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = {f"v-{number:03d}": rng.standard_normal((9, 20)).astype(np.float32) for number in range(200)}
    stores, split = [], split_of(list(features)[:100], list(features)[100:])
    for name in ("killed", "whole"):
        store, source = feature_store(tmp_path / f"{name}.zarr", features)
        stores.append(store)
    killed, whole = stores
    expected = encode_features(whole, source, split, EncodeOptions(gaussians=3)).feature_set
    environment = {**python_path(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    made = killed.path / expected
    with subprocess.Popen([sys.executable, "-c", KILLED, str(killed.path)], env=environment) as process:
        while process.poll() is None and len(list(made.glob("v-*"))) < 20:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    summary = encode_features(killed, source, split, EncodeOptions(gaussians=3))
    assert (summary.feature_set, summary.fitted) == (expected, False)
    assert 20 <= summary.already < 200
    assert summary.already + summary.done == 200
    assert [damage for damage in killed.verify(expected) if damage] == []
    for video_id in features:  # the fit of another process may have had another number of threads
        one, other = (store.read(expected, video_id).features for store in stores)
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_what_cannot_be_encoded(task: Task) -> None:
    with pytest.raises(ExtractionError, match=r"harris3d_hof-.*fewer than the 900 Gaussians"):
        task.encode(dataclasses.replace(OPTIONS, gaussians=900))
    with pytest.raises(ExtractionError, match="gaussians must be at least 1, not 0"):
        EncodeOptions(gaussians=0)
    encoded = task.encode().feature_set
    with pytest.raises(FeatureMismatchError, match=f"encoded already: encode its source, {task.source}"):
        encode_features(task.store, encoded, task.split, OPTIONS)
    with pytest.raises(FeatureMismatchError, match=f"encoded already: reduce its source, {task.source}"):
        reduce_features(task.store, encoded, task.split, ReduceOptions(dim=2))
    with pytest.raises(FeatureMismatchError, match="reduced already: encode its source"):
        encoded_spec(reduced_spec(SPEC, task.split, ReduceOptions(dim=2)), task.split, OPTIONS)
    with pytest.raises(FeatureMismatchError, match="uint8 pixels are no descriptors"):
        encoded_spec(RawOptions().spec(), task.split, OPTIONS)
    task.store.delete(task.source, "jump-0")
    options = dataclasses.replace(OPTIONS, gaussians=3)
    with pytest.raises(StoreError, match=r"no features of 1 of the 18 training videos, such as \['jump-0'\]"):
        task.encode(options)
    assert task.encode(dataclasses.replace(options, allow_missing=True)).missing == ("jump-0",)


def test_training_on_another_split_is_refused(task: Task) -> None:
    name = task.encode(dataclasses.replace(OPTIONS, components=7, sample=99)).feature_set
    records, streams = manifest(task.labels), FeatureStreams(task.store, [name])
    load_training_data(streams, records, [dataclasses.replace(task.split, train=task.split.train[::-1])])
    other = dataclasses.replace(split_at(list(task.labels), 5), protocol="column", index=1)
    way_out = (
        f"har features encode STORE --features {task.source} --encoding fisher --gaussians 4 --components 7 --sample 99 "
        "--manifest MANIFEST --protocol column --split 1"
    )
    message = rf"training videos of holdout split 0 .* column split 1 trains on 15 others .*its Gaussians .*{way_out}"
    with pytest.raises(FeatureMismatchError, match=message):
        load_training_data(streams, records, [other])


def test_videos_without_a_row_lead_to_the_command_that_makes_it(task: Task) -> None:
    name = task.encode().feature_set
    task.store.delete(name, "run-7")
    message = (
        r"no features of 1 video \(run-7\) of the 24 wanted. Run `har features encode` on the store, after `har extract "
        "--extractor harris3d_hof --layer hof`"
    )
    with pytest.raises(RunError, match=message):
        load_training_data(FeatureStreams(task.store, [name]), manifest(task.labels), [task.split])


def test_a_run_keeps_the_encoder(task: Task, tmp_path: Path) -> None:
    name = task.encode().feature_set
    config = TrainConfig(head="svm", logistic_c=100, device="cpu")
    train_split(task.store, name, manifest(task.labels), task.split, config, tmp_path / "run")
    rows = {video_id: task.store.read(task.source, video_id).features for video_id in task.split.test}
    shutil.rmtree(task.store.path)
    run = load_run(tmp_path / "run")
    encoder = run.fit()
    assert isinstance(encoder, Encoder)
    scores = run.scores()
    for row, video_id in enumerate(scores.video_ids):
        encoded = encoder.apply(rows[video_id], run.spec.dtype)
        np.testing.assert_allclose(predict_scores(run, encoded), scores.probabilities[row], atol=1e-6)
    (tmp_path / "run/encoding.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"encoding.safetensors: damaged, or changed after the training"):
        run.fit()


def test_encoded_features_are_not_scaled_unless_asked(task: Task, tmp_path: Path) -> None:
    """Nor does the same command find that a finished run differs from what it asks for."""
    name, records = task.encode().feature_set, manifest(task.labels)
    config = TrainConfig(head="svm", device="cpu")
    assert config.scales_features
    found = {}
    for way, asked in (("default", None), ("scaled", True)):
        own, jobs = dataclasses.replace(config, standardise=asked), plan_jobs([task.split], tmp_path / way)
        run_jobs(task.store, [name], records, jobs, own)
        found[way] = read_run(tmp_path / way).info["options"]["standardise"]
        (again,) = run_jobs(task.store, [name], records, jobs, own)
        assert again.kept
    assert found == {"default": False, "scaled": True}
    run_jobs(task.store, [task.source], records, plan_jobs([task.split], tmp_path / "points"), config)
    assert read_run(tmp_path / "points").info["options"]["standardise"] is True


def test_a_run_notes_classes_that_no_fold_holds_out(task: Task, tmp_path: Path) -> None:
    """All videos of a class in the same group: a fold without them trains on none of it."""
    name = task.encode().feature_set
    records = [
        dataclasses.replace(record, group="one" if record.label == "wave" else None) for record in manifest(task.labels)
    ]
    split = dataclasses.replace(task.split, protocol="unknown")
    summary = train_split(task.store, name, records, split, TrainConfig(head="svm", device="cpu"), tmp_path / "run")
    assert [note for note in summary.notes if "svm" in note] == [
        "the svm's probabilities of wave are calibrated by the other classes alone: training videos of a single subject, "
        "group or file cannot be held out"
    ]


def test_folds_with_encodings_of_their_own_are_one_job(task: Task, tmp_path: Path) -> None:
    runs = []
    for index, until in enumerate((5, 6)):
        split = split_at(list(task.labels), until, index)
        name = task.encode(split=split).feature_set
        config = TrainConfig(head="svm", device="cpu")
        train_split(task.store, name, manifest(task.labels), split, config, tmp_path / f"split{index}")
        runs.append(read_run(tmp_path / f"split{index}"))
    require_one_job(runs)


def test_a_pack_holds_the_encoder_too(task: Task, tmp_path: Path) -> None:
    name = task.encode().feature_set
    pack_features(task.store, name, tmp_path / "s.pack")
    packed = PackedStore(tmp_path / "s.pack")
    spec = packed.spec(name)
    assert spec == task.store.spec(name)
    rows = task.store.read(task.source, "run-1").features
    fits = [read_fit(store, name, spec) for store in (packed, task.store)]
    assert np.array_equal(*(fit.apply(rows, "float16") for fit in fits if fit is not None))
    assert [damage for damage in packed.verify(name) if damage] == []


def replace_video(task: Task, video_id: str, count: int = 12) -> None:
    """As `har extract --replace-changed` does after the file was exchanged."""
    task.store.delete(task.source, video_id)
    points = np.random.default_rng(9).random((count, 90)).astype(np.float16)
    source = dataclasses.replace(source_of(video_id, count), file={"name": video_id, "size": "9"})
    task.store.write(task.source, video_id, points, source)


@pytest.mark.parametrize("kind", ["fisher", "pca"])
def test_a_training_video_that_was_extracted_again_is_fitted_again(kind: str, tmp_path: Path) -> None:
    task, fresh = task_in(tmp_path / "a"), task_in(tmp_path / "b")

    def derive(one: Task) -> str:
        if kind == "pca":
            return reduce_features(one.store, one.source, one.split, ReduceOptions(dim=3)).feature_set
        return one.encode().feature_set

    name = derive(task)
    replace_video(task, "jump-7")  # a test video: its own row is made again, the fit stays
    before = task.store.read_fit(name)
    assert derive(task) == name
    assert all(np.array_equal(before[key], one) for key, one in task.store.read_fit(name).items())
    for one in (task, fresh):
        replace_video(one, "jump-0")
    replace_video(fresh, "jump-7")
    assert derive(task) == derive(fresh) == name
    after = task.store.read_fit(name)
    assert not all(np.array_equal(before[key], one) for key, one in after.items())
    for key, one in fresh.store.read_fit(name).items():
        assert np.array_equal(one, after[key])
    for video_id in task.labels:
        mine, theirs = (one.store.read(name, video_id, check=True).features for one in (task, fresh))
        assert np.array_equal(mine, theirs)


def test_training_refuses_rows_that_were_made_of_another_file(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    name = task.encode().feature_set
    replace_video(task, "wave-1")
    records = manifest(task.labels)
    with pytest.raises(
        RunError, match=r"1 video \(wave-1\) extracted again since from another file: run `har features encode`"
    ):
        next(load_training_data(FeatureStreams(task.store, [name]), records, [task.split]))
    task.encode()
    next(load_training_data(FeatureStreams(task.store, [name]), records, [task.split]))


def test_a_fit_that_is_gone_is_damage(tmp_path: Path) -> None:
    task = task_in(tmp_path)
    name = task.encode().feature_set
    assert not any(task.store.verify(name))
    shutil.rmtree(task.store.path / "_reduction" / name)
    (damage,) = filter(None, task.store.verify(name))
    assert (damage.kind, damage.readable) == ("fit", True)
    task.store.mend(name, damage)
    assert name not in task.store.feature_sets()
    task.encode()
    assert not any(task.store.verify(name))
