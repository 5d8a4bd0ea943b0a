"""The class probabilities of stored videos as they go on, for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.objects import StorePath, store_path
from har_pipeline.core.records import Moments
from har_pipeline.evaluation.run_folder import RunRecord
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import joined_features
from har_pipeline.inference.load import HeadRun, load_run
from har_pipeline.inference.predict import predict_scores

# A longer sequence is told of at so many of its steps.
MOST_STEPS = 40
# Features that were extracted again give other probabilities than the run's.
TOLERANCE = 1e-3


def moments_of(record: RunRecord, video_ids: Sequence[str], store: StorePath | None = None) -> Mapping[str, Moments]:
    """Return video -> its moments, for videos that a run of a head was tested on. store: in the place of the run's own.

    Raises: RunError where there are none: of networks, of features of one step, without the store, and where the stored
    features do not give the run's own probabilities any more; StoreError if features are missing.
    """
    run = load_run(record.path)
    if not isinstance(run, HeadRun):
        raise RunError(
            "networks on raw video keep no features; `har predict --live` shows what they say as frames come"
        )
    path = store or (store_path(record.info["store"]) if record.info.get("store") else None)
    if path is None:
        raise RunError("the run does not say where its feature store is: name it with --store")
    scores = record.scores()
    said = dict(zip(scores.video_ids, scores.probabilities, strict=True))
    features = FeatureStore(path)
    found = {}
    for video_id in video_ids:
        streams = [features.read(one.feature_set, video_id) for one in run.streams]
        values, rows_per_clip = joined_features(streams), run.spec.rows_per_clip
        clips = len(values) // rows_per_clip
        if clips < 2:
            continue
        ends = np.unique(np.linspace(1, clips, min(clips, MOST_STEPS)).round().astype(int))
        rows = np.stack([predict_scores(run, values[: end * rows_per_clip]) for end in ends])
        if np.abs(rows[-1] - said[video_id]).max() > TOLERANCE:
            raise RunError(
                f"{path}: the features are not those that the run was tested on: name its store with --store"
            )
        found[video_id] = Moments(times_s=streams[0].clip_times_s[ends - 1, 1], probabilities=rows)
    if video_ids and not found:
        raise RunError("its features are one step for each video")
    return found
