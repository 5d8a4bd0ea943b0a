"""The whole two-stage job on the embedded data set: render, extract, train two heads, evaluate, write a page.

Run by `make demo`. EfficientNet-Lite0 with real ImageNet weights reads every second frame of the first 40; each person
is held out once (leave-one-subject-out), and mean pooling is compared with an LSTM on the same features.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from har_pipeline import ClipSpec
from har_pipeline.extract import ExtractOptions, extract
from har_pipeline.extractors import build_extractor
from har_pipeline.folds import evaluate_folds
from har_pipeline.manifests import manifest_sha256, read_manifest
from har_pipeline.metrics import Interval
from har_pipeline.predict import predict_videos, save_picture
from har_pipeline.report.page import Section, write_page
from har_pipeline.splits import make_splits
from har_pipeline.store import FeatureStore
from har_pipeline.synthetic import GENERATOR_VERSION, write_dataset
from har_pipeline.train import train_head
from har_pipeline.train_config import TrainConfig

CLIPS = ClipSpec(sampling="first", num_clips=20, clip_stride=2)
HEADS = {
    "mean_pool": TrainConfig(head="mean_pool"),
    "lstm": TrainConfig(head="lstm", units=128, epochs=40, batch_size=25, input_dropout=0.5),
}


def run(out: Path, subjects: int, install_seconds: float, device: str) -> dict[str, object]:
    shutil.rmtree(out, ignore_errors=True)
    ledger = {"install": install_seconds}
    started = time.perf_counter()

    def clock(stage: str) -> None:
        nonlocal started
        ledger[stage] = time.perf_counter() - started
        print(f"{stage}: {ledger[stage]:.0f} s", flush=True)
        started = time.perf_counter()

    manifest = write_dataset(out / "data", num_subjects=subjects)
    clock("synth")
    records = read_manifest(manifest)
    store = FeatureStore(out / "store.zarr", create=True)
    extractor = build_extractor("efficientnet_lite0", device=device)
    features = extract(records, store, extractor, ExtractOptions(clips=CLIPS)).feature_set
    clock("extract")
    sha256 = manifest_sha256(manifest)
    splits = make_splits(records, "leave_one_subject_out", val_fraction=0.0, manifest_sha256=sha256)
    results: dict[str, Interval] = {}
    rows = []
    for name, config in HEADS.items():
        for split in splits:
            train_head(
                store, features, records, split, config, out / name / f"split{split.index}", manifest_sha256=sha256
            )
        pooled = evaluate_folds(out / name).pooled
        assert pooled is not None  # leave-one-subject-out tests every video once
        top1 = results[name] = pooled.top1
        rows.append(
            {"head": name, "video accuracy": f"{top1.value:.1%}", "95 % interval": f"{top1.low:.1%} to {top1.high:.1%}"}
        )
    clips = [r.path for r in records if r.subject == "person01" and r.scenario == "d1" and r.path]
    save_picture(out / "predictions.png", predict_videos(clips, out / "lstm" / "split0", device=device)[1])
    sections = [
        Section(
            title="Video accuracy on people never seen in training",
            rows=rows,
            text=f"{len(records)} videos, chance 16.7 %.",
        ),
        Section(title="Confusion matrix of the LSTM", pictures=[out / "lstm" / "confusion.png"]),
        Section(title="Predictions for a held-out person", pictures=[out / "predictions.png"]),
        Section(title="How it was made", facts={"generator": GENERATOR_VERSION, **store.spec(features).to_dict()}),
    ]
    write_page(
        out / "report.html", "har_pipeline demo", "Six actions, rendered people, a frame net and two heads.", sections
    )
    clock("train and page")
    return {
        "accuracy": {name: top1.value for name, top1 in results.items()},
        "seconds": ledger,
        "page": str(out / "report.html"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--install-seconds", type=float, default=0.0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    outcome = run(arguments.out, arguments.subjects, arguments.install_seconds, arguments.device)
    print(json.dumps(outcome, indent=2))
    print(f"open {outcome['page']}")
