"""Features as they are against features scaled by the training clips, for every head, on training videos only. Prints JSON.

DATA holds `features/ucf101_vgg16_fc6_7classes.npz` with the lists in `splits/ucf101`, as for `fc6_heads.py`. UT is a folder
with manifest.csv and stores of UT-Interaction set 1, and SYNTH one of the embedded data set:

    python pipelines/ut_interaction.py ROOT --out UT/efficientnet_lite0
    python pipelines/ut_interaction.py ROOT --out UT/i3d --extractor i3d --weights PATH
    har extract UT/i3d/manifest.csv UT/streams.zarr --extractor tsn_efficientnet_lite0 --num-clips 8
    har extract UT/i3d/manifest.csv UT/streams.zarr --extractor tsn_efficientnet_lite0 --num-clips 8 --stream flow \
        --flow-method dis
    python pipelines/synthetic_demo.py --out SYNTH
    python benchmarks/scaling.py DATA UT SYNTH --out scaling_out

No test video is read: the accuracies are those of a part of the *training* videos that is held out of the training, people or
groups apart: five parts of the training groups of UCF-101; one of the other sequences, or people, of each fold of
leave-one-out. So each sequence, and each person, is held out once. `fc6-pca` reduces the fc6 features by a PCA of each part's
training videos, as Lakhal's Figure 3 does; stacks are as wide as that, and no layer stands before them. Options are the
product's defaults but for what makes training short; both settings have the same seeds. Finished runs in OUT are kept: run
again to continue.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fc6_heads import load_task

from har_pipeline import (
    RESIDUAL_HEADS,
    FeatureStore,
    Fusion,
    FusionOp,
    HeadName,
    Outcome,
    PlannedRun,
    ReduceOptions,
    Split,
    TrainConfig,
    VideoRecord,
    plan_jobs,
    read_manifest,
    reduce_features,
    run_jobs,
)

HEADS: tuple[HeadName, ...] = (
    *("mean_pool", "svm", "vote", "lstm", "gru", "bilstm", "attention", "res_lstm", "stacked_lstm"),
)
WITHOUT_SEED = ("mean_pool", "svm")
BASE = TrainConfig(units=64, epochs=20, device="cpu")
SETTINGS = {"plain": False, "scaled": True}
# Scaling never stands between streams and the product of their states.
MID_FUSION: tuple[tuple[Fusion, FusionOp], ...] = (
    ("input", "sum"),
    ("input", "product"),
    ("input", "concat"),
    ("hidden", "sum"),
)
SETS = {
    "ut-lite0": "UT-Interaction, EfficientNet-Lite0",
    "ut-i3d": "UT-Interaction, I3D",
    "ut-streams": "UT-Interaction, RGB and flow",
    "fc6": "UCF-101, seven classes, VGG16 fc6",
    "fc6-pca": "UCF-101, seven classes, VGG16 fc6, 64 values of a PCA",
    "embedded": "embedded set, EfficientNet-Lite0",
}


@dataclass(frozen=True)
class Set:
    """A feature set, or two streams, with parts of training videos that are held out in turn.

    pca: the features are first reduced to so many values, fitted on each split's training videos.
    """

    store: FeatureStore
    features: Sequence[str]
    records: Sequence[VideoRecord]
    splits: Sequence[Split]
    pca: int | None = None


def held_out_groups(records: Sequence[VideoRecord], column: str) -> list[Split]:
    """Return, for each group of leave-one-out, its training videos with the next group held out; the group itself is unread."""
    groups = sorted({str(getattr(record, column)) for record in records})
    ids = {group: tuple(r.video_id for r in records if getattr(r, column) == group) for group in groups}
    splits = []
    for number, test in enumerate(groups):
        val = groups[(number + 1) % len(groups)]
        train = tuple(v for group in groups if group not in (test, val) for v in ids[group])
        splits.append(Split(protocol=f"held_out_{column}", index=number, train=train, val=ids[val], test=ids[test]))
    return splits


def load_set(name: str, data: Path, ut: Path, synth: Path, out: Path) -> Set:
    """Return one of `SETS`."""
    if name in ("fc6", "fc6-pca"):
        fc6 = load_task(data, out)
        return Set(fc6.store, [fc6.features], fc6.records, fc6.parts, BASE.units if name == "fc6-pca" else None)
    if name == "embedded":
        records = read_manifest(synth / "data" / "manifest.csv", check_files=False)
        store = FeatureStore(synth / "store.zarr")
        return Set(store, [store.resolve("efficientnet_lite0-rgb")], records, held_out_groups(records, "subject"))
    records = read_manifest(ut / "i3d" / "manifest.csv", check_files=False)
    splits = held_out_groups(records, "group")
    if name == "ut-streams":
        store = FeatureStore(ut / "streams.zarr")
        return Set(
            store, [store.resolve(f"tsn_efficientnet_lite0-{stream}") for stream in ("rgb", "flow")], records, splits
        )
    net = "i3d" if name == "ut-i3d" else "efficientnet_lite0"
    store = FeatureStore(ut / net / "store.zarr")
    return Set(store, [store.resolve(net)], records, splits)


def configs_of(one: Set) -> dict[str, TrainConfig]:
    """Return the heads to compare; a stack's layers are as wide as the others' units."""
    found: dict[str, TrainConfig] = {}
    for head in HEADS:
        own = dataclasses.replace(BASE, head=head)
        if head in RESIDUAL_HEADS and one.pca is None:
            own = dataclasses.replace(own, input_projection=BASE.units)
        if len(one.features) == 1:
            found[head] = own
        elif head in ("lstm", "res_lstm", "mean_pool"):
            for fusion, op in MID_FUSION:
                if head != "mean_pool" or fusion == "input":
                    found[f"{head}, {fusion} {op}"] = dataclasses.replace(own, mid_fusion=fusion, fusion_op=op)
    return found


def trained(one: Set, config: TrainConfig, runs: Sequence[PlannedRun]) -> list[Outcome]:
    """Train the runs; with PCA each on the features of its own split."""
    if one.pca is None:
        return run_jobs(one.store, one.features, one.records, runs, config)
    found = []
    for run in runs:
        options = ReduceOptions(dim=one.pca)
        features = [reduce_features(one.store, name, run.split, options).feature_set for name in one.features]
        found += run_jobs(one.store, features, one.records, [run], config)
    return found


def accuracies(one: Set, config: TrainConfig, folder: Path, seeds: int) -> list[float]:
    """Return for each seed the share of the held-out training videos that are classified correctly."""
    repeats = 1 if config.head in WITHOUT_SEED else seeds
    right: dict[int, float] = dict.fromkeys(range(repeats), 0.0)
    for outcome in trained(one, config, plan_jobs(one.splits, folder, folds=True, repeats=repeats)):
        assert outcome.summary.val_accuracy is not None
        right[outcome.run.seed] += outcome.summary.val_accuracy * outcome.summary.num_val
    videos = sum(len(split.val) for split in one.splits)
    return [count / videos for count in right.values()]


def compare(one: Set, config: TrainConfig, folder: Path, seeds: int) -> dict[str, Any]:
    """Return the accuracies of both settings, the mean of the seeds, and plain minus scaled."""
    row: dict[str, Any] = {}
    for name, scaled in SETTINGS.items():
        own = dataclasses.replace(config, standardise=scaled)
        by_seed = accuracies(one, own, folder / name, seeds)
        row[name] = {"accuracy": statistics.mean(by_seed), "by_seed": by_seed}
    row["plain_minus_scaled"] = row["plain"]["accuracy"] - row["scaled"]["accuracy"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "ut", "synth"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, default=Path("scaling_out"), help="runs that are finished here are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS, help="which heads; all by default")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS], help="which sets; all by default")
    args = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "scaling", "seeds": args.seeds, "sets": {}}
    for key in args.sets:
        name = SETS[key]
        one = load_set(key, args.data, args.ut, args.synth, args.out)
        rows = result["sets"][name] = {}
        for head, config in configs_of(one).items():
            if config.head not in args.heads:
                continue
            rows[head] = compare(one, config, args.out / name / head, args.seeds)
            print(f"{name}, {head}: {rows[head]}", file=sys.stderr, flush=True)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
