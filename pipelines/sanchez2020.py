"""ConvLSTMs on depth video: the tables and curves of Sanchez-Caballero 2020 on your copy of NTU RGB+D.

    python pipelines/sanchez2020.py /data/nturgb+d_depth_masked --out out/ntu
    python pipelines/sanchez2020.py /data/nturgb+d_depth_masked --out out/quick --epochs 5 --width 0.25 --batch-size 24

Frames of 64x64 px, prepared once, with the lengths of Figure 9; the range test of Figure 5; both networks on their
published schedules, cross-subject (CS) and cross-view (CV): Tables 3 to 5, Figures 6, 7, 10 and 11. The paper seems to
choose its epoch by the test videos; here validation videos come from the training subjects (docs/raw-video.md has the
other differences). If the network, training or data set is not as published, the report lists how, and calls every number
of ours "reduced". Run again to continue after an interruption: finished runs are kept, and a stopped training resumes at
its epoch.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from har_pipeline import (
    BIN_EDGES,
    FeatureStore,
    FeatureStreams,
    Measures,
    PlannedRun,
    RawOptions,
    Section,
    Split,
    VideoPrecision,
    VideoRecord,
    VideoTrainConfig,
    build_manifest,
    config_notes,
    errors_as_lines,
    evaluate,
    extremes,
    frame_shape,
    load_features,
    make_splits,
    manifest_sha256,
    range_test,
    read_manifest,
    run_jobs,
    save_length_histogram,
    split_classes,
    store_raw_frames,
    time_videos,
    write_json,
    write_manifest,
    write_page,
    write_range,
)

HERE = Path(__file__).parent
# The paper's name of a network: ours, and its seconds per video (Table 5: GTX 1080, 10,000 videos).
NETWORKS: dict[str, tuple[Any, float]] = {
    "Stateless ConvLSTM": ("convlstm-stateless", 0.21),
    "Stateful ConvLSTM": ("convlstm-stateful", 0.89),
}
PROTOCOLS = {"xsub": "CS", "xview": "CV"}
VIDEOS = 56_880
Row = dict[str, Any]


class Data(NamedTuple):
    """Videos, their frames, the split of each protocol, and why some videos have no frames."""

    records: Sequence[VideoRecord]
    store: FeatureStore
    frames: str
    splits: dict[str, Split]
    missing: dict[str, str]


def read_table(name: str) -> list[dict[str, str]]:
    with open(HERE / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def prepare(options: argparse.Namespace) -> Data:
    """Name the 60 actions, prepare all frames, save Figure 9."""
    actions = {row["label"]: row["action"] for row in read_table("ntu60.csv")}
    built = build_manifest("ntu", options.root)
    named = [dataclasses.replace(r, label=actions[r.label]) for r in built if r.label in actions]
    write_manifest(options.out / "manifest.csv", named, root=options.root)
    records = read_manifest(options.out / "manifest.csv", check_files=False)
    sha256 = manifest_sha256(options.out / "manifest.csv")
    splits = {p: make_splits(records, p, val_fraction=0.1, manifest_sha256=sha256)[0] for p in PROTOCOLS}
    store = FeatureStore(options.out / "frames.zarr", create=True)
    made = store_raw_frames(records, store, RawOptions(stream="depth", workers=options.workers))
    frames = store.num_clips(made.feature_set)
    lengths: dict[str, list[int]] = {action: [] for action in actions.values()}
    for record in records:
        lengths[record.label] += [frames[record.video_id]] if record.video_id in frames else []
    save_length_histogram(options.out / "lengths.png", lengths, BIN_EDGES)
    return Data(records, store, made.feature_set, splits, {**made.failed_before, **made.failed})


def find_rates(options: argparse.Namespace, data: Data, config: VideoTrainConfig) -> Row:
    """Figure 5: the range test of the stateless network, cross-view; it is shown, the rates trained with are the paper's."""
    if not (options.out / "lr_range.png").exists():
        split = data.splits["xview"]
        classes, streams = split_classes(data.records, split), FeatureStreams(data.store, [data.frames])
        given: Row = {"allow_missing": True, "spill_dir": options.out}
        table = load_features(streams, data.records, split.train, classes, **given)
        shape, rows = frame_shape(data.store.spec(data.frames)), table.rows_of(split.train)
        write_range(range_test(table, shape, rows, len(classes), config, steps=options.range_steps), options.out)
    found = json.loads((options.out / "lr_range.json").read_text(encoding="utf-8"))
    return {"low": found["low"], "high": found["high"], "batches": len(found["rates"])}


