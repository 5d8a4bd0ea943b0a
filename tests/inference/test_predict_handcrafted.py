from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from feature_sets import split_of
from train_split import train_split

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import VideoRecord
from har_pipeline.evaluation.run_folder import read_run
from har_pipeline.features.encode import encode_features
from har_pipeline.features.local import extract_local
from har_pipeline.features.options import EncodeOptions, LocalOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.predict import predict
from har_pipeline.training.options import TrainConfig


def moving(path: Path, across: bool, seed: int) -> Path:
    """Write a textured square that goes from left to right, or down, before a still background."""
    rng = np.random.default_rng(seed)
    behind, square = (rng.integers(0, 255, (side, side)).repeat(4, 0).repeat(4, 1) for side in (32, 7))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for number in range(20):
            frame = behind.copy()
            top, left = (50, 20 + 3 * number) if across else (20 + 3 * number, 50)
            frame[top : top + 28, left : left + 28] = square
            picture = np.repeat(frame[..., None], 3, axis=2).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_new_videos_are_described_encoded_and_classified_as_those_of_the_store(tmp_path: Path) -> None:
    records = [
        VideoRecord(
            video_id=f"v{i}", label=("across", "down")[i % 2], path=moving(tmp_path / f"v{i}.avi", i % 2 == 0, i)
        )
        for i in range(8)
    ]
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    source = extract_local(records, store, LocalOptions(extractor="idt", workers=1)).feature_set
    split = split_of([f"v{i}" for i in range(6)], ["v6", "v7"])
    # With a Gaussian for each direction neither would deviate from its own.
    encoded = encode_features(store, source, split, EncodeOptions(gaussians=1, sample=2000)).feature_set
    config = TrainConfig(head="svm", logistic_c=100.0, device="cpu")
    train_split(store, encoded, records, split, config, tmp_path / "run")
    scores = read_run(tmp_path / "run").scores()
    assert scores.labels == tuple(scores.classes[best] for best in scores.probabilities.argmax(axis=1))
    paths = [record.path for record in records[6:] if record.path]
    for one, expected in zip(predict(paths, tmp_path / "run", device="cpu"), scores.probabilities, strict=True):
        np.testing.assert_allclose(one.probabilities, expected, atol=1e-6)
    still = predict([tmp_path / "none.avi"], tmp_path / "run", device="cpu")
    assert still[0].error is not None
    with pytest.raises(RunError, match="reads features of idt, which has no weights: omit --weights"):
        predict(paths, tmp_path / "run", weights="x.pth", device="cpu")
