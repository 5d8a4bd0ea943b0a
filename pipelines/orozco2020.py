"""VGG16 + LSTM on KTH, UCF-11 and HMDB-51: Orozco 2020, sections 2 and 3, on your copy of the data.

    python pipelines/orozco2020.py kth /data/kth --out out/kth
    python pipelines/orozco2020.py hmdb51 /data/hmdb51 --splits /data/hmdb51_splits --out out/hmdb51

The first 40 frames (the last one repeated if there are fewer), stretched to 224x224, pool5 (25,088 values); LSTM of n_u
units, RMSProp, 50 epochs, batch 25; a sweep over n_u with the plot of figures 4 to 6. The headline is the accuracy at the
published n_u: the paper chooses n_u by test accuracy, so the best of the sweep is not a fair estimate. Finished folds are
kept: run again to continue an interrupted sweep.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from har_pipeline import (
    Axis,
    ExtractOptions,
    FeatureStore,
    Measure,
    Section,
    TrainConfig,
    build_extractor,
    build_manifest,
    errors_as_lines,
    evaluate,
    extract,
    make_splits,
    manifest_sha256,
    plan_points,
    read_manifest,
    run_sweep,
    write_manifest,
    write_page,
    write_sweep,
)

# data set: (protocol, n_u that the paper found best, its accuracy, the sweep)
PAPER = {
    "kth": ("kth_original", 360, 0.9386, (40, 120, 200, 280, 320, 360, 400)),
    "ucf11": ("leave_one_group_out", 320, 0.9194, (40, 120, 200, 280, 320, 360, 400)),
    "hmdb51": ("hmdb51", 400, 0.4736, (40, 120, 200, 280, 320, 360, 400)),
}


def run(options: argparse.Namespace) -> dict[str, object]:
    protocol, published_units, published_accuracy, sweep = PAPER[options.dataset]
    manifest = options.out / "manifest.csv"
    built = build_manifest(options.dataset, options.root, sequences=options.sequences, splits=options.splits)
    write_manifest(manifest, built, root=options.root)
    records, sha256 = read_manifest(manifest), manifest_sha256(manifest)
    store = FeatureStore(options.out / "store.zarr", create=True)
    extractor = build_extractor(options.extractor, layer=options.layer, weights=options.weights, device=options.device)
    clips = dataclasses.replace(extractor.input.clips, num_clips=options.frames)
    summary = extract(records, store, extractor, ExtractOptions(clips=clips, workers=options.workers))
    splits = make_splits(records, protocol, val_fraction=0.0, manifest_sha256=sha256)
    config = TrainConfig(head="lstm", epochs=options.epochs, device=options.device)
    points = plan_points([Axis("units", tuple(options.units or sweep))], config, summary.feature_set, options.out)
    runs = run_sweep(
        store,
        records,
        splits,
        points,
        folds=True,
        workers=options.train_workers,
        allow_missing=True,
        on_done=lambda point, _: print(f"{point.folder.name}: done", file=sys.stderr, flush=True),
    )
    # UCF-11 reports the mean over classes (section 3.2), the others the share of videos.
    measure: Measure = "mean_class_accuracy" if options.dataset == "ucf11" else "accuracy"
    summaries, _ = write_sweep(options.out, runs, measure=measure, title=options.dataset)
    rows = [
        {
            "units": dict(one.values)["units"],
            "accuracy": getattr(one, measure),
            "sd over folds": one.sd if measure == "accuracy" else one.mean_class_sd,
            "folds": one.runs,
        }
        for one in summaries
    ]
    headline = next((row["accuracy"] for row in rows if row["units"] == published_units), None)
    if headline is not None:
        evaluate(options.out / f"units_{published_units}")
    missing = {**summary.failed, **summary.failed_before}
    result = {
        "data set": options.dataset,
        "videos": len(records),
        "without features": sorted(missing),
        "weights": extractor.weights,
        "published n_u": published_units,
        "paper": published_accuracy,
        "ours at the published n_u": headline,
        "sweep": rows,
    }
    (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    warnings = ["Random weights: these numbers mean nothing."] if extractor.weights.startswith("random") else []
    warnings += [f"{len(missing)} videos have no features and were left out."] if missing else []
    warnings += [f"{name} could not be trained: {why}" for name, why in runs.failed.items()]
    table = [
        {name: f"{value:.1%}" if isinstance(value, float) else value or "" for name, value in row.items()}
        for row in rows
    ]
    facts = {key: value for key, value in result.items() if key != "sweep"}
    sections = [
        Section(title="Accuracy against LSTM units", rows=table, pictures=[options.out / "sweep.png"], facts=facts)
    ]
    write_page(
        options.out / "report.html",
        f"Orozco 2020 on {options.dataset}",
        str(__doc__).splitlines()[0],
        sections,
        warnings,
    )
    return result


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(PAPER))
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", type=Path, help="folder of HMDB-51's official split files")
    parser.add_argument("--sequences", type=Path, help="KTH's 00sequences.txt: each of the 2,391 sequences is a video")
    parser.add_argument("--frames", type=int, default=40, help="of each video; the paper's 40")
    parser.add_argument("--units", type=int, nargs="+", help="instead of the sweep")
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    parser.add_argument("--extractor", default="vgg16")
    parser.add_argument("--layer")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="decoding processes")
    parser.add_argument("--train-workers", type=int, default=1, help="training processes; each holds the features")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with errors_as_lines():
        print(json.dumps(run(parse()), indent=2))
