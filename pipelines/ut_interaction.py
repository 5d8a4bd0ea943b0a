"""UT-Interaction set 1, leave-one-sequence-out: two people, six interactions, 60 clips in 10 sequences.

ROOT holds the segmented clips as `<number>_<sequence>_<label>.avi`. Protocol: Ryoo and Aggarwal 2010 (SDHA), 10 folds.
Prints JSON: video accuracy over all 60 held-out clips with its 95 % interval, for mean pooling and for the LSTM, on one of
two nets: EfficientNet-Lite0 on single frames, whose weights are installed with the package, or I3D on clips of 48 frames,
whose weights are downloaded or given as a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from har_pipeline import (
    ClipSpec,
    ExtractOptions,
    FeatureStore,
    TrainConfig,
    build_extractor,
    build_manifest,
    errors_as_lines,
    evaluate,
    extract,
    make_splits,
    manifest_sha256,
    plan_jobs,
    read_manifest,
    run_jobs,
    write_manifest,
)

CLIPS = {
    "efficientnet_lite0": ClipSpec(sampling="uniform", num_clips=20),
    "i3d": ClipSpec(sampling="uniform", num_clips=5, clip_len=48),
}
HEADS = {"mean_pool": TrainConfig(head="mean_pool"), "lstm": TrainConfig(head="lstm")}


def run(root: Path, out: Path, net: str, weights: str | None, device: str) -> dict[str, object]:
    manifest = out / "manifest.csv"
    write_manifest(manifest, build_manifest("ut_interaction", root), root=root)
    records = read_manifest(manifest)
    store = FeatureStore(out / "store.zarr", create=True)
    extractor = build_extractor(net, weights=weights, device=device)
    features = extract(records, store, extractor, ExtractOptions(clips=CLIPS[net])).feature_set
    sha256 = manifest_sha256(manifest)
    splits = make_splits(records, "leave_one_group_out", val_fraction=0.0, manifest_sha256=sha256)
    accuracy = {}
    for name, config in HEADS.items():
        run_jobs(store, [features], records, plan_jobs(splits, out / net / name), config)
        pooled = evaluate(out / net / name).measures
        assert pooled is not None  # each clip is tested once
        accuracy[name] = {"value": pooled.top1.value, "low": pooled.top1.low, "high": pooled.top1.high}
    return {"videos": len(records), "folds": len(splits), "features": features, "accuracy": accuracy}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("ut_interaction_out"))
    parser.add_argument("--extractor", choices=sorted(CLIPS), default="efficientnet_lite0")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with errors_as_lines():
        print(json.dumps(run(options.root, options.out, options.extractor, options.weights, options.device), indent=2))
