"""Residual stacked LSTMs on UCF-101 and HMDB-51: every table of Lakhal 2018, section 4, on your copy of the data.

    python pipelines/lakhal2018.py hmdb51 /data/hmdb51 --lists /data/hmdb51_splits --idt idt_run --out out/hmdb51

C3D fc6 on clips of 16 frames, stride 8, for the ablations (Table 1, Figure 3); TSN's two streams, 25 segments, the mean of
ten crops, for the 2-layer Res-LSTM (Tables 2 to 5, Figures 5 and 6). RMSProp 1e-3. Accuracies are those of the test side,
and nothing is chosen by them: the system is the paper's (T = 25, two layers, product of both streams). PCA is fitted on each
split's training videos. The paper does not print Figure 3's numbers, nor epochs and batch (ours: TrainConfig's), nor the
sizes of Figure 3a (ours: those of its PCA). IDT is a scores.csv of yours, in a folder. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from pathlib import Path
from statistics import mean
from typing import Any

from har_pipeline import ClipSpec
from har_pipeline.categories import COMPLEX, read_groups
from har_pipeline.clips import sparse_clip_indices
from har_pipeline.compare import compare_members, write_comparison
from har_pipeline.evaluate import evaluate_scores, write_evaluation
from har_pipeline.extract import ExtractOptions, extract_many
from har_pipeline.extractors import build_extractor
from har_pipeline.fusion_files import load_member, write_fusion
from har_pipeline.fusion_table import fusion_table
from har_pipeline.jobs import plan_jobs, run_jobs
from har_pipeline.manifest_builders import build_manifest
from har_pipeline.manifests import manifest_sha256, read_manifest, write_manifest
from har_pipeline.records import Stream
from har_pipeline.reduce import ReduceOptions, reduce_features
from har_pipeline.report.page import Section, write_page
from har_pipeline.splits import make_splits
from har_pipeline.store import FeatureStore, VideoSource
from har_pipeline.train_config import TrainConfig
from har_pipeline.video.flow_spec import FlowSpec
from har_pipeline.video.preprocess import with_crops

TIME_STEPS, DEPTHS, BASE_T = (5, 15, 25, 35), (2, 3, 4), 25
SIZES = {"units": (256, 512, 1024, 2048), "base": (1024,), "dims": (256, 512, 1024, 2048), "segments": (25,)}
QUICK = {"units": (2, 4, 6, 8), "base": (8,), "dims": (2, 4, 6, 8), "segments": (2,)}


def take_clips(store: FeatureStore, dense: str, num_clips: int) -> str:
    """Copy the clips that sparse sampling takes of all (section 3.1, sigma(t)) into a feature set; returns its name."""
    spec = store.spec(dense)
    sparse = dataclasses.replace(spec.clips, sampling="sparse", num_clips=num_clips)
    name = store.create_feature_set(dataclasses.replace(spec, clips=sparse))
    for video_id in sorted(set(store.video_ids(dense)) - set(store.video_ids(name))):
        one = store.read(dense, video_id)
        rows = sparse_clip_indices(len(one.features), num_clips)
        source = VideoSource(
            clip_starts=one.clip_starts[rows],
            clip_ends=one.clip_ends[rows],
            num_frames=one.num_frames,
            fps=one.fps,
            padded=one.padded,
            decode_notes=one.decode_notes,
            provenance=one.provenance,
        )
        store.write(name, video_id, one.features[rows], source)
    return name


def run(options: argparse.Namespace) -> dict[str, Any]:
    sizes, out = QUICK if options.quick else SIZES, options.out
    manifest = out / "manifest.csv"
    write_manifest(manifest, build_manifest(options.dataset, options.root, splits=options.lists), root=options.root)
    records, sha256 = read_manifest(manifest), manifest_sha256(manifest)
    splits = make_splits(records, options.dataset, val_fraction=0.0, manifest_sha256=sha256)
    splits = splits if options.splits == "all" else splits[:1]
    grouping = read_groups(options.dataset)

    # Features, in one pass over the videos.
    store = FeatureStore(out / "store.zarr", create=True)
    clip_net = build_extractor(
        options.clip_net, layer=options.clip_layer, weights=options.weights_clip, device=options.device
    )
    dense = dataclasses.replace(clip_net.input.clips, sampling="dense", num_clips=None, clip_stride=8)
    wanted = [(clip_net, ExtractOptions(clips=dense, workers=options.workers))]
    inputs: tuple[tuple[Stream, str | None], ...] = (("rgb", options.weights_rgb), ("flow", options.weights_flow))
    for stream, weights in inputs:
        net = build_extractor(options.tsn, stream=stream, weights=weights, device=options.device)
        segments = ClipSpec(sampling="segments", num_clips=sizes["segments"][0], clip_len=net.input.clips.clip_len)
        resize = with_crops(net.input.resize, options.crops)
        flow = FlowSpec(method=options.flow_method) if stream == "flow" else None
        wanted.append((net, ExtractOptions(clips=segments, resize=resize, flow=flow)))
    made = extract_many(records, store, wanted)
    missing = sorted({video_id for one in made for video_id in (*one.failed, *one.failed_before)})
    clips, rgb, flow_set = (one.feature_set for one in made)

    base = TrainConfig(epochs=options.epochs, device=options.device)
    rows: list[dict[str, Any]] = []

    def train(name: str, features: list[str], dim: int | None = None, **changes: Any) -> float:
        """Train a head on each split, after PCA where `dim` is given; returns the mean of the test accuracies."""
        config, accuracies = dataclasses.replace(base, **changes), []
        for part in [splits] if dim is None else [[split] for split in splits]:
            if dim is not None:
                reduced = reduce_features(store, clips_of[BASE_T], part[0], ReduceOptions(dim=dim, allow_missing=True))
                features = [reduced.feature_set]
            jobs = plan_jobs(part, out / name, folds=True)
            done = run_jobs(store, features, records, jobs, config, manifest_sha256=sha256, allow_missing=True)
            accuracies += [outcome.summary.test_accuracy for outcome in done]
        return mean(accuracies)

    def note(table: str, row: str, accuracy: float | None) -> None:
        rows.append({"table": table, "row": row, "ours": accuracy})

    # Table 1: time steps; Figure 3: hidden size of one LSTM, then depth x PCA dimension with and without skips.
    clips_of = {number: take_clips(store, clips, number) for number in TIME_STEPS}
    for number, features in clips_of.items():
        note("1", f"T = {number}", train(f"steps{number}", [features], head="lstm", units=sizes["base"][0]))
    for units in sizes["units"]:
        note("3a", f"h = {units}", train(f"units{units}", [clips_of[BASE_T]], head="lstm", units=units))
    for dim in sizes["dims"]:
        for depth in DEPTHS:
            for head, words in (("res_lstm", "with"), ("stacked_lstm", "without")):
                accuracy = train(f"{head}{depth}_pca{dim}", [clips_of[BASE_T]], dim, head=head, num_layers=depth)
                note("3b-c", f"{depth} layers, PCA {dim}, {words} skips", accuracy)
    # Table 2: fusion of the two streams.
    system: dict[str, Any] = {"head": "res_lstm", "num_layers": 2}
    for op in ("sum", "product"):
        accuracy = train(f"mid_{op}", [rgb, flow_set], **system, mid_fusion="input", fusion_op=op)
        note("2", f"mid fusion, {op}", accuracy)
    train("rgb", [rgb], **system)
    train("flow", [flow_set], **system)
    streams = [load_member(out / "rgb", "rgb"), load_member(out / "flow", "flow")]
    fusion, scores = fusion_table(streams, chosen="product")
    late = {rule: fusion.row(rule).top1.value for rule in ("sum", "product", "weighted")}
    note("2", "late fusion, sum", late["sum"])
    note("2", "late fusion, product", late["product"])
    note("2", "late fusion, 1.5 flow + 1 RGB", late["weighted"])
    # Table 3 and Figure 5, on the first split.
    write_fusion(out / "res_lstm", fusion, scores, streams)
    first = scores.select([k for k, fold in enumerate(scores.fold) if fold == splits[0].index])
    evaluation = evaluate_scores(first, grouping=grouping)
    write_evaluation(evaluation, out / "res_lstm")
    for group in evaluation.per_group:
        if group.name != COMPLEX:
            note("3", group.name, group.accuracy.value if group.accuracy else None)
    # Tables 4 and 5, Figure 6.
    note("4", "Res-LSTM", late["product"])
    note("5", "Res-LSTM", late["product"])
    pictures = [out / "res_lstm" / "confusion_groups.png"]
    if options.idt:
        members = [load_member(out / "res_lstm", "res_lstm"), load_member(options.idt, "idt")]
        fusion, scores = fusion_table(members, chosen="product")
        write_fusion(out / "res_lstm_idt", fusion, scores, members)
        note("5", "Res-LSTM x IDT", fusion.row("product").top1.value)
        both = load_member(out / "res_lstm_idt", "res_lstm x idt")
        write_comparison(compare_members(members[0], both, grouping=grouping), out / "res_lstm_idt")
        pictures += [out / "res_lstm_idt" / name for name in ("difference.png", "class_gains.png")]
    labels = {f"{net.net.name} {net.stream}": net.weights for net, _ in wanted}
    result = {"data set": options.dataset, "splits": len(splits), "videos": len(records), "without features": missing}
    return report(options, {**result, "weights": labels, "rows": rows}, rows, pictures)


def report(
    options: argparse.Namespace, result: dict[str, Any], rows: list[dict[str, Any]], pictures: list[Path]
) -> dict[str, Any]:
    """Put the paper's numbers beside ours, add the systems it compares with, and write results.json and report.html."""
    with open(Path(__file__).with_name("papers.csv"), newline="", encoding="utf-8") as file:
        listed = [
            row for row in csv.DictReader(file) if (row["paper"], row["dataset"]) == ("lakhal2018", options.dataset)
        ]
    paper = {(row["table"], row["row"]): float(row["percent"]) / 100 for row in listed}
    for row in rows:
        row["paper"] = paper.get((str(row["table"]), str(row["row"])))
    cited = [row for row in listed if row["of"] == "cited"]
    rows += [
        {"table": row["table"], "row": row["row"], "ours": None, "paper": float(row["percent"]) / 100} for row in cited
    ]
    (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    names = {"1": "Table 1: time steps", "3a": "Figure 3a: hidden size", "3b-c": "Figure 3b and c: depth and skips"}
    names |= {"2": "Table 2: fusion", "3": "Table 3: categories, first split", "4": "Table 4", "5": "Table 5"}
    sections = [
        Section(
            title=title,
            rows=[
                {
                    "": row["row"],
                    **{who: "" if row[who] is None else f"{row[who]:.1%}" for who in ("paper", "ours")},
                }
                for row in rows
                if row["table"] == table
            ],
        )
        for table, title in names.items()
    ]
    sections.append(Section(title="Figures 5 and 6", pictures=pictures))
    random = [name for name, label in result["weights"].items() if label.startswith("random")]
    warnings = [f"Random weights of {', '.join(random)}: these numbers mean nothing."] if random else []
    if options.quick:
        warnings.append("Sizes for a test (--quick): these numbers mean nothing.")
    if not options.idt:
        warnings.append("No IDT scores were given (--idt): the product with IDT is left out.")
    lead = str(__doc__).splitlines()[0]
    write_page(options.out / "report.html", f"Lakhal 2018 on {options.dataset}", lead, sections, warnings)
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
    parser.add_argument("--workers", type=int)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(json.dumps(run(parse()), indent=2))
