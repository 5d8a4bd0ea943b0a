"""ConvLSTMs on depth video: the tables and figures of Sanchez-Caballero 2020 on your copy of NTU RGB+D.

    python pipelines/sanchez2020.py /data/nturgb+d_depth_masked --out out/ntu
    python pipelines/sanchez2020.py /data/nturgb+d_depth_masked --out out/quick --epochs 5 3 --width 0.25 --batch-size 24
    python pipelines/sanchez2020.py /data/UTD-MHAD/Depth --dataset utd_mhad --out out/utd

Frames of 64x64 px, prepared once; a frame and its crop (Figure 3), the videos' lengths (Figures 8 and 9), the range test
(Figure 5); both networks on their published schedules, cross-subject (CS) and cross-view (CV): Tables 3 to 5, Figures 6, 7,
10 and 11. UTD-MHAD has one protocol: odd subjects train, even ones test.

As published, training is in full precision and on all training subjects. The paper chooses the stateless network's epoch by
validation videos that it does not name; they seem to be its test videos. Here no test video chooses anything: without
`--val-fraction` the last epoch counts. docs/raw-video.md says what the paper leaves open and how it is filled here. If the
network, training or data set is not as published, the report lists how, and calls every number of ours "reduced". Run again
to continue after an interruption: finished runs are kept, and a stopped training resumes at its epoch.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from har_pipeline import (
    BIN_EDGES,
    FeatureStore,
    FeatureStreams,
    Gates,
    Measures,
    PlannedRun,
    RawOptions,
    Section,
    Split,
    TrainConfig,
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
    motion_features,
    movement_box,
    range_test,
    read_depth,
    read_manifest,
    run_jobs,
    save_depth_crop,
    save_length_histogram,
    save_lengths,
    split_classes,
    store_raw_frames,
    time_videos,
    write_json,
    write_manifest,
    write_page,
    write_range,
)

HERE = Path(__file__).parent
NETWORKS: dict[str, Any] = {"Stateless ConvLSTM": "convlstm-stateless", "Stateful ConvLSTM": "convlstm-stateful"}
PAPER_PROTOCOLS = {"xsub": "CS", "xview": "CV"}
# Training and test videos of each (section 5), 56,880 in all, of 20 subjects each in CS (section 4).
PAPER_VIDEOS = {"xsub": (40_320, 16_560), "xview": (37_920, 18_960)}
PAPER_FRAMES = "the paper's have 26 to 300, most of them 44 to 90"
TIMED_VIDEOS = 10_000
Row = dict[str, Any]
# The run folder of each protocol.
Runs = dict[str, Path]
BASELINE = "motion maps + ridge classifier, a baseline of ours"


class DataSet(NamedTuple):
    """A data set of depth videos; Tables 3 and 5 and Figure 8 are of its first protocol, Figure 5 is of its last one."""

    title: str
    protocols: dict[str, str]
    # The file with the names of its labels; "": they are names.
    actions: str = ""


PUBLISHED = DataSet("NTU RGB+D", PAPER_PROTOCOLS, "ntu60.csv")
DATASETS = {"ntu": PUBLISHED, "utd_mhad": DataSet("UTD-MHAD", {"column": "odd subjects train, even ones test"})}


class Data(NamedTuple):
    """Videos, their frames, the split of each protocol, and why some videos have no frames."""

    records: Sequence[VideoRecord]
    store: FeatureStore
    frames: str
    splits: dict[str, Split]
    missing: dict[str, str]


def read_table(name: str) -> list[dict[str, str]]:
    with open(HERE / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, restval=""))


def paper_rows(table: str) -> list[dict[str, str]]:
    return [row for row in read_table("papers.csv") if (row["paper"], row["table"]) == ("sanchez2020", table)]


def prepare(options: argparse.Namespace) -> Data:
    """Name the actions and prepare all frames."""
    data_set = DATASETS[options.dataset]
    records = build_manifest(options.dataset, options.root)
    if data_set.actions:
        actions = {row["label"]: row["action"] for row in read_table(data_set.actions)}
        records = [dataclasses.replace(r, label=actions[r.label]) for r in records if r.label in actions]
    write_manifest(options.out / "manifest.csv", records, root=options.root)
    records = read_manifest(options.out / "manifest.csv", check_files=False)
    sha256 = manifest_sha256(options.out / "manifest.csv")
    splits = {
        protocol: make_splits(records, protocol, val_fraction=options.val_fraction, manifest_sha256=sha256)[0]
        for protocol in data_set.protocols
    }
    store = FeatureStore(options.out / "frames.zarr", create=True)
    made = store_raw_frames(records, store, RawOptions(stream="depth", workers=options.workers))
    return Data(records, store, made.feature_set, splits, {**made.failed_before, **made.failed})


def show_videos(options: argparse.Namespace, data: Data) -> dict[str, str]:
    """Save Figure 3 of one video, Figure 8 of the training videos and Figure 9 of all; return what stands beside them."""
    frames = data.store.num_clips(data.frames)
    shown = next(record for record in data.records if record.video_id in frames)
    assert shown.depth_path is not None
    depth, size = read_depth(shown.depth_path).frames, frame_shape(data.store.spec(data.frames))[1]
    middle, box = len(depth) // 2, movement_box(depth)
    assert box is not None
    crop = data.store.read(data.frames, shown.video_id).features[middle].reshape(size, size)
    save_depth_crop(options.out / "crop.png", depth[middle], box, crop)
    lengths: dict[str, list[int]] = {record.label: [] for record in data.records}
    for record in data.records:
        lengths[record.label] += [frames[record.video_id]] if record.video_id in frames else []
    save_length_histogram(options.out / "lengths_by_class.png", lengths, BIN_EDGES)
    protocol, split = next(iter(data.splits.items()))
    counts = [frames[video_id] for video_id in (*split.train, *split.val) if video_id in frames]
    save_lengths(options.out / "lengths.png", counts, BIN_EDGES)
    most = sum(44 <= count <= 90 for count in counts) / len(counts)
    return {
        "3": f"{shown.video_id}, {shown.label}, frame {middle + 1} of {len(depth)}: what the sensor measured, with the "
        "movement area of the whole video, and what the networks see. The paper shows the original frame above its masked "
        "version; the files have the masked one alone.",
        "8": f"The training videos of the protocol {protocol} have {min(counts)} to {max(counts)} frames, {most:.0%} of them "
        f"44 to 90; {PAPER_FRAMES}. Lines: the bin edges of Figure 9.",
        "9": "All videos, by class. A stateful network sees of each video as many frames as its bin's left edge says.",
    }


def find_rates(options: argparse.Namespace, data: Data, config: VideoTrainConfig) -> Row:
    """Figure 5: the range test of the stateless network; it is shown, the rates trained with are the paper's."""
    if not (options.out / "lr_range.png").exists():
        split = list(data.splits.values())[-1]
        classes, streams = split_classes(data.records, split), FeatureStreams(data.store, [data.frames])
        given: Row = {"allow_missing": True, "spill_dir": options.out}
        table = load_features(streams, data.records, split.train, classes, **given)
        shape, rows = frame_shape(data.store.spec(data.frames)), table.rows_of(split.train)
        write_range(range_test(table, shape, rows, len(classes), config, steps=options.range_steps), options.out)
    found = json.loads((options.out / "lr_range.json").read_text(encoding="utf-8"))
    return {"low": found["low"], "high": found["high"], "batches": len(found["rates"])}


