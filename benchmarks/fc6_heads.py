"""Heads on real VGG16 fc6 features: seven UCF-101 classes, official split 1. Prints JSON.

DATA is a folder that holds `features/ucf101_vgg16_fc6_7classes.npz` (938 videos of 6 frames, 4,096 values) and the official
lists in `splits/ucf101`. First the LSTM's regularisation is compared on three held-out parts of the *training* groups, then
the defaults are scored once per seed on the test videos. No choice is made on test videos.

    python benchmarks/fc6_heads.py DATA
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from har_pipeline.train import train_head
from har_pipeline.train_config import TrainConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from real_features import ucf101_fc6

VAL_GROUPS = ((8, 9, 10, 11), (14, 15, 16, 17), (20, 21, 22, 23))
CHOICES = {
    "plain": TrainConfig(standardise=False),
    "standardise": TrainConfig(),
    "standardise, dropout 0.5": TrainConfig(dropout=0.5),
    "standardise, input dropout 0.5": TrainConfig(input_dropout=0.5),
    "mean_pool": TrainConfig(head="mean_pool"),
}
SEEDS = (0, 1, 2)


def validation_accuracy(data: Path, config: TrainConfig) -> float:
    """Return the mean accuracy over the held-out parts of the training groups."""
    values = []
    for groups in VAL_GROUPS:
        with tempfile.TemporaryDirectory() as folder:
            store, name, records, split = ucf101_fc6(data, Path(folder) / "store.zarr", val_groups=groups)
            summary = train_head(store, name, records, split, config, Path(folder) / "run")
            assert summary.val_accuracy is not None
            values.append(summary.val_accuracy)
    return statistics.mean(values)


def test_accuracy(data: Path, config: TrainConfig) -> float:
    with tempfile.TemporaryDirectory() as folder:
        store, name, records, split = ucf101_fc6(data, Path(folder) / "store.zarr")
        return train_head(store, name, records, split, config, Path(folder) / "run").test_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    validation = {name: validation_accuracy(data, config) for name, config in CHOICES.items()}
    result = {
        "benchmark": "fc6_heads",
        "validation_accuracy": validation,
        "test_accuracy": {
            "mean_pool": test_accuracy(data, TrainConfig(head="mean_pool")),
            "lstm_by_seed": [test_accuracy(data, TrainConfig(seed=seed)) for seed in SEEDS],
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
