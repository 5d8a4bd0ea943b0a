"""Both ConvLSTM networks on one manifest, several seeds each, beside two baselines without a network. Prints JSON.

MANIFEST and STORE are of raw frames (`har frames`). Each network is trained from scratch on the schedule one-cycle without
validation videos (the last epoch counts), since small sets have too few people to hold some out; nothing is chosen by the
test videos. `mean_pool` is logistic regression on the mean of a video's frames; `motion_maps` is ridge regression (lambda
0.01) on where and how much each third of it changes (`har features motion`, written into STORE). Accuracies are of test
videos, with 95 % intervals of the first seed, mean and deviation over seeds, and McNemar's test between the networks of
each seed.
Finished runs in OUT are kept: run again to continue an interrupted job.

    python benchmarks/raw_video.py utd.csv utd.zarr --protocol column --width 0.25 --epochs 15 10 --seeds 3 --out out
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np

from har_pipeline import (
    NETWORKS,
    FeatureReader,
    FeatureStore,
    NormOver,
    Outcome,
    Scores,
    Split,
    StateGradient,
    TrainConfig,
    VideoClip,
    VideoRecord,
    VideoTrainConfig,
    WindowLoss,
    concat_scores,
    make_splits,
    mcnemar,
    measure_live_cost,
    measure_scores,
    motion_features,
    open_frames,
    plan_jobs,
    read_history,
    read_manifest,
    read_scores,
    run_jobs,
    select_part,
)

PAIR = ("STATELESS", "STATEFUL")


def scores_of_seeds(outcomes: list[Outcome]) -> list[Scores]:
    """Return the test scores of each seed, all folds pooled."""
    by_seed: dict[int, list[Scores]] = {}
    for outcome in outcomes:
        part = select_part(read_scores(outcome.summary.path / "scores.csv"), "test")
        by_seed.setdefault(outcome.run.seed, []).append(part)
    return [concat_scores(parts) for parts in by_seed.values()]


def right(scores: Scores) -> np.ndarray:
    """Return (V,) bool, whether each video's class is the first, in the order of video ids."""
    order = np.argsort(scores.video_ids)
    found = np.array([scores.classes[k] for k in scores.probabilities.argmax(axis=1)])
    return (found == np.array(scores.labels))[order]


def epoch_seconds(outcome: Outcome) -> float:
    """Return the seconds of a run's epochs, also of those before an interruption."""
    return sum(seconds or 0.0 for seconds in read_history(outcome.summary.path)["seconds"])


def describe(seeds: list[Scores], outcomes: list[Outcome]) -> dict[str, Any]:
    measured = [measure_scores(scores) for scores in seeds]
    values = [measures.top1.value for measures in measured]
    return {
        "top1_by_seed": values,
        "top1": statistics.mean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "interval_of_first_seed": dataclasses.asdict(measured[0].top1),
        "mean_class": statistics.mean(measures.mean_class.value for measures in measured),
        "minutes_of_epochs": round(sum(epoch_seconds(outcome) for outcome in outcomes) / 60 / len(seeds), 1),
        "train_accuracy": statistics.mean(outcome.summary.train_accuracy for outcome in outcomes),
        "notes": list(outcomes[0].summary.notes),
    }


