"""Residual stacked LSTMs on UCF-101 and HMDB-51: every table of Lakhal 2018, section 4, on your copy of the data.

    python pipelines/lakhal2018.py hmdb51 /data/hmdb51 --lists /data/hmdb51_splits --idt idt_run --out out/hmdb51

C3D fc6 on clips of 16 frames, stride 8, for the ablations (Table 1, Figure 3); TSN's two streams, 25 segments, the mean
of ten crops, for the 2-layer Res-LSTM (Tables 2 to 5, Figures 5 and 6). RMSProp 1e-3. Accuracies are measured on the test
videos and nothing is chosen by them: the system is the paper's (T = 25, two layers, product of both streams). PCA is
fitted on all clips of each split's training videos. The paper does not state the numbers of Figure 3, its epochs and
batch size (ours: TrainConfig's) or the sizes in Figure 3a (ours: those of its PCA). --idt is a folder with your own
scores.csv of improved dense trajectories. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from har_pipeline import (
    COMPLEX,
    Axis,
    ClipSpec,
    ExtractOptions,
    FeatureStore,
    FlowSpec,
    Section,
    Split,
    Stream,
    TrainConfig,
    VideoRecord,
    build_extractor,
    build_manifest,
    compare_members,
    errors_as_lines,
    extract_many,
    fuse,
    load_member,
    make_splits,
    manifest_sha256,
    measure_scores,
    plan_jobs,
    plan_points,
    read_groups,
    read_manifest,
    run_jobs,
    run_sweep,
    with_crops,
    write_comparison,
    write_fusion,
    write_manifest,
    write_measures,
    write_page,
    write_sweep,
)

TIME_STEPS, DEPTHS, BASE_T = (5, 15, 25, 35), (2, 3, 4), 25
SIZES: dict[str, tuple[int, ...]] = {"base": (1024,), "sizes": (256, 512, 1024, 2048), "segments": (25,)}
QUICK: dict[str, tuple[int, ...]] = {"base": (8,), "sizes": (2, 4, 6, 8), "segments": (2,)}
CURVES = {"1": "steps", "3a": "units", "3b-c": "depth"}
TABLES = ("1", "3a", "3b-c", "2", "3", "4", "5")
Row = dict[str, Any]


class Data(NamedTuple):
    """What all experiments read, and the folder that they write to."""

    out: Path
    store: FeatureStore
    records: Sequence[VideoRecord]
    splits: Sequence[Split]


def extract_streams(options: argparse.Namespace, data: Data, segments: int) -> tuple[list[str], dict[str, Any]]:
    """Extract C3D's clips and TSN's RGB and flow in one pass; returns their feature sets, and what to say of them."""
    net = build_extractor(
        options.clip_net, layer=options.clip_layer, weights=options.weights_clip, device=options.device
    )
    dense = dataclasses.replace(net.input.clips, sampling="dense", num_clips=None, clip_stride=8)
    wanted = [(net, ExtractOptions(clips=dense, workers=options.workers))]
    inputs: tuple[tuple[Stream, str | None], ...] = (("rgb", options.weights_rgb), ("flow", options.weights_flow))
    for stream, weights in inputs:
        net = build_extractor(options.tsn, stream=stream, weights=weights, device=options.device)
        clips = ClipSpec(sampling="segments", num_clips=segments, clip_len=net.input.clips.clip_len)
        flow = FlowSpec(method=options.flow_method) if stream == "flow" else None
        resize = with_crops(net.input.resize, options.crops)
        wanted.append((net, ExtractOptions(clips=clips, resize=resize, flow=flow)))
    made = extract_many(data.records, data.store, wanted)
    missing = sorted({video_id for one in made for video_id in (*one.failed, *one.failed_before)})
    labels = {f"{net.net.name} {net.stream}": net.weights for net, _ in wanted}
    return [one.feature_set for one in made], {"without features": missing, "weights": labels}


def ablations(data: Data, clips: str, base: TrainConfig, sizes: dict[str, tuple[int, ...]], workers: int) -> list[Row]:
    """Table 1: time steps; Figure 3: hidden size of one LSTM, then depth x PCA dimension with and without skips."""
    skips = {"res_lstm": "with", "stacked_lstm": "without"}
    depth = (Axis("head", tuple(skips)), Axis("num_layers", DEPTHS), Axis("pca", sizes["sizes"]))
    at_base = dataclasses.replace(base, num_steps=BASE_T)
    rows = []
    for table, axes, config in (
        ("1", (Axis("num_steps", TIME_STEPS),), dataclasses.replace(base, units=sizes["base"][0])),
        ("3a", (Axis("units", sizes["sizes"]),), at_base),
        ("3b-c", depth, at_base),
    ):
        folder = data.out / CURVES[table]
        points = plan_points(axes, config, clips, folder)
        done = run_sweep(data.store, data.records, data.splits, points, folds=True, allow_missing=True, workers=workers)
        for name, why in done.failed.items():
            print(f"{table}: {name} could not be trained: {why}", file=sys.stderr)
        for one in write_sweep(folder, done)[0]:
            v = dict(one.values)
            names = {"1": f"T = {v.get('num_steps')}", "3a": f"h = {v.get('units')}"}
            words = f"{v.get('num_layers')} layers, PCA {v.get('pca')}, {skips.get(str(v.get('head')))} skips"
            rows.append({"table": table, "row": names.get(table, words), "ours": one.accuracy})
    return rows


def fusions(options: argparse.Namespace, data: Data, rgb: str, flow: str, base: TrainConfig) -> list[Row]:
    """Tables 2 to 5, Figures 5 and 6: the two-layer Res-LSTM on each stream and on both."""
    out, grouping, rows = data.out, read_groups(options.dataset), []

    def note(table: str, row: str, accuracy: float | None) -> None:
        rows.append({"table": table, "row": row, "ours": accuracy})

    def train(folder: str, features: list[str], **changes: Any) -> float:
        config = dataclasses.replace(base, head="res_lstm", num_layers=2, **changes)
        jobs = plan_jobs(data.splits, out / folder, folds=True)
        done = run_jobs(data.store, features, data.records, jobs, config, allow_missing=True)
        return mean(outcome.summary.test_accuracy for outcome in done)

    for op in ("sum", "product"):
        note("2", f"mid fusion, {op}", train(f"mid_{op}", [rgb, flow], mid_fusion="input", fusion_op=op))
    train("rgb", [rgb])
    train("flow", [flow])
    streams = [load_member(out / "rgb", "rgb"), load_member(out / "flow", "flow")]
    fusion, scores = fuse(streams, chosen="product")
    for rule, words in (("sum", "sum"), ("product", "product"), ("weighted", "1.5 flow + 1 RGB")):
        note("2", f"late fusion, {words}", fusion.row(rule).top1.value)
    write_fusion(out / "res_lstm", fusion, scores, streams)
    # Table 3 and Figure 5 are those of the first split.
    first = scores.select([k for k, fold in enumerate(scores.fold) if fold == data.splits[0].index])
    measures = measure_scores(first, grouping=grouping)
    write_measures(measures, out / "res_lstm")
    for group in measures.per_group:
        if group.name != COMPLEX:
            note("3", group.name, group.accuracy.value if group.accuracy else None)
    note("4", "Res-LSTM", fusion.row("product").top1.value)
    note("5", "Res-LSTM", fusion.row("product").top1.value)
    if options.idt:
        members = [load_member(out / "res_lstm", "res_lstm"), load_member(options.idt, "idt")]
        fusion, scores = fuse(members, chosen="product")
        write_fusion(out / "res_lstm_idt", fusion, scores, members)
        note("5", "Res-LSTM x IDT", fusion.row("product").top1.value)
        both = load_member(out / "res_lstm_idt", "res_lstm x idt")
        write_comparison(compare_members(members[0], both, grouping=grouping), out / "res_lstm_idt")
    return rows


def beside_the_papers(rows: list[Row], dataset: str) -> None:
    """Put the paper's numbers beside ours, and the systems it compares with below."""
    with open(Path(__file__).with_name("papers.csv"), newline="", encoding="utf-8") as file:
        listed = [row for row in csv.DictReader(file) if (row["paper"], row["dataset"]) == ("lakhal2018", dataset)]
    paper = {(row["table"], row["row"]): float(row["percent"]) / 100 for row in listed}
    rows += [{"table": row["table"], "row": row["row"], "ours": None} for row in listed if row["of"] == "cited"]
    for row in rows:
        row["paper"] = paper.get((row["table"], row["row"]))


