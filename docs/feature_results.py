"""The tables of docs/results.md on stored features and on speed, from benchmarks/results; `generate.py` writes the page."""

from __future__ import annotations

import csv
import statistics
from typing import Any

from commands import ROOT, made_by, results
from raw_results import percent

from har_pipeline.models.config import SCALED_HEADS, SCIKIT_HEADS
from har_pipeline.models.extractors import find_net


def with_interval(result: dict[str, float]) -> str:
    """Return an accuracy with its 95 % interval."""
    return f"{percent(result['value'])} ({100 * result['low']:.1f} to {100 * result['high']:.1f})"


# Until residual_depth.json and two_stream_ut_interaction.json are recorded again.
SCALED_THEN = "Recorded while every head scaled its features by default."


def heads_block() -> str:
    """Return the table of heads."""
    demo = results("synthetic_demo")["result"]["accuracy"]
    fc6 = results("fc6_heads")["result"]
    rows = [
        (
            "embedded set, 144 videos, 6 people, leave-one-subject-out, chance 16.7 %",
            percent(demo["mean_pool"]),
            percent(demo["lstm"]),
            "synthetic_demo",
        ),
        (
            "VGG16 fc6 of 7 UCF-101 classes, split 1, 260 test videos, scaled; LSTM: mean of 5 seeds",
            percent(fc6["heads"]["mean_pool, C 1"]["test_accuracy"]),
            percent(fc6["heads"]["lstm, defaults but scaled"]["test_accuracy"]),
            "fc6_heads",
        ),
    ]
    for name, net in (("ut_interaction", "EfficientNet-Lite0"), ("ut_interaction_i3d", "I3D, Kinetics-400")):
        accuracy = results(name)["result"]["accuracy"]
        what = f"UT-Interaction set 1, 60 videos, leave-one-sequence-out, {net}"
        rows.append((what, with_interval(accuracy["mean_pool"]), with_interval(accuracy["lstm"]), name))
    return "\n".join(
        [
            "| what | mean pooling + logistic regression | LSTM | file |",
            "|---|---|---|---|",
            *(f"| {what} | {mean_pool} | {lstm} | {name}.json |" for what, mean_pool, lstm, name in rows),
            "",
            "Embedded set: one run of `make demo`; on RGB the LSTM is "
            f"{100 * (demo['lstm'] - demo['mean_pool']):.1f} points above mean pooling, and the LSTM on optical flow",
            f"alone (TSN stacks, a net trained on ImageNet only) scores {percent(demo['lstm_flow'])}, the product of both "
            f"{percent(demo['lstm_product'])}.",
            "95 % intervals in brackets; one UT-Interaction video is 1.7 points.",
            "",
            made_by("synthetic_demo", "ut_interaction", "ut_interaction_i3d"),
            "",
            *_fc6_lines(fc6),
            "",
            made_by("fc6_heads"),
            "",
            *_depth_lines(),
            "",
            made_by("residual_depth"),
            "",
            *_scaling_lines(),
        ]
    )


def _fc6_lines(fc6: dict[str, Any]) -> list[str]:
    """Return the table of all heads on real fc6 features, and what may be claimed of it."""
    heads, claimed, baseline = fc6["heads"], fc6["claimed"], fc6["baseline"]
    ours, simple = (heads[name]["test_accuracy"] for name in (claimed, baseline))
    verdict = "reaches" if ours >= simple else "does not reach"
    rows = []
    for name, row in heads.items():
        spread = "" if row["test_sd"] is None else f" ± {100 * row['test_sd']:.1f}"
        numbers = f"{percent(row['validation_accuracy'])} | {percent(row['test_accuracy'])}{spread}"
        rows.append(f"| {name} | {row.get('options', '')} | {numbers} | fc6_heads.json |")
    return [
        "Every head on those fc6 features (4,096 values, 6 frames per video). Rows with options: 20 epochs, cosine schedule,",
        "128 units, dropout 0.5, input dropout 0.8 unless the row says otherwise. Options, mean pooling's penalty and the head",
        "claimed were chosen by cross-validation over five parts of the training groups; mean ± standard deviation, 5 seeds:",
        "",
        "| head | options chosen | training groups held out | test | file |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"The head selected in this way, `{claimed}`, {verdict} mean pooling on the test videos: {percent(ours)} against "
        f"{percent(simple)} ({baseline.removeprefix('mean_pool, ')}, selected in the same way). One video is 0.4 points.",
    ]


