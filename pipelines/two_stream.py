"""Two streams, every head and every fusion: UT-Interaction set 1 (or any manifest with groups), leave-one-group-out.

MANIFEST and STORE hold the features of both streams, for example

    har extract ut.csv ut.zarr --extractor i3d --sampling uniform --num-clips 5 --clip-len 48
    har extract ut.csv ut.zarr --extractor tsn_efficientnet_lite0 --stream flow --num-clips 8

Every head is trained on RGB and on flow, recurrent heads also on both by mid fusion (one encoder per stream, hidden
states added). The runs of each head are then fused late by every rule. CLAIMED was named before anything was measured: a
residual LSTM on each stream and the product of their probabilities. The best row of such a table is biased; that one is not.
Prints JSON.

Source: Lakhal 2018, Table 2, for the heads and the rules. The rest is ours, for 60 videos: 30 epochs, dropout, a dense layer
to 256 values before each recurrent head, mid fusion of hidden states where the paper joins features, and features scaled
where that is the head's default. `lakhal2018.py` and `benchmarks/papers_real.py` have it as the paper does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from har_pipeline import (
    RECURRENT_HEADS,
    FeatureStore,
    Interval,
    TrainConfig,
    errors_as_lines,
    fuse,
    load_member,
    make_splits,
    manifest_sha256,
    plan_jobs,
    read_manifest,
    run_jobs,
)

RECURRENT = TrainConfig(units=128, input_projection=256, epochs=30, dropout=0.3)
HEADS = {
    "mean_pool": TrainConfig(head="mean_pool"),
    "svm": TrainConfig(head="svm"),
    "vote": TrainConfig(head="vote", epochs=30),
    "lstm": RECURRENT,
    "gru": dataclasses.replace(RECURRENT, head="gru"),
    "bilstm": dataclasses.replace(RECURRENT, head="bilstm"),
    "attention": dataclasses.replace(RECURRENT, head="attention"),
    "stacked_lstm": dataclasses.replace(RECURRENT, head="stacked_lstm", num_layers=2),
    "res_lstm": dataclasses.replace(RECURRENT, head="res_lstm", num_layers=2),
}
WITHOUT_SEED = ("mean_pool", "svm")
CLAIMED = ("res_lstm", "product")


def shown(top1: Interval, sd: float | None) -> dict[str, float | None]:
    return {"value": top1.value, "low": top1.low, "high": top1.high, "sd": sd}


def run(
    manifest: Path, store_path: Path, streams: dict[str, str], out: Path, repeats: int, device: str
) -> dict[str, object]:
    records, store = read_manifest(manifest, check_files=False), FeatureStore(store_path)
    sha256 = manifest_sha256(manifest)
    splits = make_splits(records, "leave_one_group_out", val_fraction=0.0, manifest_sha256=sha256)
    table: dict[str, dict[str, object]] = {}
    for name, config in HEADS.items():
        config = dataclasses.replace(config, device=device)
        wanted = {stream: ([features], config) for stream, features in streams.items()}
        if name in RECURRENT_HEADS:
            # The two nets' features differ in length: each stream is projected by an encoder of its own.
            wanted["mid"] = (list(streams.values()), dataclasses.replace(config, mid_fusion="hidden"))
        seeds = 1 if name in WITHOUT_SEED else repeats
        for run_name, (features, own) in wanted.items():
            jobs = plan_jobs(splits, out / name / run_name, repeats=seeds)
            run_jobs(store, features, records, jobs, own)
        members = [load_member(out / name / run_name, run_name) for run_name in wanted]
        fusion, _ = fuse(members[: len(streams)])
        rows: dict[str, object] = {row.name: shown(row.top1, row.sd) for row in fusion.rows}
        for member in members[len(streams) :]:
            (row,) = [r for r in fuse([members[0], member])[0].rows if r.name == member.name]
            rows[member.name] = shown(row.top1, row.sd)
        tests = {row.name: row.against_best.p_value for row in fusion.rows if row.against_best is not None}
        table[name] = {"rows": rows, "best_rule": fusion.best, "p_against_best_rule": tests, "verdict": fusion.verdict}
    return {"videos": len(records), "folds": len(splits), "seeds": repeats, "claimed": CLAIMED, "heads": table}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--rgb", default="i3d-rgb", help="feature set, or the start of its name")
    parser.add_argument("--flow", default="tsn_efficientnet_lite0-flow", help="feature set, or the start of its name")
    parser.add_argument("--out", type=Path, default=Path("two_stream_out"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    streams = {"rgb": options.rgb, "flow": options.flow}
    with errors_as_lines():
        result = run(options.manifest, options.store, streams, options.out, options.repeats, options.device)
    print(json.dumps(result, indent=2))
