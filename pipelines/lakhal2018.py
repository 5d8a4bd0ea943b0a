"""Residual stacked LSTMs on UCF-101 and HMDB-51: every table of Lakhal 2018, section 4, on your copy of the data.

    python pipelines/lakhal2018.py hmdb51 /data/hmdb51 --lists /data/hmdb51_splits --idt idt.zarr --out out/hmdb51

C3D fc6 on clips of 16 frames, stride 8, for the ablations (Table 1, Figure 3); TSN's two streams, 25 segments, the mean
of ten crops, for the 2-layer Res-LSTM (Tables 2 to 5, Figures 4 to 6). Plain features, RMSProp 1e-3. Accuracies are measured
on the test videos and nothing is chosen by them: the system is the paper's (T = 25, two layers, product of both streams). PCA
is fitted on all clips of each split's training videos. What the paper does not say, and what we do there, is in
docs/papers.md; the report lists in what a run differs from what it does say. --idt is a store with improved dense
trajectories (`har extract out/hmdb51/manifest.csv idt.zarr --extractor idt`), which become Fisher vectors, fitted on each
split's training videos and kept in that store, for a linear SVM; or a folder with scores.csv of your own. Finished runs are
kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from papers import Row, beside, found, lead, printed, sections, trained_on, video_counts

from har_pipeline import (
    COMPLEX,
    Axis,
    ClipSpec,
    EncodeOptions,
    ExtractOptions,
    Extractor,
    FeatureStore,
    FlowSpec,
    FusionTable,
    Interval,
    Member,
    ReduceOptions,
    Scores,
    Split,
    Stream,
    TrainConfig,
    VideoRecord,
    build_extractor,
    build_manifest,
    compare_members,
    encode_features,
    errors_as_lines,
    extract_many,
    fuse,
    load_member,
    make_splits,
    manifest_sha256,
    mean_interval,
    measure_scores,
    plan_jobs,
    plan_points,
    read_groups,
    read_manifest,
    reduce_features,
    right_and_wrong,
    run_jobs,
    run_sweep,
    save_examples,
    with_crops,
    write_comparison,
    write_fusion,
    write_manifest,
    write_measures,
    write_page,
    write_sweep,
)

TIME_STEPS, DEPTHS, BASE_T = (5, 15, 25, 35), (2, 3, 4), 25
SIZES: dict[str, tuple[int, ...]] = {
    **{"base": (1024,), "sizes": (256, 512, 1024, 2048), "segments": (25,)},
    "gaussians": (256,),
}
QUICK: dict[str, tuple[int, ...]] = {"base": (8,), "sizes": (2, 4, 6, 8), "segments": (2,), "gaussians": (2,)}
CURVES = {"1": "steps", "figure 3a": "units", "figure 3b-c": "depth"}
SUB_VIDEOS = "sub_videos"
ABLATIONS = (*CURVES, "section 3.3")
TABLES = (
    "1",
    "figure 3a",
    "figure 3b-c",
    "section 3.3",
    "2",
    "3",
    "figure 4",
    "4",
    "figure 5",
    "figure 6",
    "5",
    "text",
)
# Neither paper scales its features.
PLAIN = TrainConfig(standardise=False)
# Wang and Schmid 2013, section 4.2: a linear SVM with C = 100. Its probabilities are calibrated on training videos.
SVM = TrainConfig(head="svm", logistic_c=100)
SUB_VIDEO, CLIP_NET, CLIP_LAYER, TSN = 0.5, "c3d", "fc6", "tsn_bninception"
SPORTS1M = ("sports1m", "sports1m-mmaction2")
# Section 4. HMDB-51's archive has fewer, see docs/papers.md.
PAPER_VIDEOS = {"ucf101": 13_320, "hmdb51": 6_849}
SKIPS = {"res_lstm": "with", "stacked_lstm": "without"}
EXAMPLES = 4


class Data(NamedTuple):
    """What all experiments read, and the folder that they write to."""

    out: Path
    store: FeatureStore
    records: Sequence[VideoRecord]
    splits: Sequence[Split]


class Streams(NamedTuple):
    """Feature sets of C3D's clips, and of TSN's RGB and flow; center: of the centre crop, if TSN's are means of ten."""

    clips: str
    tsn: tuple[str, str]
    center: tuple[str, str] | None
    missing: list[str]
    weights: dict[str, str]