def _depth_lines() -> list[str]:
    """Return the accuracy of deeper stacks with and without skips."""
    points = results("residual_depth")["result"]["points"]
    shown: dict[str, list[str]] = {"res_lstm": [], "stacked_lstm": []}
    for point in points:
        shown[point["values"]["head"]].append(percent(point["accuracy"]))
    return [
        "Embedded set, RGB, 2, 3 and 4 layers on 128 PCA values, leave-one-subject-out, mean of 5 seeds (`har sweep`, "
        "residual_depth.json): with Lakhal's skips",
        f"{', '.join(shown['res_lstm'])}; the same stacks without them {', '.join(shown['stacked_lstm'])}. Over people the "
        f"standard deviation is {100 * max(p['sd'] for p in points):.0f} points. {SCALED_THEN}",
        "Today's default scales the stacks without skips only: add `--set standardise=true` to have both as they were.",
    ]


# Of the same set and head, the last one counts.
SCALING = ("scaling_ut_interaction", "scaling_embedded", "scaling_fc6", "scaling_fc6_vote", "scaling_streams")


def scaling_sets() -> dict[str, dict[str, Any]]:
    """Return what `benchmarks/scaling.py` measured: set -> head -> row."""
    found: dict[str, dict[str, Any]] = {}
    for name in SCALING:
        for one, rows in results(name)["result"]["sets"].items():
            found.setdefault(one, {}).update(rows)
    return found


def of_one_stream() -> dict[str, dict[str, Any]]:
    """Return the sets whose average decides: those of one stream."""
    return {name: rows for name, rows in scaling_sets().items() if "flow" not in name}


def plain_minus_scaled() -> dict[str, float]:
    """Return for each head how much better plain features are, on average over the sets of one stream."""
    found: dict[str, list[float]] = {}
    for rows in of_one_stream().values():
        for head, row in rows.items():
            found.setdefault(head, []).append(row["plain_minus_scaled"])
    return {head: statistics.mean(values) for head, values in found.items()}


def _scaling_lines() -> list[str]:
    """Return the tables of plain against scaled features, of one stream and of two."""
    sets, single, mean = scaling_sets(), of_one_stream(), plain_minus_scaled()
    lines = [
        "Features as they are / scaled by mean and deviation over the training clips (`--standardise`): accuracy in % on",
        "*training* videos that were held out, people or groups apart; each fold's test videos are unread. 64 units, 20",
        "epochs, otherwise the defaults; means of 3 seeds, of one where the head has none or the cell says so. The default of",
        "each head is what is better on average over the sets of one stream. The papers feed plain features, and so",
        "do their pipelines.",
        "Of 60 videos a 95 % interval is about 12 points to either side at 60 %, and 6 at 95 %; of the 144 of the embedded",
        "set 8 at 65 %; of the 678 of UCF-101 it is 1.5: most of these differences are within it, and one bit for each head is",
        f"all that they decide. Over seeds the standard deviation is {_deviation(single)} points (median).",
        "Over the folds every sequence of UT-Interaction, and every person of the embedded set, was held out once, so no",
        "later result there is blind to that bit.",
        "",
        *_scaling_table(single, {head: f"{100 * value:+.1f}" for head, value in mean.items()}),
        "",
        *_scaling_table({name: rows for name, rows in sets.items() if "flow" in name}, {}),
        "",
        "Mid fusion (`--mid-fusion`) scales the sum or product of the streams, never a stream before it; `hidden product` "
        "takes features as they are.",
        "On features reduced by PCA, as Lakhal's stacks read them (`--sets fc6-pca`), scaling was *not measured* in this way.",
    ]
    return [*lines, "", made_by(*SCALING)]


