"""The whole two-stage job on the embedded data set: render, extract, train two heads, evaluate, write the page of results.

Run by `make demo`. EfficientNet-Lite0 with real ImageNet weights reads every second frame of the first 40, and, as TSN's
temporal net, stacks of five optical flow fields, both in one pass over the videos. Each person is held out once
(leave-one-subject-out); mean pooling is compared with an LSTM on the same features, RGB with flow,
and both with the product of their probabilities. Then the 3D-ConvNet of Baccouche 2011, which needs no weights: it learns
its features from four of the people, and the vote of its clips is compared with an LSTM on these features, on the other two.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
import sys
import time
from pathlib import Path

import baccouche2011

from har_pipeline import (
    GENERATOR_VERSION,
    ClipSpec,
    ExtractOptions,
    FeatureStore,
    FlowSpec,
    RawOptions,
    ReportSources,
    TrainConfig,
    VideoRecord,
    build_extractor,
    collect_results,
    errors_as_lines,
    extract,
    extract_many,
    fuse,
    load_member,
    make_splits,
    manifest_sha256,
    moments_of,
    plan_jobs,
    read_manifest,
    run_jobs,
    store_raw_frames,
    write_dataset,
    write_fusion,
    write_report,
)

RGB = ExtractOptions(clips=ClipSpec(sampling="first", num_clips=20, clip_stride=2))
FLOW = ExtractOptions(
    clips=ClipSpec(sampling="segments", num_clips=8, clip_len=5), resize="stretch-224", flow=FlowSpec(method="dis")
)
LSTM = TrainConfig(head="lstm", units=128, epochs=40, batch_size=25, input_dropout=0.5)
# With a third fewer epochs than there.
NET = dataclasses.replace(baccouche2011.NET, epochs=60)
STEPS_LSTM = baccouche2011.LSTM
RUNS = {
    "mean_pool": ("rgb", TrainConfig(head="mean_pool")),
    "lstm": ("rgb", LSTM),
    "lstm_flow": ("flow", LSTM),
}


def learn_features(out: Path, records: list[VideoRecord], store: FeatureStore, sha256: str, device: str) -> list[Path]:
    """Train the 3D-ConvNet on two thirds of the people, put its features into the store, and train an LSTM on them.

    Returns the folders of both runs.
    """
    splits = make_splits(records, "holdout", val_fraction=0.0, test_fraction=1 / 3, manifest_sha256=sha256)
    windows = store_raw_frames(records, store, RawOptions(stream="rgb", window="person")).feature_set
    config = dataclasses.replace(NET, device=device)
    (net,) = run_jobs(store, [windows], records, plan_jobs(splits, out / "convnet3d"), config)
    extractor = build_extractor("convnet3d", weights=str(net.run.folder / "network.safetensors"), device=device)
    features = extract(records, store, extractor).feature_set
    run_jobs(store, [features], records, plan_jobs(splits, out / "convnet3d_lstm"), STEPS_LSTM)
    return [out / "convnet3d", out / "convnet3d_lstm"]


def run(out: Path, subjects: int, install_seconds: float, device: str) -> dict[str, object]:
    shutil.rmtree(out, ignore_errors=True)
    ledger = {"install": install_seconds}
    started = time.perf_counter()

    def clock(stage: str) -> None:
        nonlocal started
        ledger[stage] = time.perf_counter() - started
        print(f"{stage}: {ledger[stage]:.0f} s", file=sys.stderr)
        started = time.perf_counter()

    manifest = write_dataset(out / "data", num_subjects=subjects)
    clock("synth")
    records = read_manifest(manifest)
    store = FeatureStore(out / "store.zarr", create=True)
    rgb = build_extractor("efficientnet_lite0", device=device)
    flow = build_extractor("tsn_efficientnet_lite0", stream="flow", device=device)
    made = extract_many(records, store, [(rgb, RGB), (flow, FLOW)])
    features = {stream: summary.feature_set for stream, summary in zip(("rgb", "flow"), made, strict=True)}
    clock("extract")
    sha256 = manifest_sha256(manifest)
    splits = make_splits(records, "leave_one_subject_out", val_fraction=0.0, manifest_sha256=sha256)
    for name, (stream, config) in RUNS.items():
        run_jobs(store, [features[stream]], records, plan_jobs(splits, out / name), config)
    members = [load_member(out / "lstm", "lstm"), load_member(out / "lstm_flow", "lstm_flow")]
    table, fused = fuse(members)
    write_fusion(out / "lstm_product", table, fused, members)
    clock("train")
    learned = learn_features(out, records, store, sha256, device)
    clock("3D-ConvNet")
    report = collect_results(
        [*(out / name for name in RUNS), out / "lstm_product", *learned],
        title="har_pipeline demo",
        lead=f"Six actions, {len(records)} rendered videos of {subjects} people (generator {GENERATOR_VERSION}), chance "
        "16.7 %. Mean pooling and an LSTM on frames, an LSTM on optical flow, and the product of both LSTMs: each person was "
        "held out once. convnet3d, the 3D-ConvNet of Baccouche 2011, and an LSTM on its features were learned from scratch: "
        "one split, with a third of the people held out.",
        sources=ReportSources(records={record.video_id: record for record in records}, store=store.path),
        at_most=8,
        read_moments=functools.partial(moments_of, store=store.path),
    )
    write_report(report, out / "report.html", single_file=True)
    clock("page")
    return {"accuracy": {one.name: one.top1 for one in report.results}, "seconds": ledger}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--install-seconds", type=float, default=0.0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    with errors_as_lines():
        outcome = run(arguments.out, arguments.subjects, arguments.install_seconds, arguments.device)
    print(json.dumps(outcome, indent=2))
    print(f"open {arguments.out / 'report.html'}", file=sys.stderr)
