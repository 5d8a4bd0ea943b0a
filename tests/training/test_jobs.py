"""Folds and repeats as one job."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from run_files import change_info
from train_split import train_split

from har_pipeline.core.errors import FeatureMismatchError, RunError
from har_pipeline.core.records import Split, VideoRecord, VideoSource
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.evaluation.plan import repeat_folders, unfinished
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import FeatureStreams
from har_pipeline.inference.load import load_run
from har_pipeline.training.axes import parse_axis
from har_pipeline.training.heads import train
from har_pipeline.training.jobs import Outcome, PlannedRun, finished_run, plan_jobs, run_jobs
from har_pipeline.training.options import TrainConfig
from har_pipeline.training.sweep import plan_points, run_sweep

CLASSES = ("boxing", "running", "walking")
SMALL = TrainConfig(units=4, epochs=3, batch_size=5, learning_rate=1e-2, device="cpu")


@dataclasses.dataclass(frozen=True)
class Task:
    store: FeatureStore
    name: str
    records: list[VideoRecord]
    splits: list[Split]

    def run(self, planned: list[PlannedRun], config: TrainConfig = SMALL, **options: object) -> list[Outcome]:
        return run_jobs(self.store, [self.name], self.records, planned, config, **options)  # type: ignore[arg-type]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    features, labels = blobs(CLASSES, 6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    ids = list(labels)
    splits = [
        split_of([v for v in ids if int(v[-1]) % 3 != k], [v for v in ids if int(v[-1]) % 3 == k], index=k)
        for k in range(3)
    ]
    return Task(store, name, manifest(labels), splits)


def scores_of(folder: Path) -> bytes:
    return (folder / "scores.csv").read_bytes()


def test_folders_of_a_plan(task: Task, tmp_path: Path) -> None:
    def folders(splits: list[Split], **options: int) -> list[str]:
        return [str(job.folder.relative_to(tmp_path)) for job in plan_jobs(splits, tmp_path / "out", **options)]

    assert folders(task.splits[:1]) == ["out"]
    assert folders(task.splits[:2]) == ["out/split0", "out/split1"]
    assert folders(task.splits[:1], repeats=2, seed=4) == ["out/seed4", "out/seed5"]
    both = ["out/seed0/split0", "out/seed0/split1", "out/seed1/split0", "out/seed1/split1"]
    assert folders(task.splits[:2], repeats=2) == both
    with pytest.raises(RunError, match="--repeats"):
        plan_jobs(task.splits, tmp_path, repeats=0)


def test_a_job_makes_the_runs_that_each_alone_would_be(task: Task, tmp_path: Path) -> None:
    planned = plan_jobs(task.splits[:2], tmp_path / "job", repeats=2)
    outcomes = task.run(planned)
    assert [outcome.run for outcome in outcomes] == planned
    for job in planned:
        config = dataclasses.replace(SMALL, seed=job.seed)
        alone = tmp_path / "alone" / job.folder.relative_to(tmp_path)
        train_split(task.store, task.name, task.records, job.split, config, alone)
        assert scores_of(alone) == scores_of(job.folder)
        assert load_run(job.folder).split == job.split
    assert scores_of(planned[0].folder) != scores_of(planned[2].folder)


def test_the_features_are_read_once(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    original = FeatureStore.read

    def read(self: FeatureStore, feature_set: str, video_id: str, *, check: bool) -> object:
        reads.append(video_id)
        return original(self, feature_set, video_id, check=check)

    monkeypatch.setattr(FeatureStore, "read", read)
    task.run(plan_jobs(task.splits, tmp_path / "job", repeats=2))
    assert sorted(reads) == sorted(record.video_id for record in task.records)


def test_a_folder_that_is_no_run_is_refused_before_the_features_are_read(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job/split1").mkdir(parents=True)
    (tmp_path / "job/split1/notes.txt").write_text("mine")
    monkeypatch.setattr(FeatureStore, "read", None)
    with pytest.raises(RunError, match="split1 exists and is not a run folder"):
        task.run(plan_jobs(task.splits, tmp_path / "job"))
    assert not (tmp_path / "job/split0").exists()


def test_a_crash_resumes_at_the_unfinished_fold(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan_jobs(task.splits, tmp_path / "job")
    original = train.fit_head
    trained = []

    def crash(*args: object, **kwargs: object) -> object:
        trained.append(1)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "fit_head", crash)
    with pytest.raises(KeyboardInterrupt):
        task.run(planned)
    assert [path.name for path in sorted((tmp_path / "job").iterdir())] == ["plan.json", "split0"]
    assert unfinished(tmp_path / "job")[0].startswith(
        "2 of 3 runs are missing (split1, split2): the job was interrupted"
    )
    before = (tmp_path / "job/split0/run.json").stat().st_mtime_ns
    outcomes = task.run(planned)
    assert [outcome.kept for outcome in outcomes] == [True, False, False]
    assert unfinished(tmp_path / "job") == []
    assert len(trained) == 4
    assert (tmp_path / "job/split0/run.json").stat().st_mtime_ns == before
    assert [outcome.summary for outcome in task.run(planned)] == [outcome.summary for outcome in outcomes]
    whole = plan_jobs(task.splits, tmp_path / "whole")
    task.run(whole)
    for job, other in zip(planned, whole, strict=True):
        assert scores_of(job.folder) == scores_of(other.folder)


def test_runs_of_other_options_features_or_videos_are_not_mixed_in(task: Task, tmp_path: Path) -> None:
    planned = plan_jobs(task.splits[:2], tmp_path / "job")
    task.run(planned)
    with pytest.raises(RunError, match=r"split0 was trained differently \(units: 4 != 5\): .*--overwrite"):
        task.run(planned, dataclasses.replace(SMALL, units=5))
    other = dataclasses.replace(task.splits[0], train=task.splits[0].train[1:])
    with pytest.raises(RunError, match="the videos of the split"):
        task.run(plan_jobs([other, task.splits[1]], tmp_path / "job"))
    features, _ = blobs(CLASSES, 6, dim=9)
    store, name = feature_store(tmp_path / "other.zarr", features)
    with pytest.raises(RunError, match="features: drawn"):
        dataclasses.replace(task, store=store, name=name).run(planned)
    task.run(planned, dataclasses.replace(SMALL, units=5), overwrite=True)
    assert load_run(planned[0].folder).config.units == 5


def relabelled(records: list[VideoRecord], *video_ids: str) -> list[VideoRecord]:
    return [dataclasses.replace(one, label="running") if one.video_id in video_ids else one for one in records]


def test_runs_of_other_labels_are_not_mixed_in(task: Task, tmp_path: Path) -> None:
    planned = plan_jobs(task.splits[:2], tmp_path / "job")
    task.run(planned)
    for video_id in (task.splits[0].train[0], task.splits[0].test[0]):
        other = dataclasses.replace(task, records=relabelled(task.records, video_id))
        with pytest.raises(
            RunError, match=r"split0 was trained differently \(the labels of the videos\): .*--overwrite"
        ):
            other.run(planned)
    # Rows and columns that the manifest gained, and another order, change nothing.
    more = [*reversed(task.records), dataclasses.replace(task.records[0], video_id="new", label="walking")]
    more = [dataclasses.replace(record, subject="s1") for record in more]
    assert all(outcome.kept for outcome in dataclasses.replace(task, records=more).run(planned))
    other.run(planned, overwrite=True)
    assert all(outcome.kept for outcome in other.run(planned))


def replace_features(task: Task, video_id: str, array: np.ndarray) -> None:
    starts = np.arange(len(array))
    task.store.delete(task.name, video_id)
    source = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=len(array), fps=25.0)
    assert task.store.write(task.name, video_id, array, source)


def test_runs_of_other_features_of_a_video_are_not_mixed_in(task: Task, tmp_path: Path) -> None:
    planned = plan_jobs(task.splits[:2], tmp_path / "job")
    task.run(planned)
    points = plan_points([parse_axis("units", "2,3")], SMALL, task.name, tmp_path / "sweep")
    run_sweep(task.store, task.records, task.splits[:1], points, workers=1)
    pack_features(task.store, task.name, tmp_path / "store.pack")
    pack = PackedStore(tmp_path / "store.pack")
    packed_jobs = plan_jobs(task.splits[:1], tmp_path / "packed", folds=True)
    run_jobs(pack, [task.name], task.records, packed_jobs, SMALL)
    # A pack is its store; features of videos outside the split are not compared.
    assert all(outcome.kept for outcome in run_jobs(pack, [task.name], task.records, planned, SMALL))
    replace_features(task, "stranger", np.zeros((2, 8), np.float32))
    assert all(outcome.kept for outcome in task.run(planned))
    assert task.run(packed_jobs)[0].kept
    array = task.store.read(task.name, task.splits[0].test[0]).features
    replace_features(task, task.splits[0].test[0], array + 1)
    with pytest.raises(RunError, match=r"split0 was trained differently \(the features of the videos\): .*--overwrite"):
        task.run(planned)
    with pytest.raises(RunError, match=r"trained differently \(the features of the videos\)"):
        run_sweep(task.store, task.records, task.splits[:1], points, workers=1)
    without(planned[0].folder / "run.json", "features_sha256")
    assert task.run(planned[:1])[0].kept
    # Written back as it was, it is what the runs learned from.
    replace_features(task, task.splits[0].test[0], array)
    assert all(outcome.kept for outcome in task.run(planned))


def test_features_of_either_stream_are_compared(task: Task, tmp_path: Path) -> None:
    flow = task.store.create_feature_set(dataclasses.replace(task.store.spec(task.name), stream="flow", flow="drawn"))
    other = dataclasses.replace(task, name=flow)
    for video_id in task.store.video_ids(task.name):
        replace_features(other, video_id, task.store.read(task.name, video_id).features)
    planned = plan_jobs(task.splits[:1], tmp_path / "job", folds=True)
    config = dataclasses.replace(SMALL, mid_fusion="input")
    names = [task.name, flow]
    run_jobs(task.store, names, task.records, planned, config)
    assert run_jobs(task.store, names, task.records, planned, config)[0].kept
    changed = task.store.read(flow, "boxing-0").features + 1
    replace_features(other, "boxing-0", changed)
    with pytest.raises(RunError, match=r"trained differently \(the features of the videos\)"):
        run_jobs(task.store, names, task.records, planned, config)


def test_a_sweep_does_not_mix_labels(task: Task, tmp_path: Path) -> None:
    points = plan_points([parse_axis("units", "2,3")], SMALL, task.name, tmp_path / "out")
    run_sweep(task.store, task.records, task.splits[:1], points, workers=1)
    records = relabelled(task.records, task.splits[0].test[0])
    with pytest.raises(RunError, match=r"was trained differently \(the labels of the videos\)"):
        run_sweep(task.store, records, task.splits[:1], points, workers=1)


def without(path: Path, *keys: str) -> None:
    info = json.loads(path.read_text())
    kept = {key: value for key, value in info.items() if key not in (*keys, "sha256")}
    path.write_text(json.dumps({**kept, "format": 1}))


def test_runs_of_older_versions_that_do_not_tell_their_labels_are_kept(task: Task, tmp_path: Path) -> None:
    planned = plan_jobs(task.splits[:1], tmp_path / "job")
    task.run(planned)
    without(planned[0].folder / "run.json", "labels_sha256")
    other = dataclasses.replace(task, records=relabelled(task.records, task.splits[0].train[0]))
    assert other.run(planned)[0].kept


def test_a_job_does_not_go_on_with_runs_that_took_other_clips(task: Task, tmp_path: Path) -> None:
    planned = plan_jobs(task.splits[:2], tmp_path / "job", folds=True)
    config = dataclasses.replace(SMALL, num_steps=2)
    task.run(planned, config)
    evaluate(tmp_path / "job")
    change_info(planned[0].folder, format=2)
    with pytest.raises(RunError, match=r"trained differently \(num_steps 2 took other clips: an older version rounded"):
        task.run(planned, config)
    with pytest.raises(
        RunError, match=r"not runs of one job.* the version that trained it: num_steps 2 took other clips"
    ):
        evaluate(tmp_path / "job")


def test_a_single_run_is_kept_as_those_of_a_job(task: Task, tmp_path: Path) -> None:
    planned = plan_jobs(task.splits[:1], tmp_path / "run")
    (first,) = task.run(planned)
    before = (tmp_path / "run/run.json").stat().st_mtime_ns
    (second,) = task.run(planned)
    assert (first.kept, second.kept) == (False, True)
    assert first.summary == second.summary
    assert (tmp_path / "run/run.json").stat().st_mtime_ns == before
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(RunError, match="malformed"):
        task.run(planned)
    assert not task.run(planned, overwrite=True)[0].kept


def test_a_reduction_of_one_fold_is_refused_before_any_is_trained(task: Task, tmp_path: Path) -> None:
    name = reduce_features(task.store, task.name, task.splits[0], ReduceOptions(dim=3)).feature_set
    reduced = dataclasses.replace(task, name=name)
    with pytest.raises(FeatureMismatchError, match="split 1"):
        reduced.run(plan_jobs(task.splits, tmp_path / "job"))
    assert not (tmp_path / "job").exists()
    assert not reduced.run(plan_jobs(task.splits[:1], tmp_path / "job", folds=True))[0].kept


def test_folds_of_unlike_classes_are_loaded_each(task: Task, tmp_path: Path) -> None:
    fewer = split_of(
        [v for v in task.splits[0].train if "walk" not in v], [v for v in task.splits[0].test if "walk" not in v]
    )
    planned = plan_jobs([fewer, task.splits[1]], tmp_path / "job")
    task.run(planned)
    assert [load_run(job.folder).classes for job in planned] == [CLASSES[:2], CLASSES]


def test_missing_videos_are_those_of_each_fold(task: Task, tmp_path: Path) -> None:
    features, _ = blobs(CLASSES, 6)
    store, name = feature_store(tmp_path / "s", {k: v for k, v in features.items() if k != "boxing-4"})
    planned = plan_jobs([task.splits[0], dataclasses.replace(task.splits[1], test=("running-1",))], tmp_path / "job")
    partial = dataclasses.replace(task, store=store, name=name)
    with pytest.raises(RunError, match="no features of 1 video"):
        partial.run(planned)
    first, second = partial.run(planned, allow_missing=True)
    assert (first.summary.missing, second.summary.missing) == (("boxing-4",), ())


def test_repeats_are_kept_apart_with_mean_and_deviation(task: Task, tmp_path: Path) -> None:
    accuracies = []
    for outcome in task.run(
        plan_jobs(task.splits, tmp_path / "job", repeats=2), dataclasses.replace(SMALL, epochs=2, learning_rate=3e-3)
    ):
        accuracies.append(outcome.summary.test_accuracy)
    first, second = sum(accuracies[:3]) / 3, sum(accuracies[3:]) / 3
    assert first != second
    result = evaluate(tmp_path / "job")
    assert (result.kind, list(result.members)) == ("repeats", [0, 1])
    folds = result.members[1]
    assert (folds.kind, list(folds.members), folds.members[2].kind) == ("folds", [0, 1, 2], "run")
    assert folds.top1 == folds.measures.top1
    assert result.measures is None
    assert result.mean_top1 == pytest.approx((first + second) / 2)
    assert result.sd_top1 == pytest.approx(abs(first - second) / 2**0.5)
    assert result.pooled_top1 == pytest.approx(result.mean_top1)  # folds of one size
    assert (tmp_path / "job/repeats.json").stat().st_size > 100
    assert (tmp_path / "job/seed1/folds.json").stat().st_size > 100


def test_repeats_of_one_split(task: Task, tmp_path: Path) -> None:
    task.run(plan_jobs(task.splits[:1], tmp_path / "job", repeats=3))
    result = evaluate(tmp_path / "job")
    assert list(result.members) == [0, 1, 2]
    assert result.pooled_top1 is None
    assert [path.name for path in repeat_folders(tmp_path / "job").values()] == ["seed0", "seed1", "seed2"]


def test_an_unfinished_repeat_is_an_error(task: Task, tmp_path: Path) -> None:
    planned = plan_jobs(task.splits, tmp_path / "job", repeats=2)
    task.run(planned[:5])
    (tmp_path / "job/plan.json").unlink()
    with pytest.raises(RunError, match=r"seed1 .*finish the job first"):
        evaluate(tmp_path / "job")
    with pytest.raises(RunError, match="is not a run folder"):
        evaluate(tmp_path)


def test_progress_names_the_run(task: Task, tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []
    task.run(
        plan_jobs(task.splits[:2], tmp_path / "job"),
        on_epoch=lambda job, epoch: told.append((job.seed, job.split.index, epoch.epoch)),
    )
    assert told == [(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 1), (0, 1, 2), (0, 1, 3)]
    unmade = plan_jobs(task.splits[2:], tmp_path / "job", folds=True)[0]
    assert finished_run(unmade, SMALL, FeatureStreams(task.store, [task.name]), task.records) is None