def extract_streams(options: argparse.Namespace, data: Data, segments: int) -> Streams:
    """Extract C3D's clips and TSN's RGB and flow in one pass."""
    net = build_extractor(
        options.clip_net, layer=options.clip_layer, weights=options.weights_clip, device=options.device
    )
    weights = {f"{net.net.name} rgb": trained_on(net, options.weights_clip)}
    dense = dataclasses.replace(net.input.clips, sampling="dense", num_clips=None, clip_len=16, clip_stride=8)
    wanted: list[tuple[Extractor, ExtractOptions]] = [(net, ExtractOptions(clips=dense, workers=options.workers))]
    inputs: tuple[tuple[Stream, str | None], ...] = (("rgb", options.weights_rgb), ("flow", options.weights_flow))
    for crops in ("ten", "center") if options.crops == "ten" else ("center",):
        for stream, asked in inputs:
            net = build_extractor(options.tsn, stream=stream, weights=asked, device=options.device)
            weights[f"{net.net.name} {stream}"] = trained_on(net, asked)
            clips = ClipSpec(sampling="segments", num_clips=segments, clip_len=net.input.clips.clip_len)
            flow = FlowSpec(method=options.flow_method) if stream == "flow" else None
            resize = with_crops(net.input.resize, crops)
            wanted.append((net, ExtractOptions(clips=clips, resize=resize, flow=flow)))
    made = extract_many(data.records, data.store, wanted)
    missing = sorted({video_id for one in made for video_id in (*one.failed, *one.failed_before)})
    names = [one.feature_set for one in made]
    return Streams(names[0], (names[1], names[2]), (names[3], names[4]) if names[3:] else None, missing, weights)


def tested(data: Data) -> int:
    """The number of different test videos."""
    return len({video_id for split in data.splits for video_id in split.test})


def ablations(
    data: Data,
    clips: str,
    base: TrainConfig,
    sizes: dict[str, tuple[int, ...]],
    workers: int,
    time_steps: Sequence[int] = TIME_STEPS,
    base_t: int = BASE_T,
    tables: Sequence[str] = ABLATIONS,
) -> list[Row]:
    """Table 1: time steps; Figure 3: hidden size of one LSTM, then depth x PCA dimension with and without skips.

    Section 3.3: sub-videos in training. tables: which of these to make.
    """
    depth = (Axis("head", tuple(SKIPS)), Axis("num_layers", DEPTHS), Axis("pca", sizes["sizes"]))
    of_base = dataclasses.replace(base, units=sizes["base"][0])
    at_base = dataclasses.replace(base, num_steps=base_t)
    rows = []
    for table, folder, axes, config in (
        ("1", CURVES["1"], (Axis("num_steps", tuple(time_steps)),), of_base),
        ("figure 3a", CURVES["figure 3a"], (Axis("units", sizes["sizes"]),), at_base),
        ("figure 3b-c", CURVES["figure 3b-c"], depth, at_base),
        (
            "section 3.3",
            SUB_VIDEOS,
            (Axis("temporal_crop", (SUB_VIDEO,)),),
            dataclasses.replace(of_base, num_steps=base_t),
        ),
    ):
        if table not in tables:
            continue
        points = plan_points(axes, config, clips, data.out / folder)
        done = run_sweep(data.store, data.records, data.splits, points, folds=True, allow_missing=True, workers=workers)
        for name, why in done.failed.items():
            print(f"{table}: {name} could not be trained: {why}", file=sys.stderr)
        for one in write_sweep(data.out / folder, done)[0]:
            v = dict(one.values)
            names = {
                "1": f"T = {v.get('num_steps')}",
                "figure 3a": f"h = {v.get('units')}",
                "figure 3b-c": f"{v.get('num_layers')} layers, PCA {v.get('pca')}, {SKIPS.get(str(v.get('head')))} skips",
                "section 3.3": f"learned from sub-videos, {1 - SUB_VIDEO:.0%} of the clips, T = {base_t}",
            }
            top1 = mean_interval([one.accuracy], tested(data))
            rows.append(found(table, names[table], top1))
            if (table, v.get("num_steps")) == ("1", base_t) and "section 3.3" in tables:
                rows.append(found("section 3.3", f"learned from whole videos, T = {base_t}", top1))
    return rows


