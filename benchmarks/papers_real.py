"""The experiments of Lakhal 2018 and Orozco 2020 on small real data, with the pipelines' own code. Prints JSON.

    python benchmarks/papers_real.py fc6 DATA --out papers_fc6
    python benchmarks/papers_real.py ut_interaction UT_INTERACTION --weights i3d.safetensors --out papers_ut

fc6: VGG16 fc6 of six frames of seven UCF-101 classes, official split 1 (DATA as in fc6_heads.py): Lakhal's Table 1, Figure 3
and strategy 1, Orozco's sweep over units. ut_interaction: set 1, leave-one-sequence-out, I3D on clips of 16 frames, stride 8:
the same, and Lakhal's Table 2 (T = 8; RGB: I3D, flow: EfficientNet-Lite0 on stacks of five DIS fields at 8 places, the mean of
ten crops; both reduced to 64 values by a PCA of each fold's training clips, since mid fusion at the input needs one size).

Sizes, T and Lakhal's epochs are smaller than the papers', for one shared core. They were cut for time, not by accuracies,
though two of them (T = 2 and 4 on fc6) had been seen; nothing is chosen. Plain features, one seed; of several folds the mean,
in Table 2 over all tests. --only makes some of the tables. Finished runs and features in OUT are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from har_pipeline import (
    ClipSpec,
    ExtractOptions,
    FeatureStore,
    FlowSpec,
    build_extractor,
    build_manifest,
    errors_as_lines,
    extract_many,
    make_splits,
    manifest_sha256,
    read_manifest,
    with_crops,
    write_manifest,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
import lakhal2018
import orozco2020
from real_features import ucf101_fc6

Result = dict[str, Any]
EPOCHS, UNITS = 25, (10, 20, 40)
SIZES: dict[str, tuple[int, ...]] = {"base": (64,), "sizes": (32, 64)}
PLACES, PCA = 8, 64
FUSION, OROZCO = "2", "orozco"
PARTS = (*lakhal2018.ABLATIONS, FUSION, OROZCO)


def both_papers(data: lakhal2018.Data, features: str, time_steps: tuple[int, ...], args: argparse.Namespace) -> Result:
    """Return Lakhal's ablations and Orozco's sweep on one feature set."""
    base = dataclasses.replace(lakhal2018.PLAIN, epochs=EPOCHS, device=args.device)
    found: Result = {
        "lakhal": lakhal2018.ablations(data, features, base, SIZES, 1, time_steps, time_steps[-1], args.only),
        "orozco": [],
    }
    if OROZCO in args.only:
        head = dataclasses.replace(orozco2020.HEAD, device=args.device)
        found["orozco"], failed = orozco2020.sweep(
            data.store, data.records, data.splits, features, head, UNITS, data.out / "orozco", title="units"
        )
        assert not failed, failed
    return found


def on_fc6(args: argparse.Namespace) -> Result:
    store, features, records, split = ucf101_fc6(args.folder, args.out / "store.zarr")
    found = both_papers(lakhal2018.Data(args.out, store, records, [split]), features, (2, 4, 6), args)
    return {"what": "fc6", "test videos": len(split.test), "folds": 1, **found}


def on_ut_interaction(args: argparse.Namespace) -> Result:
    root, out, device = args.folder, args.out, args.device
    manifest = out / "manifest.csv"
    write_manifest(manifest, build_manifest("ut_interaction", root), root=root)
    records, store = read_manifest(manifest), FeatureStore(out / "store.zarr", create=True)
    i3d = build_extractor("i3d", weights=args.weights, device=device)
    dense = dataclasses.replace(i3d.input.clips, sampling="dense", num_clips=None, clip_len=16, clip_stride=8)
    flow = build_extractor("tsn_efficientnet_lite0", stream="flow", device=device)
    at_places = ExtractOptions(
        clips=ClipSpec(sampling="segments", num_clips=PLACES, clip_len=flow.input.clips.clip_len),
        resize=with_crops(flow.input.resize, "ten"),
        flow=FlowSpec(method="dis"),
    )
    made = extract_many(records, store, [(i3d, ExtractOptions(clips=dense)), (flow, at_places)])
    if lost := {video_id for one in made for video_id in (*one.failed, *one.failed_before)}:
        sys.exit(f"without features: {', '.join(sorted(lost))}")
    of_rgb, of_flow = (one.feature_set for one in made)
    splits = make_splits(records, "leave_one_group_out", val_fraction=0.0, manifest_sha256=manifest_sha256(manifest))
    data = lakhal2018.Data(out, store, records, splits)
    base = dataclasses.replace(lakhal2018.PLAIN, num_steps=PLACES, device=device)
    rows = lakhal2018.fusion_strategies(data, (of_rgb, of_flow), base, PCA) if FUSION in args.only else []
    found = both_papers(data, of_rgb, (5, 15, 25), args)
    return {
        **{"what": "ut_interaction", "test videos": len(records), "folds": len(splits)},
        **{"lakhal": rows + found["lakhal"], "orozco": found["orozco"]},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fc6", "ut_interaction"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", help="of I3D on RGB: a name or a file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="tables of Lakhal 2018, or orozco's sweep"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with errors_as_lines():
        result = on_fc6(arguments) if arguments.what == "fc6" else on_ut_interaction(arguments)
    print(json.dumps(result, indent=2))
