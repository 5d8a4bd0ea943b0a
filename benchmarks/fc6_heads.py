"""Heads on real VGG16 fc6 features: seven UCF-101 classes, official split 1. Prints JSON.

DATA is a folder that holds `features/ucf101_vgg16_fc6_7classes.npz` (938 videos of 6 frames, 4,096 values) and the official
lists in `splits/ucf101`. Everything is chosen by cross-validation over five parts of the *training* groups:
the options of each recurrent head, mean pooling's penalty, and the head that is `claimed` (the best of those that see the
order of frames); no test video is used for it. The averaged variant was added after the other three had been recorded and no
head had reached mean pooling in the test. Each head is then scored on the test videos with the options chosen, once per seed.
Finished runs in OUT are kept: run again to continue an interrupted job.

    python benchmarks/fc6_heads.py DATA --out fc6_heads_out
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from har_pipeline import RESIDUAL_HEADS, FeatureStore, HeadName, Split, TrainConfig, VideoRecord, plan_jobs, run_jobs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from real_features import ucf101_fc6

VAL_GROUPS = ((8, 9, 10, 11), (12, 13, 14, 15), (16, 17, 18, 19), (20, 21, 22), (23, 24, 25))
# 650 videos of 4,096 values are few: without much noise on the inputs, or decay, recurrent heads learn them by heart.
# Scaled features, the default of every head when this was recorded; `scaling.py` compares both.
BASE = TrainConfig(
    units=128, epochs=20, schedule="cosine", input_dropout=0.8, dropout=0.5, learning_rate=3e-4, standardise=True
)
DECAYED = dataclasses.replace(BASE, optimizer="adamw", learning_rate=1e-3, weight_decay=1.0)
VARIANTS = {
    "rmsprop 3e-4": BASE,
    "adamw 1e-3, weight decay 1": DECAYED,
    "adamw 1e-3, weight decay 3, input dropout 0.5": dataclasses.replace(DECAYED, weight_decay=3.0, input_dropout=0.5),
    "adamw, constant 1e-3, weight decay 3, 24 epochs, the last half averaged": dataclasses.replace(
        DECAYED, weight_decay=3.0, schedule="constant", epochs=24, average_last=0.5
    ),
}
TEMPORAL: tuple[HeadName, ...] = ("lstm", "gru", "bilstm", "attention", "res_lstm", "stacked_lstm")
HEADS: tuple[HeadName, ...] = (*TEMPORAL, "vote")
ORDERLESS = {
    "mean_pool, C 1": TrainConfig(head="mean_pool"),
    "mean_pool, C 0.1": TrainConfig(head="mean_pool", logistic_c=0.1),
    "mean_pool, C 0.01": TrainConfig(head="mean_pool", logistic_c=0.01),
    "svm, C 0.01": TrainConfig(head="svm", logistic_c=0.01),
}
SEEDS = 5


def variants(head: HeadName) -> dict[str, TrainConfig]:
    """Return the options to choose from; a stack's layers are as wide as the others' units."""
    if head in RESIDUAL_HEADS:
        return {name: dataclasses.replace(c, head=head, input_projection=c.units) for name, c in VARIANTS.items()}
    return {name: dataclasses.replace(c, head=head) for name, c in VARIANTS.items()}


@dataclass(frozen=True)
class Task:
    """The features, the official split with all training groups, and that of each held-out part of them; out: for runs."""

    store: FeatureStore
    features: str
    records: list[VideoRecord]
    split: Split
    parts: list[Split]
    out: Path


def load_task(data: Path, out: Path) -> Task:
    """Write the features into a store below `out`, and cut the training groups into parts."""
    store, features, records, split = ucf101_fc6(data, out / "store.zarr")
    group = {record.video_id: int(str(record.group).removeprefix("g")) for record in records}
    parts = [
        dataclasses.replace(
            split,
            index=number,
            train=tuple(video_id for video_id in split.train if group[video_id] not in held_out),
            val=tuple(video_id for video_id in split.train if group[video_id] in held_out),
        )
        for number, held_out in enumerate(VAL_GROUPS)
    ]
    return Task(store, features, records, split, parts, out)


def validation_accuracy(task: Task, name: str, config: TrainConfig) -> float:
    """Return the mean accuracy over the held-out parts of the training groups."""
    jobs = plan_jobs(task.parts, task.out / "validation" / name)
    outcomes = run_jobs(task.store, [task.features], task.records, jobs, config)
    found = [run.summary.val_accuracy for run in outcomes if run.summary.val_accuracy is not None]
    assert len(found) == len(task.parts)
    return statistics.mean(found)


def test_accuracies(task: Task, name: str, config: TrainConfig) -> list[float]:
    """Return the test accuracy with each seed; a head that draws nothing at random has one."""
    jobs = plan_jobs(
        [task.split], task.out / "test" / name, repeats=1 if config.head in ("mean_pool", "svm") else SEEDS
    )
    return [run.summary.measured_accuracy for run in run_jobs(task.store, [task.features], task.records, jobs, config)]


def choose(task: Task, head: HeadName) -> tuple[str, TrainConfig, dict[str, float]]:
    """Return the variant of a head that is best on the training groups, its options, and the accuracy of each."""
    configs = variants(head)
    accuracies = {name: validation_accuracy(task, f"{head}, {name}", config) for name, config in configs.items()}
    print(head, accuracies, file=sys.stderr)
    best = max(accuracies, key=lambda name: accuracies[name])
    return best, configs[best], accuracies


def row_of(task: Task, name: str, config: TrainConfig, validation: float) -> dict[str, Any]:
    values = test_accuracies(task, name, config)
    return {
        "validation_accuracy": validation,
        "test_accuracy": statistics.mean(values),
        "test_sd": statistics.stdev(values) if len(values) > 1 else None,
        "test_by_seed": values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("fc6_heads_out"), help="runs that are finished here are kept")
    args = parser.parse_args()
    task = load_task(args.data, args.out)
    fixed = {"lstm, defaults but scaled": TrainConfig(standardise=True), **ORDERLESS}
    rows = {name: row_of(task, name, c, validation_accuracy(task, name, c)) for name, c in fixed.items()}
    for head in HEADS:
        variant, config, accuracies = choose(task, head)
        found = row_of(task, f"{head}, {variant}", config, accuracies[variant])
        rows[head] = {**found, "options": variant, "validation": accuracies}
        print(head, rows[head], file=sys.stderr)
    validation = {name: row["validation_accuracy"] for name, row in rows.items()}
    claimed = max(TEMPORAL, key=lambda name: validation[name])
    baseline = max((name for name in ORDERLESS if name.startswith("mean_pool")), key=lambda name: validation[name])
    result = {"benchmark": "fc6_heads", "claimed": claimed, "baseline": baseline, "heads": rows}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