def train(
    data: Data, folder: str, features: Sequence[str], base: TrainConfig, pca: int | None, **changes: Any
) -> Interval:
    """Train the two-layer Res-LSTM; pca: on so many values of each feature set, fitted on each split's training clips."""
    config = dataclasses.replace(base, head="res_lstm", num_layers=2, **changes)
    right = tests = 0.0
    for job in plan_jobs(data.splits, data.out / folder, folds=True):
        names = list(features)
        if pca:
            options = ReduceOptions(dim=pca, allow_missing=True)
            names = [reduce_features(data.store, name, job.split, options).feature_set for name in features]
        (outcome,) = run_jobs(data.store, names, data.records, [job], config, allow_missing=True)
        right += outcome.summary.measured_accuracy * outcome.summary.num_test
        tests += outcome.summary.num_test
    # Over all tests, as `fuse` has it: folds may differ in size.
    return mean_interval([right / tests], tested(data))


def two_streams(
    data: Data, pair: tuple[str, str], base: TrainConfig, within: str = "", pca: int | None = None
) -> tuple[FusionTable, Scores, list[Member]]:
    """Train RGB and flow, each by itself, and fuse them late."""
    names = ("rgb", "flow")
    for name, features in zip(names, pair, strict=True):
        train(data, f"{within}{name}", [features], base, pca)
    members = [load_member(data.out / f"{within}{name}", name) for name in names]
    return *fuse(members, chosen="product"), members


def fusion_strategies(data: Data, pair: tuple[str, str], base: TrainConfig, pca: int | None = None) -> list[Row]:
    """Table 2; the product's scores are kept in the folder res_lstm."""
    rows = []
    for op in ("sum", "product"):
        top1 = train(data, f"mid_{op}", pair, base, pca, mid_fusion="input", fusion_op=op)
        rows.append(found("2", f"mid fusion, {op}", top1))
    fusion, scores, members = two_streams(data, pair, base, pca=pca)
    for rule, words in (("sum", "sum"), ("product", "product"), ("weighted", "1.5 flow + 1 RGB")):
        rows.append(found("2", f"late fusion, {words}", fusion.row(rule).top1))
    write_fusion(data.out / "res_lstm", fusion, scores, members)
    return rows


def single_crops(
    data: Data, crops: dict[str, tuple[tuple[str, str], str]], base: TrainConfig, pca: int | None = None
) -> list[Row]:
    """Section 3.3: each stream and their product. crops: name -> RGB and flow, and how the names of their folders begin."""
    rows = []
    for name, (pair, within) in crops.items():
        fusion = two_streams(data, pair, base, within, pca)[0]
        rows += [found("section 3.3", f"{name}, {line}", fusion.row(line).top1) for line in ("rgb", "flow", "product")]
    return rows


def idt_member(data: Data, idt: Path, gaussians: int, device: str) -> Member:
    """The answers of IDT: of a store's trajectories as Fisher vectors and a linear SVM, or those of a folder."""
    if not (idt / "zarr.json").exists():
        return load_member(idt, "idt")
    store, options = FeatureStore(idt), EncodeOptions(gaussians=gaussians, allow_missing=True)
    svm = dataclasses.replace(SVM, device=device)
    for job in plan_jobs(data.splits, data.out / "idt", folds=True):
        vectors = encode_features(store, "idt", job.split, options).feature_set
        run_jobs(store, [vectors], data.records, [job], svm, allow_missing=True)
    return load_member(data.out / "idt", "idt")


def final_model(data: Data, dataset: str, idt: Member | None) -> list[Row]:
    """Tables 3 to 5, Figures 4 to 6: the product of both streams, and its product with IDT."""
    out, grouping, rows = data.out, read_groups(dataset), []
    product = load_member(out / "res_lstm", "res_lstm")
    # Table 3 and the figures are those of the first split.
    first = of_split(product.scores, data.splits[0])
    measures = measure_scores(first, grouping=grouping)
    write_measures(measures, out / "res_lstm")
    for group in measures.per_group:
        if group.name != COMPLEX and group.accuracy:
            rows.append(found("3", group.name, group.accuracy))
    for name, own in zip(("right", "wrong"), right_and_wrong(first, EXAMPLES), strict=True):
        if own.video_ids:
            save_examples(out / "res_lstm" / f"{name}.png", own, data.records, top=5, truth=True)
    top1 = overall(product.scores, data)
    rows += [found("4", "Res-LSTM", top1), found("5", "Res-LSTM", top1)]
    if idt:
        fusion, scores = fuse([product, idt], chosen="product")
        write_fusion(out / "res_lstm_idt", fusion, scores, [product, idt])
        rows += [
            found("5", name, fusion.row(line).top1) for name, line in (("IDT", "idt"), ("Res-LSTM x IDT", "product"))
        ]
        write_measures(measure_scores(of_split(scores, data.splits[0]), grouping=grouping), out / "res_lstm_idt")
        both = load_member(out / "res_lstm_idt", "res_lstm x idt")
        comparison = compare_members(product, both, grouping=grouping)
        write_comparison(comparison, out / "res_lstm_idt")
        kept = sum(one.gain >= 0 for one in comparison.per_class)
        lost = len(comparison.per_class) - kept
        for words, count in (("classes that IDT improves or keeps", kept), ("classes that IDT makes worse", lost)):
            rows.append(found("text", words, count, "gain", "classes"))
    return rows


