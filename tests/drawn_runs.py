"""Run folders with scores that a test draws: no features, no weights, no training."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from har_pipeline.core.files import write_json
from har_pipeline.core.records import ClipSpec, FeatureSpec, Scores, Split
from har_pipeline.evaluation.members import PARTS
from har_pipeline.evaluation.run_folder import HISTORY, SCORES, SPLIT_JSON, split_info, stream_info, write_info
from har_pipeline.evaluation.scores import write_scores
from har_pipeline.training.options import TrainConfig

SPEC = FeatureSpec(
    extractor="i3d",
    weights="sha256:" + "ab" * 32,
    layer="Mixed_5c",
    feature_dim=1024,
    clips=ClipSpec(sampling="uniform", num_clips=5, clip_len=48),
    resize="short256-center224",
    preprocess="rgb;(x-[127.5,127.5,127.5])/[127.5,127.5,127.5]",
)


def drawn_scores(
    classes: Sequence[str],
    videos: Sequence[str],
    *,
    strength: float = 2.0,
    seed: int = 0,
    fold: int = 0,
    part: str = "test",
) -> Scores:
    """Scores of videos whose classes take turns; the true class has `strength` more than chance."""
    rng = np.random.default_rng([seed, fold, len(videos)])
    labels = np.arange(len(videos)) % len(classes)
    logits = rng.standard_normal((len(videos), len(classes)))
    logits[np.arange(len(videos)), labels] += strength
    odds = np.exp(logits)
    return Scores(
        video_ids=tuple(videos),
        labels=tuple(classes[k] for k in labels),
        classes=tuple(classes),
        probabilities=odds / odds.sum(axis=1, keepdims=True),
        part=(part,) * len(videos),
        fold=(fold,) * len(videos),
        seed=(seed,) * len(videos),
    )


def write_drawn_run(
    folder: Path, scores: Scores, *, epochs: int = 3, spec: FeatureSpec = SPEC, entries: Mapping[str, Any] = {}
) -> Path:
    """Write a run of these scores as `har train` would; its training videos are made up. entries: of run.json."""
    folder.mkdir(parents=True)
    fold, seed = scores.fold[0], scores.seed[0]
    ids = {
        part: tuple(v for v, own in zip(scores.video_ids, scores.part, strict=True) if own == part) for part in PARTS
    }
    split = Split(protocol="holdout", index=fold, train=(f"t{fold}-0", f"t{fold}-1"), **ids)
    write_scores(folder / SCORES, scores)
    write_json(folder / SPLIT_JSON, dataclasses.asdict(split))
    with (folder / HISTORY).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
        )
        for epoch in range(1, epochs + 1):
            writer.writerow([epoch, 0.001, 2 / epoch, 1 - 0.5 / epoch, 2.5 / epoch, 1 - 0.6 / epoch, 0.1])
    summary = {"epochs": epochs, "test_accuracy": 0.5, "missing": [], "notes": [], "seconds": 1.5}
    info = {
        "format": 3,
        "options": TrainConfig(seed=seed).to_dict(),
        "classes": list(scores.classes),
        "split": split_info(split),
        "summary": summary,
        "device": "cpu",
        "versions": {"python": "3.11.7", "har-pipeline": "0.1.0"},
        "finished": "2026-01-02T03:04:05+00:00",
        **stream_info([spec.name], [spec]),
        **entries,
    }
    write_info(folder, info)
    return folder