def train(options: argparse.Namespace, data: Data, config: VideoTrainConfig) -> dict[str, Path]:
    """Train one network on both protocols, the frames being read once; return the run folder of each."""
    folders = {protocol: options.out / f"{config.model}_{protocol}" for protocol in PROTOCOLS}
    runs = [PlannedRun(data.splits[protocol], config.seed, folder) for protocol, folder in folders.items()]
    run_jobs(
        data.store,
        [data.frames],
        data.records,
        runs,
        config,
        allow_missing=True,
        on_epoch=lambda run, epoch: print(
            f"{run.folder.name}: epoch {epoch.epoch}, loss {epoch.train_loss:.3f}, {epoch.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        ),
    )
    return folders


def table3(name: str, measures: Measures, ours: str) -> list[Row]:
    """Table 3: the ten classes recognised best and worst, each with its commonest error, and the mean of each list."""
    paper = {}
    for row in read_table("papers.csv"):
        if row["paper"] == "sanchez2020" and row["table"] == "3":
            key, _, words = row["row"].partition(": ")
            paper[key] = f"{words} ({row['percent']}%)" if words else f"{row['percent']}%"
    found = extremes(measures)
    assert found is not None
    rows = []
    for place, pair in enumerate(zip(found.best, found.worst, strict=True), start=1):
        best, worst = (f"({one.accuracy.value:.2%})" if one.accuracy else "" for one in pair)
        wrong = f" -> {pair[1].confused_with}" if pair[1].confused_with else ""
        rows.append(
            {
                "place": place,
                f"best, {ours}": f"{pair[0].label} {best}",
                "best, paper": paper.get(f"{name}, best {place}", ""),
                f"worst, {ours}": f"{pair[1].label}{wrong} {worst}",
                "worst, paper": paper.get(f"{name}, worst {place}", ""),
            }
        )
    means = (f"{found.best_mean:.2%}", paper[f"{name}, ten best"], f"{found.worst_mean:.2%}")
    which = f"mean of {len(rows)}" if len(rows) == 10 else f"mean: ours of {len(rows)}, the paper's of 10"
    cells = (which, *means, paper[f"{name}, ten worst"])
    return [*rows, dict(zip(rows[0], cells, strict=True))]


def table4(found: dict[tuple[str, str], Measures], ours: str) -> list[Row]:
    """Table 4: total accuracies, ours with 95 % intervals, and the methods that the paper compares with."""
    rows: dict[str, Row] = {}
    for cell in read_table("papers.csv"):
        if (cell["paper"], cell["table"]) == ("sanchez2020", "4"):
            empty = {f"{short}, {who}": "" for short in PROTOCOLS.values() for who in ("paper", ours)}
            row = rows.setdefault(cell["row"], {"method": cell["row"], **empty})
            row[f"{PROTOCOLS[cell['dataset'].removeprefix('ntu_')]}, paper"] = f"{cell['percent']} %"
    for (name, protocol), measures in found.items():
        rows[name][f"{PROTOCOLS[protocol]}, {ours}"] = measures.top1.describe()
    return list(rows.values())


def table5(options: argparse.Namespace, data: Data, folders: dict[str, dict[str, Path]], ours: str) -> list[Row]:
    """Table 5: seconds per video, one at a time, on the cross-subject test videos."""
    rows = []
    for name, (_, paper) in NETWORKS.items():
        folder = folders[name]["xsub"]
        if not (folder / "timing.json").exists():
            measured = time_videos(folder, data.records, videos=options.time_videos, device=options.device)
            write_json(folder / "timing.json", measured.to_dict())
        times = json.loads((folder / "timing.json").read_text(encoding="utf-8"))
        parts = {f"{ours}, from files": times["whole_s"], f"{ours}, network alone": times["network_s"]}
        about = {key: times[key] for key in ("videos", "device", "precision")}
        rows.append({"method": name, "paper": paper, **{key: f"{s:.3f}" for key, s in parts.items()}, **about})
    return rows


def departures(options: argparse.Namespace, data: Data, configs: dict[str, VideoTrainConfig]) -> list[str]:
    """Say how networks, training and videos differ from the published ones."""
    notes = [f"{name}: {note}" for name, config in configs.items() for note in config_notes(config)]
    for name, config in configs.items():
        published = VideoTrainConfig(model=config.model).videos_per_batch
        if config.videos_per_batch != published:
            notes.append(f"{name}: {config.videos_per_batch} videos in a batch; published are {published}")
    videos = len(data.records) - len(data.missing)
    return notes + ([f"{videos:,} videos; the paper has {VIDEOS:,}"] if videos != VIDEOS else [])


def report(out: Path, result: Row, folders: dict[str, dict[str, Path]]) -> None:
    """Write report.html."""
    low, high = result["range test"]["low"], result["range test"]["high"]
    bounds = "No rate let the loss fall clearly." if low is None else f"The loss falls from {low:.1e} to {high:.1e}."
    curves = [runs[protocol] / "training.png" for runs in folders.values() for protocol in PROTOCOLS]
    texts = [f"{n.split()[0]}, {short}" for n in NETWORKS for short in PROTOCOLS.values()]
    which = f"Top to bottom: {'; '.join(texts)}. Validation videos are of training subjects."
    curves = [curve for curve in curves if curve.exists()]  # one epoch makes no curve
    sections = [
        Section(title="Table 4: accuracy", rows=result["table 4"]),
        *(Section(title=f"Table 3: {name}, CS", rows=rows) for name, rows in result["table 3"].items()),
        Section(title="Table 5: seconds per video", rows=result["table 5"]),
        Section(title="Figures 6, 7, 10 and 11: training", text=which, pictures=curves),
        Section(title="Figure 5: learning-rate range test", text=bounds, pictures=[out / "lr_range.png"]),
        Section(title="Figure 9: frames per video", pictures=[out / "lengths.png"]),
    ]
    warnings = [f"Reduced: {note}." for note in result["differs"]]
    warnings += [f"{len(result['without frames'])} videos have no frames."] if result["without frames"] else []
    lead = str(__doc__).splitlines()[0]
    write_page(out / "report.html", "Sanchez-Caballero 2020 on NTU RGB+D", lead, sections, warnings)


def run(options: argparse.Namespace) -> Row:
    options.out.mkdir(parents=True, exist_ok=True)
    data = prepare(options)
    given = {key: getattr(options, key) for key in ("epochs", "width", "batch_size", "precision", "device")}
    configs = {name: VideoTrainConfig(model=model, **given) for name, (model, _) in NETWORKS.items()}
    rates = find_rates(options, data, configs["Stateless ConvLSTM"])
    folders = {name: train(options, data, config) for name, config in configs.items()}
    evaluated = {(name, p): evaluate(folder).measures for name, runs in folders.items() for p, folder in runs.items()}
    found = {key: measures for key, measures in evaluated.items() if measures is not None}
    differs = departures(options, data, configs)
    ours = "ours, reduced" if differs else "ours"
    result = {
        "videos": len(data.records),
        "without frames": data.missing,
        "differs": differs,
        "range test": rates,
        "table 3": {name: table3(name, found[name, "xsub"], ours) for name in NETWORKS},
        "table 4": table4(found, ours),
        "table 5": table5(options, data, folders, ours),
    }
    write_json(options.out / "results.json", result)
    report(options.out, result, folders)
    return result


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with the depth folders S001C001P001R001A001 ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="of both networks, through the whole schedules; published 75 and 25")
    parser.add_argument("--width", type=float, default=1.0, help="times the paper's filters in every layer")
    parser.add_argument("--batch-size", type=int, help="videos; published 12 stateless, 6 stateful")
    parser.add_argument("--precision", choices=get_args(VideoPrecision), default="auto", help="auto: bf16 where it is")
    parser.add_argument("--range-steps", type=int, default=200, help="batches of the range test")
    parser.add_argument("--time-videos", type=int, default=10_000, help="for Table 5; the paper's 10,000")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="processes that read files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with errors_as_lines():
        print(json.dumps(run(parse()), indent=2))