def of_split(scores: Scores, split: Split) -> Scores:
    """The rows that a split tests."""
    return scores.select([k for k, fold in enumerate(scores.fold) if fold == split.index and scores.part[k] == "test"])


def overall(scores: Scores, data: Data) -> Interval:
    """The mean accuracy over the splits."""
    return mean_interval([measure_scores(of_split(scores, split)).top1.value for split in data.splits], tested(data))


def gains(rows: Sequence[Row], lines: Sequence[Row]) -> list[Row]:
    """The differences that the paper prints: of our accuracies, and of ours from those of L2STM."""
    ours = {(row["table"], row["row"]): row["ours"] for row in rows}
    pairs = [
        ("late over mid fusion, sum", ("2", "late fusion, sum"), ("2", "mid fusion, sum")),
        ("late over mid fusion, product", ("2", "late fusion, product"), ("2", "mid fusion, product")),
        ("Res-LSTM x IDT over Res-LSTM", ("5", "Res-LSTM x IDT"), ("5", "Res-LSTM")),
    ]
    made = [
        found("text", words, ours[more] - ours[less], "gain", "points")
        for words, more, less in pairs
        if more in ours and less in ours
    ]
    return made + [
        found("3", line["row"], ours["3", line["row"]] - line["paper"], "gain", "points")
        for line in lines
        if (line["table"], line["of"]) == ("3", "cited") and ("3", line["row"]) in ours
    ]


def departures(options: argparse.Namespace, videos: int) -> list[str]:
    """Say how a run differs from the paper, but for TSN's weights, which every report names."""
    made, sizes = video_counts(videos, PAPER_VIDEOS[options.dataset]), QUICK if options.quick else SIZES
    for what, name in (("h", "base"), ("hidden sizes and PCA dimensions", "sizes"), ("segments", "segments")):
        own, paper = (", ".join(f"{value:,}" for value in values[name]) for values in (sizes, SIZES))
        made += [f"{what} = {own}; the paper: {paper}"] if own != paper else []
    if (options.clip_net, options.clip_layer or CLIP_LAYER) != (CLIP_NET, CLIP_LAYER):
        made.append(
            f"Table 1 and Figure 3 are of {options.clip_net}, {options.clip_layer or 'its own layer'}; the paper: {CLIP_NET}, "
            f"4,096 values, here {CLIP_LAYER}"
        )
    elif options.weights_clip not in (None, *SPORTS1M):
        made.append(f"{options.weights_clip} are C3D's weights; the paper's learned from Sports-1M alone")
    if options.tsn != TSN:
        made.append(f"TSN's frame net is {options.tsn}, so that h is not 1,024; the published TSN: {TSN}")
    if options.crops != "ten":
        made.append("features of the centre crop; the paper: the mean of ten crops")
    if options.flow_method != FlowSpec().method:
        made.append(f"optical flow by {options.flow_method}; the paper does not say, TSN has {FlowSpec().method}")
    if options.epochs != PLAIN.epochs:
        made.append(f"{options.epochs} epochs; the paper does not say, our guess is {PLAIN.epochs}")
    if options.splits != "1":
        made.append("the mean of all splits; the paper: split 1")
    return made


def not_trained(out: Path) -> dict[str, str]:
    """Return why runs of the ablations could not be trained, by their folders."""
    found: dict[str, str] = {}
    for folder in (*CURVES.values(), SUB_VIDEOS):
        summary = out / folder / "sweep.json"
        failed = json.loads(summary.read_text(encoding="utf-8"))["failed"] if summary.exists() else {}
        found |= {f"{folder}/{name}": why for name, why in failed.items()}
    return found


