"""`har features motion`, from prepared frames to a prediction by the ridge head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raw_runs import SIZE, DepthSet, make_depth_set
from typer.testing import CliRunner, Result

from har_pipeline.cli import app
from har_pipeline.core.errors import StoreError
from har_pipeline.datasets.manifests import write_manifest
from har_pipeline.features.store import FeatureStore


def har(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def depth_set(tmp_path_factory: pytest.TempPathFactory) -> DepthSet:
    return make_depth_set(tmp_path_factory.mktemp("depth"))


def test_from_frames_to_a_prediction(depth_set: DepthSet, tmp_path: Path) -> None:
    store, csv_file = tmp_path / "s.zarr", tmp_path / "m.csv"
    write_manifest(csv_file, depth_set.records, root=depth_set.folder)
    done = har("features", "motion", store)
    assert done.exit_code == 1
    assert har("frames", csv_file, store, "--size", SIZE, "--workers", 1).exit_code == 0
    done = har("features", "motion", store, "--size", 8, "--parts", 2, "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["total"], summary["done"], summary["dim"]) == (10, 10, 128)
    assert (
        "0 videos done, 10 already there, 128 values each"
        in har("features", "motion", store, "--size", 8, "--parts", 2).output
    )
    command = (
        "train",
        csv_file,
        store,
        "--features",
        "motion_maps",
        "--protocol",
        "holdout",
        "--out",
        tmp_path / "run",
    )
    done = har(*command, "--head", "ridge", "--logistic-c", 50, "--no-standardise", "--max-iterations", 5)
    assert done.exit_code == 0, done.output
    assert "the head ridge with these options does not read --max-iterations" in done.stderr
    done = har("predict", depth_set.path("v8"), "--run", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)[0]["top"]) == 2
    done = har("predict", depth_set.path("v8"), "--run", tmp_path / "run", "--weights", "w.pt")
    assert "which no network makes: omit --weights" in str(done.exception)


def test_a_store_of_other_features_is_refused(tmp_path: Path) -> None:
    FeatureStore(tmp_path / "s.zarr", create=True)
    done = har("features", "motion", tmp_path / "s.zarr")
    assert isinstance(done.exception, StoreError)
    assert "no raw-frame sets; make one with `har frames`" in str(done.exception)
    assert har("features", "motion", tmp_path / "s.zarr", "--parts", 0).exit_code == 2
