"""Serving gives what the evaluation measured: heads, folds, jobs and fusions, also where their folders were moved."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from feature_sets import split_of
from typer.testing import CliRunner, Result
from video_files import make_video

from har_pipeline.cli import app
from har_pipeline.core.errors import RunError
from har_pipeline.core.records import VideoRecord
from har_pipeline.evaluation.fusion import product_rule
from har_pipeline.evaluation.scores import read_scores, select_part
from har_pipeline.features.extract import extract
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference import sources
from har_pipeline.inference.ensemble import Ensemble, load_classifier, runs_of
from har_pipeline.inference.predict import predict
from har_pipeline.models.extractors import build_extractor
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.options import TrainConfig


def har(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(value) for value in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@dataclass(frozen=True)
class Work:
    """A folder with the jobs `one` and `two` of two folds each, on features of two nets, and the videos' files."""

    folder: Path
    paths: dict[str, Path]

    def test_scores(self, run: str) -> tuple[list[Path], np.ndarray]:
        """Return the files of a run's test videos, and the probabilities that the evaluation has of them."""
        scores = select_part(read_scores(self.folder / run / "scores.csv"), "test")
        return [self.paths[video_id] for video_id in scores.video_ids], scores.probabilities


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("ensemble")
    records = [
        VideoRecord(video_id=f"v{i}", label="ab"[i % 2], path=make_video(folder / f"v{i}.avi", 12 + i, seed=i))
        for i in range(10)
    ]
    ids = [record.video_id for record in records]
    splits = [
        split_of(ids[4:8], ids[:4], ids[8:], index=0),
        split_of(ids[:4], ids[4:8], ids[8:], index=1),
    ]
    store = FeatureStore(folder / "store.zarr", create=True)
    for number, name in enumerate(("one", "two")):
        net = build_extractor("convnet3d", weights="random", seed=number, device="cpu")
        features = extract(records, store, net, ExtractOptions(workers=1, dtype="float32")).feature_set
        config = TrainConfig(units=4, epochs=3, batch_size=2, device="cpu", standardise=True, seed=number)
        run_jobs(store, [features], records, plan_jobs(splits, folder / name, seed=0), config)
    return Work(folder, {record.video_id: record.path for record in records if record.path})


def predicted(paths: list[Path], run: Path | list[Path] | Ensemble, **options: object) -> np.ndarray:
    found = predict(paths, run, device="cpu", workers=1, **options)  # type: ignore[arg-type]
    assert [one.error for one in found] == [None] * len(paths)
    return np.stack([one.probabilities for one in found if one.probabilities is not None])


@pytest.mark.parametrize("fold", ["one/split0", "one/split1", "two/split1"])
def test_a_fold_gives_the_very_scores_of_its_evaluation(work: Work, fold: str) -> None:
    paths, expected = work.test_scores(fold)
    np.testing.assert_allclose(predicted(paths, work.folder / fold), expected, atol=1e-5)


def test_a_job_gives_the_mean_of_its_folds(work: Work) -> None:
    paths = list(work.paths.values())[:2]
    folds = [predicted(paths, work.folder / f"one/split{index}") for index in range(2)]
    np.testing.assert_allclose(predicted(paths, work.folder / "one"), np.mean(folds, axis=0), atol=1e-12)