def _scaling_table(sets: dict[str, dict[str, Any]], means: dict[str, str]) -> list[str]:
    """Return a table of heads and sets; means: head -> plain minus scaled, on average."""
    heads = dict.fromkeys(head for rows in sets.values() for head in rows)
    columns = ["head", *sets, *(["plain minus scaled, mean"] if means else []), "default"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for head in heads:
        cells = [_plain_and_scaled(head, rows.get(head)) for rows in sets.values()]
        if means:
            cells.append(means[head])
        default = "scaled" if head.partition(",")[0] in SCALED_HEADS else "plain"
        lines.append(f"| {' | '.join([head, *cells, default])} |")
    return lines


def _plain_and_scaled(head: str, row: dict[str, Any] | None) -> str:
    if row is None:
        return "*not run*"
    seeds = " (1 seed)" if len(row["plain"]["by_seed"]) == 1 and head not in SCIKIT_HEADS else ""
    return f"{100 * row['plain']['accuracy']:.1f} / {100 * row['scaled']['accuracy']:.1f}{seeds}"


def _deviation(sets: dict[str, dict[str, Any]]) -> str:
    """Return the median deviation over the seeds, in points."""
    found = [
        statistics.stdev(row[setting]["by_seed"])
        for rows in sets.values()
        for row in rows.values()
        for setting in ("plain", "scaled")
        if len(row[setting]["by_seed"]) > 1
    ]
    return f"{100 * statistics.median(found):.1f}"


PAPERS = {
    "orozco2020": "Orozco 2020",
    "lakhal2018": "Lakhal 2018",
    "sanchez2020": "Sanchez-Caballero 2020",
    "baccouche2011": "Baccouche 2011",
}
DATASETS = {
    "kth": "KTH, original split",
    "kth1": "KTH, 599 long sequences, mean of five splits",
    "kth2": "KTH, 2,391 single actions, mean of five splits",
    "ucf11": "UCF-11, leave-one-group-out, mean over classes",
    "ucf101": "UCF-101, split 1",
    "hmdb51": "HMDB-51, split 1",
    "ntu": "NTU RGB+D",
    "ntu_xsub": "NTU RGB+D, cross-subject",
    "ntu_xview": "NTU RGB+D, cross-view",
}


def printed_rows() -> list[dict[str, str]]:
    """Return what the papers print."""
    with open(ROOT / "pipelines" / "papers.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, restval=""))


def papers_block() -> str:
    """Return the table of the papers' own systems, one line for each table and data set."""
    own = [row for row in printed_rows() if row["of"] == "this"]
    printed: dict[tuple[str, str, str], list[str]] = {}
    for row in own:
        numbers = printed.setdefault((row["paper"], row["table"], row["dataset"]), [])
        numbers.append(f"{row['row']}: {row['percent']} {row['unit'] or '%'}")
    lines = ["| table | paper's number | ours | on what |", "|---|---|---|---|"]
    for (paper, table, dataset), numbers in printed.items():
        what = "HMDB-51, three splits" if (paper, dataset) == ("orozco2020", "hmdb51") else DATASETS[dataset]
        title = f"Table {table}" if table.isdigit() else table
        lines.append(f"| {PAPERS[paper]}, {title} | {'; '.join(numbers)} | *not run on real data* | {what} |")
    return "\n".join(lines)


# Results files of benchmarks/papers_real.py.
SMALL_REAL = {
    "papers_fc6": "VGG16 fc6 of 7 UCF-101 classes, split 1, 260 test videos",
    "papers_ut_interaction": "UT-Interaction set 1, 60 videos, leave-one-sequence-out",
    "papers_ut_interaction_fusion": "UT-Interaction set 1, 60 videos, leave-one-sequence-out, RGB: I3D, flow: "
    "EfficientNet-Lite0 on stacks of DIS fields, both PCA 64; T = 8, 50 epochs",
}
# Of a file that was recorded with 25 epochs for the others, which is too few.
SHOWN = {"papers_ut_interaction_fusion": ("2",)}
# What a file's experiments read, where it is not one feature set for all.
FEATURES = {
    "2": "TSN's two streams (EfficientNet-Lite0; DIS flow), PCA 256, T = 8",
    "crops": "the same streams, T = 8",
    "": "I3D",
}
# Experiment -> (paper, table in papers.csv, data set there, what the paper says where it prints no number).
EXPERIMENTS = {
    "1": ("lakhal2018", "1", "hmdb51", ""),
    "figure 3a": ("lakhal2018", "", "", "a curve: rising up to h = 1,024"),
    "2": ("lakhal2018", "2", "hmdb51", ""),
    "section 3.3": ("lakhal2018", "", "", "strategy 1: no number"),
    "crops": ("lakhal2018", "", "", "no number: the mean over crops is preferable to each crop"),
    "orozco": ("orozco2020", "", "", "curves: best at n_u = 360 (KTH), 320 (UCF-11), 400 (HMDB-51)"),
}
ORDER = ("1", "figure 3a", "section 3.3", "2", "crops", "orozco")
KINDS = {
    "lstm": "one LSTM: Table 1, figure 3a, section 3.3",
    "stacks": "stacks: figure 3b and c",
    "fusion": "Res-LSTMs: Table 2, crops",
    "orozco": "Orozco 2020's LSTM",
}


def small_block() -> str:
    """Return what of the papers' experiments was run on small real data."""
    lines = ["| experiment | paper | ours, with interval | on what | file |", "|---|---|---|---|---|"]
    depth, epochs = [], []
    for name, what in SMALL_REAL.items():
        result = results(name)["result"]
        rows = [{**row, "table": _own_table(row)} for row in result["lakhal"]] + [
            {"table": "orozco", "row": f"n_u = {row['units']}", "ours": row["accuracy"], **row}
            for row in result["orozco"]
        ]
        for table in SHOWN.get(name, ORDER):
            own = [row for row in rows if row["table"] == table]
            if own:
                ours = "; ".join(f"{row['row']}: {_plain_interval(row)}" for row in own)
                of = FEATURES.get(table, FEATURES[""]) if "feature sets" in result else ""
                on = f"{what}, {of}" if of else what
                lines.append(f"| {_experiment(table)} | {_in_print(table)} | {ours} | {on} | {name}.json |")
        if of_depth := [row for row in rows if row["table"] == "figure 3b-c"]:
            depth += _depth_rows(of_depth, f"{what}, {FEATURES['']}" if "feature sets" in result else what, name)
        epochs += _epochs_rows(result, name)
    depth += [*EPOCHS_HEAD, *epochs, ""]
    return "\n".join([*lines, "", *depth, "In %, with 95 % intervals.", "", made_by(*SMALL_REAL)])


EPOCHS_HEAD = [
    "Epochs: tried on three inner folds of the training groups, as training / held-out accuracy in %, the least of the heads",
    "and their mean; chosen; how many of their training videos the heads of the tables know at last, the least and the mean:",
    "",
    "| heads | epochs: training / held out | chosen | known at last | file |",
    "|---|---|---|---|---|",
]


def _epochs_rows(result: dict[str, Any], name: str) -> list[str]:
    """Return how the number of epochs was chosen for each kind of head, and how far training came with it."""
    folders = {
        "lstm": ("steps/", "units/", "sub_videos/"),
        "stacks": ("depth/",),
        "fusion": ("mid_", "rgb", "flow", "center_"),
        "orozco": ("orozco/",),
    }
    lines = []
    for kind, found in result.get("epochs", {}).items():
        tried = "; ".join(
            f"{row['epochs']}: {100 * row['training, least']:.1f} / {100 * row['held out']:.1f}"
            for row in found["tried"]
        )
        known = [share for point, share in result["learned"].items() if point.startswith(folders[kind])]
        cells = [KINDS[kind], tried, found["chosen"], f"{100 * min(known):.1f}, {100 * sum(known) / len(known):.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {name}.json |")
    return lines


def _own_table(row: dict[str, Any]) -> str:
    """Return the experiment of a row: section 3.3 has two."""
    return "crops" if row["table"] == "section 3.3" and "crop" in row["row"] else str(row["table"])


def _plain_interval(row: dict[str, Any]) -> str:
    return f"{100 * row['ours']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _experiment(table: str) -> str:
    paper = PAPERS[EXPERIMENTS[table][0]]
    if table == "orozco":
        return f"{paper}, figures 4 to 6"
    words = "section 3.3, crops" if table == "crops" else table
    return f"{paper}, Table {table}" if table.isdigit() else f"{paper}, {words}"


def _in_print(table: str) -> str:
    paper, number, dataset, words = EXPERIMENTS[table]
    printed = [
        f"{row['row']}: {row['percent']}"
        for row in printed_rows()
        if (row["paper"], row["table"], row["dataset"]) == (paper, number, dataset)
    ]
    return f"{'; '.join(printed)} ({DATASETS[dataset]})" if printed else words


def _depth_rows(rows: list[dict[str, Any]], what: str, name: str) -> list[str]:
    """Return Figure 3b-c as a table: layers and skips down, PCA dimension across."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        layers, reduced, skips = row["row"].split(", PCA ")[0], *row["row"].split(", PCA ")[1].split(", ")
        cells.setdefault(f"{layers}, {skips}", {})[reduced] = _plain_interval(row)
    sizes = list(next(iter(cells.values())))
    return [
        f"Lakhal 2018, figure 3b and c, on {what}. The paper: curves, with skips above without; two layers are best:",
        "",
        "| " + " | ".join(["", *(f"PCA {size}" for size in sizes), "file"]) + " |",
        "|---" * (len(sizes) + 2) + "|",
        *(
            f"| {line} | " + " | ".join(own[size] for size in sizes) + f" | {name}.json |"
            for line, own in cells.items()
        ),
        "",
    ]


def laptop_block() -> str:
    """Return the table of what a hundred videos cost on a small machine, by a net's default clips."""
    lite0, vgg16, nets = results("extract_efficientnet_lite0"), results("extract_vgg16"), results("nets")
    clips = {(row["net"], row["stream"]): row for row in nets["result"]["clips_per_s"]}
    pairs = results("flow")["result"]["sizes"]["340x256"]["pairs_per_s"]["ours"]
    frames, i3d = (find_net(name).inputs["rgb"].clips for name in ("vgg16", "i3d"))
    assert frames.num_clips is not None
    assert i3d.num_clips is not None
    flow_s = i3d.clip_len / pairs + 1 / max(clips["i3d", "flow"]["fp32"], clips["i3d", "flow"]["default"])
    of_frames, of_clips = f"{frames.num_clips} frames", f"{i3d.num_clips} clips of {i3d.clip_len}"
    rows = [
        (
            "`efficientnet_lite0`, the default",
            of_frames,
            frames.num_clips / lite0["result"]["frames_per_s"]["engine_fp32"],
        ),
        ("`vgg16`", of_frames, frames.num_clips / vgg16["result"]["frames_per_s"]["engine_default"]),
        ("`i3d`", f"{of_clips} frames", i3d.num_clips / clips["i3d", "rgb"]["default"]),
        ("`i3d --stream flow`", f"{of_clips} TV-L1 flow fields", i3d.num_clips * flow_s),
    ]
    best = {"`efficientnet_lite0`, the default": "ut_interaction", "`i3d`": "ut_interaction_i3d"}
    lines = [
        "| net | read of each video (default, spread over it) | "
        f"100 videos ({vgg16['machine'].split(',')[0]}, no GPU) | UT-Interaction |",
        "|---|---|---|---|",
    ]
    for net, what, seconds in rows:
        accuracy = results(best[net])["result"]["accuracy"] if net in best else None
        reached = percent(max(row["value"] for row in accuracy.values())) if accuracy else "not measured"
        minutes = 100 * seconds / 60
        cost = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
        cost = f"{100 * seconds:.0f} s" if minutes < 1 else cost
        lines.append(f"| {net} | {what} | {cost} | {reached} |")
    return "\n".join(
        [
            *lines,
            "",
            "Computed from measured rates: whole extractions of videos of 40 frames in the first two rows, the net and the",
            "flow alone in the last two; VGG16 and I3D in bf16. Decoding the frames between those that are read comes on top",
            "(*not measured*). I3D costs a tenth with `--num-clips 1`, which sees the first 64 frames only. UT-Interaction:",
            "the better of mean pooling and an LSTM on 60 real videos, leave-one-sequence-out, on 20 frames, or 5 clips of",
            "48, spread over each video. Commands: [results.md](docs/results.md), [extractors.md](docs/extractors.md).",
        ]
    )


STREAM_ROWS = ("rgb", "flow", "mid", "sum", "product", "weighted", "oracle")


def with_sd(row: dict[str, Any] | None) -> str:
    """Return an accuracy in percent with its deviation over the seeds."""
    if row is None:
        return ""
    return f"{100 * row['value']:.1f}" + (f" ± {100 * row['sd']:.1f}" if row["sd"] is not None else "")


def streams_block() -> str:
    """Return the table of heads and fusion rules on two streams."""
    result = results("two_stream_ut_interaction")["result"]
    head, rule = result["claimed"]
    claimed = result["heads"][head]
    row = claimed["rows"][rule]
    return "\n".join(
        [
            "| head | RGB | flow | mid fusion | late: sum | product | 1.5 flow : 1 RGB | oracle |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {name} | " + " | ".join(with_sd(content["rows"].get(key)) for key in STREAM_ROWS) + " |"
                for name, content in result["heads"].items()
            ),
            "",
            f"Video accuracy in %, {result['videos']} videos, {result['folds']} folds, mean ± deviation over {result['seeds']} "
            "seeds (one where the head has none); intervals and McNemar's tests are in",
            "`benchmarks/results/two_stream_ut_interaction.json`. The configuration named in advance is Lakhal's: "
            f"{head} on each stream, {rule} of the answers:",
            f"{with_interval(row)}. {claimed['verdict']}",
            "Mid fusion is `--mid-fusion hidden --fusion-op sum`: an encoder for each stream, their hidden states added;",
            f"mean_pool, svm and vote have none to add. {SCALED_THEN}",
            "",
            made_by("two_stream_ut_interaction"),
        ]
    )


def sequences_block() -> str:
    """Return the tables of features learned from scratch and of handcrafted ones."""
    real, made = results("interactions"), results("baccouche2011_embedded")["result"]
    systems = {name: row for name, row in made.items() if isinstance(row, dict)}
    seconds = made["seconds of the nets"]
    vote, lstm = (systems[f"3D-ConvNet + {what}"] for what in ("Voting", "LSTM"))
    gain = 100 * (lstm["mean"] - vote["mean"])
    return "\n".join(
        [
            "UT-Interaction set 1, 60 videos, leave-one-sequence-out (`benchmarks/interactions.py`); one video is 1.7 points:",
            "",
            "| features and head | video accuracy and its interval | file |",
            "|---|---|---|",
            *(
                f"| {row} | {with_interval(result)} | interactions.json |"
                for row, result in real["result"]["accuracy"].items()
            ),
            "",
            made_by("interactions"),
            "",
            f"Baccouche 2011 on the embedded set, {made['videos']} videos of {made['people']} people, three of whom test each "
            "of five random splits",
            "(`pipelines/baccouche2011.py`), chance 16.7 %:",
            "",
            "| system | accuracy of the splits | mean ± standard deviation | file |",
            "|---|---|---|---|",
            *(
                f"| {name} | {', '.join(percent(one) for one in row['splits'])} | {percent(row['mean'])} ± "
                f"{100 * row['sd']:.1f} | baccouche2011_embedded.json |"
                for name, row in systems.items()
            ),
            "",
            f"The LSTM is {abs(gain):.1f} points {'above' if gain > 0 else 'below'} the majority vote (on KTH, in the paper: "
            f"3.35 above). A net took {min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes,",
            "with other work on the machine.",
            "",
            made_by("baccouche2011_embedded"),
        ]
    )