def report(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write report.html."""
    out, idt = options.out, ["difference.png", "class_gains.png"] if options.idt else []
    sections = []
    for table in TABLES:
        title = f"Table {table}" if table.isdigit() else f"Figure {table}"
        cells = [
            {"": row["row"], **{who: "" if row[who] is None else f"{row[who]:.1%}" for who in ("paper", "ours")}}
            for row in result["rows"]
            if row["table"] == table
        ]
        pictures = [out / CURVES[table] / "sweep.png"] if table in CURVES else []
        sections.append(Section(title=title, rows=cells, pictures=pictures))
    pictures = [out / "res_lstm" / "confusion_groups.png", *(out / "res_lstm_idt" / name for name in idt)]
    sections.append(Section(title="Figures 5 and 6", pictures=pictures))
    missing, random = result["without features"], [n for n, w in result["weights"].items() if w.startswith("random")]
    warnings = [f"{len(missing)} videos have no features and were left out."] if missing else []
    warnings += [f"Random weights of {', '.join(random)}: these numbers mean nothing."] if random else []
    warnings += ["Sizes for a test (--quick): these numbers mean nothing."] if options.quick else []
    warnings += [] if options.idt else ["No IDT scores were given (--idt): the product with IDT is left out."]
    lead = str(__doc__).splitlines()[0]
    write_page(out / "report.html", f"Lakhal 2018 on {options.dataset}", lead, sections, warnings)


def run(options: argparse.Namespace) -> dict[str, Any]:
    sizes, out = QUICK if options.quick else SIZES, options.out
    manifest = out / "manifest.csv"
    write_manifest(manifest, build_manifest(options.dataset, options.root, splits=options.lists), root=options.root)
    records, sha256 = read_manifest(manifest), manifest_sha256(manifest)
    splits = make_splits(records, options.dataset, val_fraction=0.0, manifest_sha256=sha256)
    splits = splits if options.splits == "all" else splits[:1]
    data = Data(out, FeatureStore(out / "store.zarr", create=True), records, splits)
    base = TrainConfig(epochs=options.epochs, device=options.device)
    (clips, rgb, flow), facts = extract_streams(options, data, sizes["segments"][0])
    rows = ablations(data, clips, base, sizes, options.train_workers) + fusions(options, data, rgb, flow, base)
    beside_the_papers(rows, options.dataset)
    result = {"data set": options.dataset, "splits": len(splits), "videos": len(records), **facts, "rows": rows}
    (out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    report(options, result)
    return result


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("ucf101", "hmdb51"))
    parser.add_argument("root", type=Path)
    parser.add_argument("--lists", type=Path, required=True, help="folder of the official split files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", choices=("1", "all"), default="1", help="the paper reports split 1")
    parser.add_argument("--idt", type=Path, help="run, or folder with a scores.csv, to be multiplied with")
    parser.add_argument("--quick", action="store_true", help="sizes for a test")
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    parser.add_argument("--clip-net", default="c3d")
    parser.add_argument("--clip-layer")
    parser.add_argument("--tsn", default="tsn_bninception")
    for name in ("clip", "rgb", "flow"):
        parser.add_argument(f"--weights-{name}", help="a name, a file, or random; the net's default if not given")
    parser.add_argument("--crops", choices=("center", "ten"), default="ten")
    parser.add_argument("--flow-method", default=FlowSpec().method)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="decoding processes")
    parser.add_argument("--train-workers", type=int, default=1, help="training processes; each holds the features")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with errors_as_lines():
        print(json.dumps(run(parse()), indent=2))