def report(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write report.html."""
    out = options.out
    pictures = {table: [out / folder / "sweep.png"] for table, folder in CURVES.items()} | {
        "figure 4": [out / "res_lstm" / f"{name}.png" for name in ("right", "wrong")],
        "figure 5": [out / "res_lstm" / "confusion_groups.png"],
        "figure 6": [
            out / "res_lstm_idt" / f"{name}.png" for name in ("confusion_groups", "difference", "class_gains")
        ],
    }
    of_clips = f"Clips of {options.clip_net}: {result['weights'][f'{options.clip_net} rgb']}."
    texts = {
        **{"1": of_clips, "figure 3a": of_clips, "figure 3b-c": of_clips},
        "2": "Features of TSN: the product has the final system's 68.0 % in the paper, though its section 4 says C3D of all of "
        "section 4.1.",
        "section 3.3": "Sub-videos: each epoch a random one of each training video; tests see whole videos. "
        "Centre crop: one crop in training and tests.",
        "figure 4": f"Up to {EXAMPLES} videos recognised and {EXAMPLES} mistaken, spread over all test videos by name, not "
        "chosen. Blue: the true class; green: an answer that is right; red: one that is wrong.",
        "5": "IDT is ours alone: the paper does not print its accuracy, nor which features and classifier it has.",
        "figure 6": "(a) Res-LSTM x IDT; (b) less Res-LSTM; (c) per class.",
    }
    missing = result["without features"]
    random = [name for name, words in result["weights"].items() if words.startswith("random")]
    warnings = [f"Departure: {words}." for words in result["departures"]]
    warnings += [f"{len(missing)} videos have no features and were left out."] if missing else []
    warnings += [f"{name} could not be trained: {why}" for name, why in result["not trained"].items()]
    warnings += [f"Random weights of {', '.join(random)}: these numbers mean nothing."] if random else []
    warnings += ["Sizes for a test (--quick): these numbers mean nothing."] if options.quick else []
    warnings += [] if options.idt else ["No IDT was given (--idt): its product is left out."]
    of_tsn = [f"{stream}: {result['weights'][f'{options.tsn} {stream}']}" for stream in ("rgb", "flow")]
    warnings.append(
        f"TSN's weights: {'; '.join(of_tsn)}. The paper extracts with `the TSN model`, whose published nets were trained on "
        "each data set (--weights-rgb, --weights-flow)."
    )
    made = sections(result["rows"], TABLES, pictures, texts)
    write_page(out / "report.html", f"Lakhal 2018 on {options.dataset}", lead(__doc__), made, warnings)


def run(options: argparse.Namespace) -> dict[str, Any]:
    sizes, out = QUICK if options.quick else SIZES, options.out
    manifest = out / "manifest.csv"
    write_manifest(manifest, build_manifest(options.dataset, options.root, splits=options.lists), root=options.root)
    records, sha256 = read_manifest(manifest), manifest_sha256(manifest)
    splits = make_splits(records, options.dataset, val_fraction=0.0, manifest_sha256=sha256)
    splits = splits if options.splits == "all" else splits[:1]
    data = Data(out, FeatureStore(out / "store.zarr", create=True), records, splits)
    base = dataclasses.replace(PLAIN, epochs=options.epochs, device=options.device)
    streams, lines = extract_streams(options, data, sizes["segments"][0]), printed("lakhal2018", options.dataset)
    crops = {"mean of ten crops" if streams.center else "centre crop": (streams.tsn, "")}
    if streams.center:
        crops["centre crop"] = (streams.center, "center_")
    own = ablations(data, streams.clips, base, sizes, options.train_workers)
    own += fusion_strategies(data, streams.tsn, base) + single_crops(data, crops, base)
    idt = idt_member(data, options.idt, sizes["gaussians"][0], options.device) if options.idt else None
    own += final_model(data, options.dataset, idt)
    rows = beside([*own, *gains(own, lines)], lines)
    result = {
        **{"data set": options.dataset, "splits": len(splits), "videos": len(records)},
        **{"without features": streams.missing, "not trained": not_trained(out), "weights": streams.weights},
        **{"departures": departures(options, len(records)), "rows": rows},
    }
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
    parser.add_argument("--idt", type=Path, help="store with features of idt, or folder with a scores.csv")
    parser.add_argument("--quick", action="store_true", help="sizes for a test")
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    parser.add_argument("--clip-net", default=CLIP_NET)
    parser.add_argument("--clip-layer")
    parser.add_argument("--tsn", default=TSN)
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