def live_costs(records: list[VideoRecord], outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Return for each run its own accuracy, that of live decisions on the same videos, and p of their difference."""
    rows = []
    for outcome in outcomes:
        found = measure_live_cost(outcome.summary.path, records).comparison
        rows.append({"own": found.first_top1.value, "live": found.second_top1.value, "p_value": found.test.p_value})
    return rows


def train_network(
    args: argparse.Namespace,
    place: int,
    store: FeatureReader,
    features: str,
    records: list[VideoRecord],
    splits: list[Split],
) -> tuple[list[Outcome], VideoTrainConfig]:
    """Train the network at `place` of NETWORKS on all splits with all seeds; what is finished is kept."""
    model = NETWORKS[place]
    config = VideoTrainConfig(
        model=model,
        width=args.width,
        schedule="one-cycle",
        epochs=args.epochs[place],
        batch_size=args.batch_size[place],
        learning_rate=args.learning_rate[place],
        state_gradient=args.state_gradient if model == "convlstm-stateful" else "window",
        norm_over=args.norm_over if model == "convlstm-stateful" else "window",
        window_loss=args.window_loss if model == "convlstm-stateful" else "equal",
        memory_frames=args.memory_frames if model == "convlstm-stateful" else args.stateless_memory,
        augment=args.augment[place],
        motion=args.motion,
        clip=args.clip if model == "convlstm-stateless" else "published",
        frame_step=args.frame_step if model == "convlstm-stateful" else 1,
    )
    jobs = plan_jobs(splits, args.out / model, repeats=args.seeds)
    outcomes = run_jobs(
        store,
        [features],
        records,
        jobs,
        config,
        allow_missing=True,
        on_epoch=lambda job, epoch: print(
            f"{job.folder.name} {epoch.epoch}: {epoch.train_loss:.3f} {epoch.seconds:.0f} s", file=sys.stderr
        ),
    )
    return outcomes, config


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--stream", default="depth")
    parser.add_argument("--protocol", default="xsub")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, nargs=2, default=[20, 20], metavar=PAIR, help="of each network")
    parser.add_argument("--batch-size", type=int, nargs=2, default=[None, None], metavar=PAIR, help="published: 12 6")
    parser.add_argument("--learning-rate", type=float, nargs=2, default=[1e-3, 1e-3], metavar=PAIR, help="the highest")
    parser.add_argument(
        "--state-gradient", choices=get_args(StateGradient), default="window", help="of the stateful one"
    )
    parser.add_argument("--norm-over", choices=get_args(NormOver), default="window", help="of the stateful one")
    parser.add_argument("--window-loss", choices=get_args(WindowLoss), default="equal", help="of the stateful one")
    parser.add_argument("--memory-frames", type=int, help="of the stateful one")
    parser.add_argument("--stateless-memory", type=int, help="memory frames of the stateless one")
    parser.add_argument("--augment", type=float, nargs=2, default=[0.0, 0.0], metavar=PAIR, help="of each network")
    parser.add_argument(
        "--motion", action="store_true", help="of both: a second channel, the change since the last frame"
    )
    parser.add_argument("--clip", choices=get_args(VideoClip), default="published", help="of the stateless one")
    parser.add_argument("--frame-step", type=int, default=1, help="of the stateful one")
    parser.add_argument("--networks", choices=NETWORKS, nargs="*", default=NETWORKS, help="none: the baselines only")
    parser.add_argument("--live", action="store_true", help="also what deciding live costs the stateful network")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("raw_video_out"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    records = read_manifest(args.manifest, check_files=False)
    store, features = open_frames(args.store, args.stream)
    splits = make_splits(records, args.protocol, val_fraction=0.0)
    result: dict[str, Any] = {"benchmark": "raw_video", "videos": len(records), "folds": len(splits)}
    result |= {name: getattr(args, name) for name in ("protocol", "width", "seeds")}
    result["resize"] = store.spec(features).resize
    jobs = plan_jobs(splits, args.out / "mean_pool")
    pooled = run_jobs(store, [features], records, jobs, TrainConfig(head="mean_pool"), allow_missing=True)
    result["mean_pool"] = describe(scores_of_seeds(pooled), pooled)
    maps = motion_features(FeatureStore(args.store), features).feature_set
    jobs = plan_jobs(splits, args.out / "motion_maps")
    ridge = TrainConfig(head="ridge", logistic_c=50, standardise=False)
    mapped = run_jobs(store, [maps], records, jobs, ridge, allow_missing=True)
    result["motion_maps"] = describe(scores_of_seeds(mapped), mapped)
    seeds: dict[str, list[Scores]] = {}
    for place, model in enumerate(NETWORKS):
        if model not in args.networks:
            continue
        outcomes, config = train_network(args, place, store, features, records, splits)
        seeds[model] = scores_of_seeds(outcomes)
        result[model] = {"options": config.to_dict(), **describe(seeds[model], outcomes)}
        if args.live and config.stateful:
            result["live"] = live_costs(records, outcomes)
    if len(seeds) == len(NETWORKS):
        pairs = zip(*(seeds[model] for model in NETWORKS), strict=True)
        tests = [mcnemar(right(stateful), right(stateless)) for stateless, stateful in pairs]
        result["stateful_against_stateless_by_seed"] = [dataclasses.asdict(test) for test in tests]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