def test_several_runs_are_fused_and_what_they_share_is_extracted_once(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, made = list(work.paths.values())[:2], []
    real = sources.extract_many

    def counting(records, store, wanted, *arguments, **options):  # type: ignore[no-untyped-def]
        made.append(len(wanted))
        return real(records, store, wanted, *arguments, **options)

    monkeypatch.setattr(sources, "extract_many", counting)
    runs = [work.folder / "one", work.folder / "two"]
    alone = np.stack([predicted(paths, run) for run in runs])
    assert made == [1, 1]
    np.testing.assert_allclose(predicted(paths, runs, rule="sum"), alone.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(predicted(paths, runs), product_rule(alone), atol=1e-12)
    assert made == [1, 1, 2, 2]
    with pytest.raises(RunError, match="the same run is given twice"):
        predict(paths, [runs[0], runs[0]])
    answer = har("predict", paths[0], "--run", runs[0], "--run", runs[1], "--rule", "product", "--json")
    best = json.loads(answer.stdout)[0]["top"][0]["probability"]
    assert best == pytest.approx(product_rule(alone)[0].max())


@pytest.mark.parametrize(
    "options",
    [
        ("--rule", "sum"),
        ("--rule", "product", "--calibrate"),
        ("--rule", "weighted", "--weights", "3,1"),
        ("--rule", "learned", "--calibrate"),
    ],
)
def test_a_fusion_gives_the_very_scores_of_its_evaluation(work: Work, tmp_path: Path, options: tuple[str, ...]) -> None:
    har("fuse", work.folder / "one/split0", work.folder / "two/split0", *options, "-o", work.folder / "single")
    paths, expected = work.test_scores("single")
    np.testing.assert_allclose(predicted(paths, work.folder / "single"), expected, atol=1e-5)
    # Of folds, each is fused as it was, with its own weights and temperatures; a new video gets their mean.
    har("fuse", work.folder / "one", work.folder / "two", *options, "-o", work.folder / "folds")
    fusion = load_classifier(work.folder / "folds")
    assert isinstance(fusion, Ensemble)
    scores = select_part(read_scores(work.folder / "folds/scores.csv"), "test")
    for index, member in enumerate(fusion.members):
        assert isinstance(member, Ensemble)
        own = scores.select([row for row, fold in enumerate(scores.fold) if fold == index])
        files = [work.paths[video_id] for video_id in own.video_ids]
        np.testing.assert_allclose(predicted(files, member), own.probabilities, atol=1e-5)
    mean = np.mean([predicted(paths, member) for member in fusion.members], axis=0)  # type: ignore[arg-type]
    np.testing.assert_allclose(predicted(paths, work.folder / "folds"), mean, atol=1e-12)


def test_a_fusion_of_a_fusion(work: Work) -> None:
    har("fuse", work.folder / "one/split0", work.folder / "two/split0", "-o", work.folder / "inner")
    har("fuse", work.folder / "inner", work.folder / "one/split0", "--rule", "sum", "-o", work.folder / "outer")
    paths, expected = work.test_scores("outer")
    np.testing.assert_allclose(predicted(paths, work.folder / "outer"), expected, atol=1e-5)
    assert len(runs_of(load_classifier(work.folder / "outer"))) == 2


def test_folders_that_were_moved_predict_alike(work: Work, tmp_path: Path) -> None:
    har("fuse", work.folder / "one", work.folder / "two", "-o", work.folder / "moved_fusion")
    paths = list(work.paths.values())[:2]
    before = predicted(paths, work.folder / "moved_fusion")
    for name in ("one", "two", "moved_fusion"):
        shutil.copytree(work.folder / name, tmp_path / "elsewhere" / name)
    copied = tmp_path / "elsewhere"
    np.testing.assert_array_equal(predicted(paths, copied / "moved_fusion"), before)
    assert all(run.path.is_relative_to(copied) for run in runs_of(load_classifier(copied / "moved_fusion")))
    # A fold alone needs nothing else.
    shutil.copytree(work.folder / "one/split0", tmp_path / "alone")
    np.testing.assert_array_equal(predicted(paths, tmp_path / "alone"), predicted(paths, work.folder / "one/split0"))
    (copied / "two").rename(copied / "gone")
    with pytest.raises(RunError, match=r"its run two is not at .*two: move the fusion together with its runs"):
        load_classifier(copied / "moved_fusion")
    shutil.copytree(work.folder / "one", copied / "two")
    with pytest.raises(RunError, match=r"two has changed since .*fusion.json was written: fuse again"):
        load_classifier(copied / "moved_fusion")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"members": None}, "does not name its runs, as an older version wrote it"),
        ({"chosen": "mean"}, "is malformed"),
        ({"folds": "x"}, "is malformed"),
        ({"members": [{"path": 3}]}, "is malformed"),
        ({"folds": [7]}, "lacks fold 7 of seed 0"),
    ],
)
def test_a_fusion_that_cannot_be_served(work: Work, change: dict[str, object], said: str) -> None:
    out = work.folder / "odd_fusion"
    har("fuse", work.folder / "one/split0", work.folder / "two/split0", "-o", out)
    info = {**json.loads((out / "fusion.json").read_text()), **change}
    (out / "fusion.json").write_text(json.dumps({name: value for name, value in info.items() if value is not None}))
    with pytest.raises(RunError, match=said):
        load_classifier(out)


def test_what_cannot_be_one_classifier(work: Work, tmp_path: Path) -> None:
    har("fuse", work.folder / "one/split0", work.folder / "two/split0", "-o", tmp_path / "fused")
    (tmp_path / "fused/fusion.json").unlink()
    with pytest.raises(RunError, match="holds scores only"):
        load_classifier(tmp_path / "fused")
    with pytest.raises(RunError, match="does not exist"):
        load_classifier(tmp_path / "none")
    shutil.copytree(work.folder / "one", tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed/split1")
    (tmp_path / "mixed/plan.json").write_text(json.dumps({"job": "", "runs": ["split0", "split1"]}))
    assert (
        "of 2 runs are missing" in har("predict", next(iter(work.paths.values())), "--run", tmp_path / "mixed").stderr
    )


def test_a_tampered_file_is_named(work: Work, tmp_path: Path) -> None:
    for name in ("head.safetensors", "run.json", "split.json"):
        copy = tmp_path / name
        shutil.copytree(work.folder / "one", copy)
        content = (copy / "split1" / name).read_bytes()
        (copy / "split1" / name).write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
        done = har("predict", next(iter(work.paths.values())), "--run", copy, code=1)
        assert f"{copy}/split1/{name}" in str(done.exception)
