"""What a head says of a video as it goes on, beside what the run says of the whole video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store, manifest, split_of
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Split
from har_pipeline.evaluation.run_folder import read_run
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.load import load_run
from har_pipeline.inference.moments import MOST_STEPS, moments_of
from har_pipeline.inference.predict import predict_scores
from har_pipeline.report.data import collect_results
from har_pipeline.report.page import write_report
from har_pipeline.training.options import TrainConfig

CONFIG = TrainConfig(head="lstm", units=4, epochs=2, device="cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FeatureStore, dict[str, np.ndarray]]:
    """Return a run on features of 1, 2, ... steps, and one of 100 steps, the store and the features."""
    folder = tmp_path_factory.mktemp("moments")
    features, labels = blobs("ab", 6)
    features["a-5"] = np.repeat(features["a-5"], 100, axis=0)[:100]
    features["b-5"] = features["b-5"][:1]
    store, name = feature_store(folder / "store.zarr", features)
    split = split_of([f"{k}-{n}" for k in "ab" for n in range(3)], [f"{k}-{n}" for k in "ab" for n in range(3, 6)])
    train_split(store, name, manifest(labels), split, CONFIG, folder / "run")
    every = Split(protocol="all", index=0, train=tuple(labels), test=())
    train_split(store, name, manifest(labels), every, CONFIG, folder / "final")
    return folder / "run", store, features


def test_each_moment_is_the_prediction_of_the_steps_up_to_it(
    drawn: tuple[Path, FeatureStore, dict[str, np.ndarray]],
) -> None:
    run, store, features = drawn
    ids = read_run(run).split.test
    found = moments_of(read_run(run), ids, store.path)
    loaded = load_run(run)
    assert set(found) == {video_id for video_id in ids if len(features[video_id]) > 1}
    for video_id, moments in found.items():
        values = features[video_id]
        assert len(moments.times_s) == len(moments.probabilities) == min(len(values), MOST_STEPS)
        assert moments.times_s[-1] == pytest.approx(len(values) / 25)
        np.testing.assert_array_equal(moments.probabilities[-1], predict_scores(loaded, values))
        np.testing.assert_array_equal(moments.probabilities[0], predict_scores(loaded, values[:1]))


def test_there_are_none_without_the_runs_own_features(
    drawn: tuple[Path, FeatureStore, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    run, store, features = drawn
    record = read_run(run)
    with pytest.raises(RunError, match=r"does not say where its feature store is: name it with --store"):
        moments_of(record, record.split.test)
    others, _ = feature_store(tmp_path / "other.zarr", {video_id: -values for video_id, values in features.items()})
    with pytest.raises(RunError, match="not those that the run was tested on"):
        moments_of(record, record.split.test, others.path)
    with pytest.raises(RunError, match="one step for each video"):
        moments_of(record, ["b-5"], store.path)


def test_the_page_draws_them_and_leaves_final_models_out(
    drawn: tuple[Path, FeatureStore, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    run, store, _ = drawn

    def read(record, ids):  # type: ignore[no-untyped-def]
        return moments_of(record, ids, store.path)

    report = collect_results([run, run.with_name("final")], read_moments=read)
    (result,) = report.results
    assert "a-5" in result.moments
    assert "b-5" not in result.moments  # one step
    assert "Class probabilities over time" not in result.absent
    assert [name for name, _ in report.left_out] == ["final"]
    text = write_report(report, tmp_path / "page.html", single_file=True).read_text(encoding="utf-8")
    assert text.count('<figure class="moments">') == len(result.moments) > 0
    assert "it has no test part" in text
    with pytest.raises(RunError, match="no test part"):
        collect_results([run.with_name("final")])
    broken = collect_results([run], read_moments=moments_of)
    assert "--store" in broken.results[0].absent["Class probabilities over time"]
