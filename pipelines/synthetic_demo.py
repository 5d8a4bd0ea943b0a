"""The whole two-stage job on the embedded data set: render, extract, train two heads, evaluate, write a page.

Run by `make demo`. EfficientNet-Lite0 with real ImageNet weights reads every second frame of the first 40, and, as TSN's
temporal net, stacks of five optical flow fields, both in one pass over the videos. Each person is held out once
(leave-one-subject-out); mean pooling is compared with an LSTM on the same features, RGB with flow,
and both with the product of their probabilities. Then the 3D-ConvNet of Baccouche 2011, which needs no weights: it learns
its features from four of the people, and the vote of its clips is compared with an LSTM on these features, on the other two.
"""

from __future__ import annotations

import argparse
import dataclasses
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
    Interval,
    RawOptions,
    Section,
    TrainConfig,
    VideoRecord,
    build_extractor,
    errors_as_lines,
    evaluate,
    extract,
    extract_many,
    fuse,
    load_member,
    make_splits,
    manifest_sha256,
    plan_jobs,
    predict,
    read_manifest,
    run_jobs,
    save_picture,
    store_raw_frames,
    write_dataset,
    write_page,
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


Results = dict[str, tuple[str, str, Interval]]


def learn_features(out: Path, records: list[VideoRecord], store: FeatureStore, sha256: str, device: str) -> Results:
    """Train the 3D-ConvNet on two thirds of the people, put its features into the store, and train an LSTM on them."""
    splits = make_splits(records, "holdout", val_fraction=0.0, test_fraction=1 / 3, manifest_sha256=sha256)
    windows = store_raw_frames(records, store, RawOptions(stream="rgb", window="person")).feature_set
    config = dataclasses.replace(NET, device=device)
    (net,) = run_jobs(store, [windows], records, plan_jobs(splits, out / "convnet3d"), config)
    extractor = build_extractor("convnet3d", weights=str(net.run.folder / "network.safetensors"), device=device)
    features = extract(records, store, extractor).feature_set
    run_jobs(store, [features], records, plan_jobs(splits, out / "convnet3d_lstm"), STEPS_LSTM)
    heads = {"convnet3d": "3D-ConvNet, vote of its clips", "convnet3d_lstm": "3D-ConvNet, LSTM"}
    found = {name: evaluate(out / name).measures for name in heads}
    return {name: (heads[name], "rgb", one.top1) for name, one in found.items() if one}


def _rows(results: Results) -> list[dict[str, object]]:
    return [
        {
            "head": head,
            "stream": stream,
            "video accuracy": f"{top1.value:.1%}",
            "95 % interval": f"{top1.low:.1%} to {top1.high:.1%}",
        }
        for head, stream, top1 in results.values()
    ]


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
    results: Results = {}
    for name, (stream, config) in RUNS.items():
        run_jobs(store, [features[stream]], records, plan_jobs(splits, out / name), config)
        pooled = evaluate(out / name).measures
        assert pooled is not None  # leave-one-subject-out tests every video once
        results[name] = (config.head, stream, pooled.top1)
    fusion, _ = fuse([load_member(out / "lstm", "rgb"), load_member(out / "lstm_flow", "flow")])
    results["product"] = ("product of both LSTMs", "rgb and flow", fusion.row("product").top1)
    clock("train")
    learned = learn_features(out, records, store, sha256, device)
    clock("3D-ConvNet")
    clips = [r.path for r in records if r.subject == "person01" and r.scenario == "d1" and r.path]
    save_picture(out / "predictions.png", predict(clips, out / "lstm" / "split0", device=device))
    sections = [
        Section(
            title="Video accuracy on people never seen in training",
            rows=_rows(results),
            text=f"{len(records)} videos, chance 16.7 %.",
        ),
        Section(
            title="Features learned from scratch, on two people held out",
            rows=_rows(learned),
            text="The 3D-ConvNet of Baccouche 2011: 17,169 parameters, no weights from elsewhere, one split.",
        ),
        Section(title="Confusion matrix of the LSTM on RGB", pictures=[out / "lstm" / "confusion.png"]),
        Section(title="Predictions for a held-out person", pictures=[out / "predictions.png"]),
        *(
            Section(
                title=f"How the {stream} features were made",
                facts={"generator": GENERATOR_VERSION, **store.spec(name).to_dict()},
            )
            for stream, name in features.items()
        ),
    ]
    write_page(
        out / "report.html",
        "har_pipeline demo",
        "Six actions, rendered people: frames and optical flow through a net, two heads; and a net trained from scratch.",
        sections,
    )
    clock("page")
    return {
        "accuracy": {name: top1.value for name, (_, _, top1) in (results | learned).items()},
        "seconds": ledger,
    }


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