def train(
    options: argparse.Namespace, data: Data, name: str, features: str, config: TrainConfig | VideoTrainConfig
) -> Runs:
    """Train on every protocol, what is stored being read once; return the run folder of each."""
    folders = {protocol: options.out / f"{name}_{protocol}" for protocol in data.splits}
    runs = [PlannedRun(data.splits[protocol], config.seed, folder) for protocol, folder in folders.items()]
    run_jobs(
        data.store,
        [features],
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


def train_baseline(options: argparse.Namespace, data: Data) -> Runs:
    """Train a ridge classifier on where and how much the frames change, without a network; return its run folders."""
    maps = motion_features(data.store, data.frames).feature_set
    config = TrainConfig(head="ridge", logistic_c=50, standardise=False, device=options.device)
    return train(options, data, "motion_maps", maps, config)


def table3(name: str, measures: Measures, ours: str, on: str) -> list[Row]:
    """Table 3: the ten classes recognised best and worst, each with its commonest error, and the mean of each list."""
    paper = {}
    for row in paper_rows("3"):
        key, _, words = row["row"].partition(": ")
        percent = f"{row['percent']}%, {row['note']}" if row["note"] else f"{row['percent']}%"
        paper[key] = f"{words} ({percent})" if words else percent
    found = extremes(measures)
    assert found is not None
    rows = []
    for place, pair in enumerate(zip(found.best, found.worst, strict=True), start=1):
        best, worst = (
            f"({one.accuracy.value:.2%}, {one.accuracy.low:.1%} to {one.accuracy.high:.1%})" if one.accuracy else ""
            for one in pair
        )
        wrong = f" -> {pair[1].confused_with}" if pair[1].confused_with else ""
        rows.append(
            {
                "place": place,
                f"best, {ours}": f"{pair[0].label} {best}",
                f"best, paper{on}": paper.get(f"{name}, best {place}", ""),
                f"worst, {ours}": f"{pair[1].label}{wrong} {worst}",
                f"worst, paper{on}": paper.get(f"{name}, worst {place}", ""),
            }
        )
    means = (f"{found.best_mean:.2%}", paper[f"{name}, ten best"], f"{found.worst_mean:.2%}")
    which = f"mean of {len(rows)}" if len(rows) == 10 else f"mean: ours of {len(rows)}, the paper's of 10"
    cells = (which, *means, paper[f"{name}, ten worst"])
    return [*rows, dict(zip(rows[0], cells, strict=True))]


def table4(found: dict[tuple[str, str], Measures], protocols: dict[str, str], ours: str, on: str) -> list[Row]:
    """Table 4: total accuracies, ours with 95 % intervals, and the methods that the paper compares with."""
    columns = [f"{short}, paper{on}" for short in PAPER_PROTOCOLS.values()]
    columns += [f"{short}, {ours}" for short in protocols.values()]
    rows: dict[str, Row] = {}
    for cell in paper_rows("4"):
        row = rows.setdefault(cell["row"], {"method": cell["row"], **dict.fromkeys(columns, "")})
        row[f"{PAPER_PROTOCOLS[cell['dataset'].removeprefix('ntu_')]}, paper{on}"] = f"{cell['percent']} %"
    for (name, protocol), measures in found.items():
        row = rows.setdefault(name, {"method": name, **dict.fromkeys(columns, "")})
        row[f"{protocols[protocol]}, {ours}"] = measures.top1.describe()
    return list(rows.values())


def table5(options: argparse.Namespace, data: Data, folders: dict[str, Runs], ours: str) -> list[Row]:
    """Table 5: seconds per video, one at a time, on test videos of the first protocol, and the methods compared with."""
    rows = []
    for cell in paper_rows("5"):
        row = {"method": cell["row"], "paper": cell["percent"]}
        row |= dict.fromkeys((f"{ours}, from files", f"{ours}, network alone", "videos", "device", "precision"), "")
        if cell["row"] in folders:
            folder = next(iter(folders[cell["row"]].values()))
            if not (folder / "timing.json").exists():
                measured = time_videos(folder, data.records, videos=options.time_videos, device=options.device)
                write_json(folder / "timing.json", measured.to_dict())
            times = json.loads((folder / "timing.json").read_text(encoding="utf-8"))
            row |= {f"{ours}, from files": f"{times['whole_s']:.3f}"}
            row |= {f"{ours}, network alone": f"{times['network_s']:.3f}"}
            row |= {key: times[key] for key in ("videos", "device", "precision")}
        rows.append(row)
    return rows


def gains(found: dict[tuple[str, str], Measures], protocol: str, ours: str) -> list[Row]:
    """Section 5.1: what the stateful network gains over the stateless one, in points."""
    stateless, stateful = (extremes(found[name, protocol]) for name in NETWORKS)
    assert stateless is not None
    assert stateful is not None
    own = {
        "stateful - stateless, ten best": stateful.best_mean - stateless.best_mean,
        "stateful - stateless, ten worst": stateful.worst_mean - stateless.worst_mean,
    }
    return [
        {
            "gain": cell["row"],
            "paper": f"{cell['note'].split(';')[0]} {cell['percent']} {cell['unit']}",
            ours: f"{100 * own[cell['row']]:+.2f} points" if cell["row"] in own else "",
            "note": cell["note"].partition("; ")[2],
        }
        for cell in paper_rows("text")
    ]


def has_background(record: VideoRecord) -> bool:
    """Say whether a folder holds NTU RGB+D's full depth, `Depth-*.png`, instead of the masked `MDepth-*.png`."""
    folder = record.depth_path
    if folder is None or not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return next((entry.name for entry in entries if entry.name.endswith(".png")), "").startswith("Depth")


def departures(options: argparse.Namespace, data: Data, configs: dict[str, VideoTrainConfig]) -> list[str]:
    """Say how networks, training and videos differ from the published ones."""
    notes = [f"{name}: {note}" for name, config in configs.items() for note in config_notes(config)]
    if options.val_fraction:
        notes.append(
            f"{options.val_fraction:.0%} of the training videos, of subjects of their own, are held out and choose the epoch; "
            "the paper trains on all of its training videos"
        )
    if options.time_videos != TIMED_VIDEOS:
        notes.append(f"Table 5: {options.time_videos:,} videos are timed; the paper times {TIMED_VIDEOS:,}")
    if DATASETS[options.dataset] is not PUBLISHED:
        notes.append(f"{DATASETS[options.dataset].title} instead of {PUBLISHED.title}, other videos and classes")
    if full := sum(has_background(record) for record in data.records):
        notes.append(
            f"the background is not masked in {full:,} of {len(data.records):,} videos; the paper's frames are masked"
        )
    for protocol, split in data.splits.items():
        parts = ([*split.train, *split.val], split.test)
        train, test = (sum(video_id not in data.missing for video_id in part) for part in parts)
        if (train, test) != PAPER_VIDEOS.get(protocol):
            paper = PAPER_VIDEOS.get(protocol, PAPER_VIDEOS["xsub"])
            notes.append(
                f"{protocol}: {train:,} training and {test:,} test videos; the paper has {paper[0]:,} and {paper[1]:,}"
            )
    return notes


def epoch_choice(options: argparse.Namespace, configs: dict[str, VideoTrainConfig]) -> str:
    """Say which epoch's network is tested, for readers of Table 4."""
    stateless = configs["Stateless ConvLSTM"]
    main, patience = stateless.main_epochs, stateless.patience
    paper = (
        "The paper keeps the stateless network's best epoch by accuracy on validation videos, which seem to be its test "
        "videos; of the stateful one it does not say."
    )
    if options.val_fraction:
        return (
            f"{paper} Here validation videos are of training subjects; test videos choose nothing. The stateless network goes "
            f"on from the best of its first {main} epochs, and its rate is halved after {patience} epochs without better "
            "validation accuracy."
        )
    return (
        f"{paper} Here no video chooses anything: the network of the last epoch is tested. The stateless network goes on from "
        f"epoch {main}, and its rate is halved after {patience} epochs without better training accuracy."
    )


def report(options: argparse.Namespace, result: Row, folders: dict[str, Runs], texts: dict[str, str]) -> None:
    """Write report.html."""
    out, data_set = options.out, DATASETS[options.dataset]
    low, high = result["range test"]["low"], result["range test"]["high"]
    bounds = "No rate let the loss fall clearly." if low is None else f"The loss falls from {low:.1e} to {high:.1e}."
    bounds += (
        " The paper reads 1e-05 to nearly 1e-03 from its own, and trains between 8e-05 and 9.8e-04, as we do here."
        " It is of the stateless network, batches of 12, CV."
    )
    shorts = list(data_set.protocols.values())
    first, last = shorts[0], shorts[-1]
    curves = [run / "training.png" for runs in folders.values() for run in runs.values()]
    which = "; ".join(f"{name.split()[0]}, {short}" for name in NETWORKS for short in data_set.protocols.values())
    drawn = (
        f"Top to bottom: {which}. The paper draws loss and accuracy in figures of their own, each with the learning rate. "
        "Its validation curves are of videos that it does not name; "
    )
    drawn += "ours are of training subjects." if options.val_fraction else "without --val-fraction there are none here."
    timed = (
        "One video at a time. The paper's own rows and that of multi-view dynamic images are of NTU RGB+D on a GTX 1080 "
        f"(random videos; ours are test videos, {first}), the other rows of another data set and machine."
    )
    curves = [curve for curve in curves if curve.exists()]  # one epoch makes no curve
    sections = [
        Section(
            title="Table 4: accuracy", text=f"95 % intervals in brackets. {result['epoch']}", rows=result["table 4"]
        ),
        *(Section(title=f"Table 3: {name}, {first}", rows=rows) for name, rows in result["table 3"].items()),
        Section(title=f"Section 5 in words, {first}", rows=result["gains"]),
        Section(title="Table 5: seconds per video", text=timed, rows=result["table 5"]),
        Section(title="Figures 6, 7, 10 and 11: training", text=drawn, pictures=curves),
        Section(title=f"Figure 5: learning-rate range test, {last}", text=bounds, pictures=[out / "lr_range.png"]),
        Section(title="Figure 3: a frame and its crop", text=texts["3"], pictures=[out / "crop.png"]),
        Section(title="Figure 8: frames per video", text=texts["8"], pictures=[out / "lengths.png"]),
        Section(title="Figure 9: frames per video and class", text=texts["9"], pictures=[out / "lengths_by_class.png"]),
    ]
    warnings = [f"Reduced: {note}." for note in result["differs"]]
    warnings += [f"{len(result['without frames'])} videos have no frames."] if result["without frames"] else []
    gates = "hard sigmoids" if options.gates == "hard-sigmoid" else "sigmoids"
    lead = (
        f"ConvLSTMs on depth video. The gates are {gates}: the paper does not say which it has. What else it leaves open is in "
        "docs/raw-video.md."
    )
    write_page(out / "report.html", f"Sanchez-Caballero 2020 on {data_set.title}", lead, sections, warnings)


def make_configs(options: argparse.Namespace) -> dict[str, VideoTrainConfig]:
    """Return the training of each network."""
    same = {key: getattr(options, key) for key in ("width", "gates", "batch_size", "precision", "device")}
    epochs = options.epochs or (None, None)
    return {
        name: VideoTrainConfig(model=model, epochs=number, **same)
        for (name, model), number in zip(NETWORKS.items(), epochs, strict=True)
    }


def run(options: argparse.Namespace) -> Row:
    options.out.mkdir(parents=True, exist_ok=True)
    data_set, configs = DATASETS[options.dataset], make_configs(options)
    data = prepare(options)
    texts = show_videos(options, data)
    rates = find_rates(options, data, configs["Stateless ConvLSTM"])
    folders = {name: train(options, data, config.model, data.frames, config) for name, config in configs.items()}
    trained = {**folders, BASELINE: train_baseline(options, data)}
    evaluated = {(name, p): evaluate(folder).measures for name, runs in trained.items() for p, folder in runs.items()}
    found = {key: measures for key, measures in evaluated.items() if measures is not None}
    differs = departures(options, data, configs)
    ours = "ours, reduced" if differs else "ours"
    on = "" if data_set is PUBLISHED else f" ({PUBLISHED.title})"
    first = next(iter(data_set.protocols))
    result = {
        "videos": len(data.records),
        "without frames": data.missing,
        "differs": differs,
        "epoch": epoch_choice(options, configs),
        "range test": rates,
        "table 3": {name: table3(name, found[name, first], ours, on) for name in NETWORKS},
        "table 4": table4(found, data_set.protocols, ours, on),
        "gains": gains(found, first, ours),
        "table 5": table5(options, data, folders, ours),
    }
    write_json(options.out / "results.json", result)
    report(options, result, folders, texts)
    return result


def share(text: str) -> float:
    """Return a share from 0 to 0.9."""
    if not 0 <= float(text) <= 0.9:
        raise argparse.ArgumentTypeError(f"must be 0 to 0.9, not {text}")
    return float(text)


def at_least(least: int) -> Callable[[str], int]:
    """Return a function that reads a whole number."""

    def read(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return int(text)

    read.__name__ = "whole number"  # as argparse calls what it cannot read
    return read


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "root", type=Path, help="folder with the depth folders S001C001P001R001A001 ..., or a1_s1_t1_depth.mat"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dataset", choices=DATASETS, default="ntu")
    parser.add_argument(
        "--epochs",
        type=int,
        nargs=2,
        metavar=("STATELESS", "STATEFUL"),
        help="through the whole schedules; published 75 25",
    )
    parser.add_argument("--width", type=float, default=1.0, help="times the paper's filters in every layer")
    parser.add_argument("--gates", choices=get_args(Gates), default="sigmoid", help="the paper does not say which")
    parser.add_argument("--batch-size", type=int, help="videos; published 12 stateless, 6 stateful")
    parser.add_argument(
        "--val-fraction", type=share, default=0.0, help="of the training subjects, held out to choose the epoch"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--range-steps", type=at_least(2), default=200, help="batches of the range test")
    parser.add_argument("--time-videos", type=at_least(1), default=TIMED_VIDEOS, help="for Table 5; the paper's 10,000")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=at_least(1), help="processes that read files")
    options = parser.parse_args(arguments)
    try:
        make_configs(options)
    except ValueError as error:
        parser.error(str(error))
    return options


if __name__ == "__main__":
    with errors_as_lines():
        print(json.dumps(run(parse()), indent=2))
