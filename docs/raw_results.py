"""Results of networks on raw video, from benchmarks/results; `generate.py` writes them."""

from __future__ import annotations

from typing import Any

from commands import made_by, results

# What each file of `benchmarks/raw_video.py` holds.
RAW_VIDEO = {
    "utd_mhad": "UTD-MHAD depth, subjects 1 and 3 train, 2 and 4 test: 216 videos, 27 actions",
    "utd_mhad_narrow": "the same",
    "utd_mhad_motion": "the same, [options of ours](raw-video.md#what-carries-over-to-other-people)",
    "utd_mhad_loso": "UTD-MHAD depth, subjects 1 to 4, leave-one-subject-out, 431 videos pooled",
    "synthetic_depth": "embedded depth set, 72 videos of six unseen people, chance 16.7 %",
    "decided_early": "the same, the action decided in the first third only",
}
# The baselines of those that were recorded before there was one of motion.
BASELINES = {
    "utd_mhad": "utd_mhad_baselines",
    "utd_mhad_loso": "utd_mhad_loso_baselines",
    "synthetic_depth": "synthetic_depth_baselines",
    "decided_early": "decided_early_baselines",
}
# The same networks beside them, another training of the stateful one.
STATEFUL_ALONE = {
    "decided_early_video": "the same, `--state-gradient video`",
    "decided_early_memory": "the same, `--state-gradient video --memory-frames 208 --augment 0.2`",
    "decided_early_motion": "the same, frames of 48 px, [all options of ours](raw-video.md#what-it-takes-to-remember)",
}


def percent(value: float) -> str:
    """Return a share as `66.7 %`."""
    return f"{100 * value:.1f} %"


def raw_block() -> str:
    """Return the results of the networks on raw video, and their speed."""
    lines = [
        "| data | network | test videos | interval, first seed | minutes of training | file |",
        "|---|---|---|---|---|---|",
    ]
    for name, what in RAW_VIDEO.items():
        result = results(name)["result"]
        lines.append(
            f"| {what} | mean frame + logistic regression | {percent(result['mean_pool']['top1'])} | | | {name}.json |"
        )
        source = name if "motion_maps" in result else BASELINES.get(name)
        if source is not None:
            lines.append(_maps_row("", source))
        for model in ("convlstm-stateless", "convlstm-stateful"):
            lines.append(f"| | {_raw_row(model, result)} | {name}.json |")
    for name, what in STATEFUL_ALONE.items():
        result = results(name)["result"]
        if "motion_maps" in result:
            lines += [_maps_row(what, name)]
            what = ""
        lines.append(f"| {what} | {_raw_row('convlstm-stateful', result)} | {name}.json |")
    return "\n".join(
        [
            *lines,
            "",
            "Trained from scratch on the one-cycle schedule. Accuracies: mean ± standard deviation (each seed); 95 %",
            "intervals. Minutes are those of one core of the machine below, shared with other jobs; both cores of the",
            "idle machine are about twice as fast (last table); those of utd_mhad_motion.json and of",
            "decided_early_motion.json are of another machine, which they name. Nothing was chosen by test videos but the",
            "epochs of utd_mhad_loso.json: a first try with 12 and 8 epochs was undertrained, and its accuracies (39.4,",
            "26.0 %) had been seen (its command with `--epochs 12 8`). The options of decided_early_memory.json were",
            "chosen with two training people held out, after the rows above it had been seen; those of",
            "decided_early_motion.json were taken over from UTD-MHAD, and its step, memory, size, batch and epochs set",
            "before its first training:",
            "[what it takes to remember](raw-video.md#what-it-takes-to-remember).",
            "",
            made_by(*RAW_VIDEO, *BASELINES.values(), *STATEFUL_ALONE),
            "",
            "McNemar's test, stateful against stateless network on the same test videos:",
            "",
            *_mcnemar_rows(),
            "",
            *_live_lines(),
            "",
            made_by("live"),
            "",
            *_published_lines("sanchez2020_utd_mhad"),
            "",
            *_convlstm_lines(results("convlstm"), "convlstm"),
            "",
            made_by("convlstm"),
            "",
            *_limits_lines(results("convlstm_limits")),
            "",
            made_by("convlstm_limits"),
            "",
            *_threads_lines(results("threads")["result"]),
            "",
            made_by("threads"),
            "",
            *_convlstm_lines(results("gpu_convlstm"), "gpu_convlstm"),
            "",
            "fp32 there is PyTorch's: convolutions in TF32. The tests that need CUDA (kernels, heads, networks, feature",
            "tables, extraction, TV-L1) passed on that machine; those against the CPU run without TF32 and dropout.",
            "",
            made_by("gpu_convlstm"),
            "",
            *_gpu_nets_lines(results("gpu_nets")),
            "",
            made_by("gpu_nets"),
        ]
    )


def _published_lines(name: str) -> list[str]:
    """Return the tables of `pipelines/sanchez2020.py` on UTD-MHAD: the paper's own schedules, reduced."""
    content = results(name)
    found = content["result"]
    lines = [
        "| Sanchez-Caballero 2020 | paper, NTU RGB+D | ours on UTD-MHAD, reduced | file |",
        "|---|---|---|---|",
        *(f"| {' | '.join(cells)} | {name}.json |" for cells in _beside_the_paper(found)),
        "",
        "Table 3, ours, reduced (8 videos of each class):",
        "",
        f"| place{''.join(f' | {network}, best | worst' for network in found['table 3'])} | file |",
        "|---" * 6 + "|",
    ]
    for rows in zip(*(table[:-1] for table in found["table 3"].values()), strict=True):
        cells = [value for row in rows for key, value in row.items() if "ours" in key]
        lines.append(f"| {rows[0]['place']} | {' | '.join(cells)} | {name}.json |")
    return [
        "The paper's own experiments, on its own schedules, on the same four people of UTD-MHAD, one seed. 95 % intervals;",
        "chance is 3.7 %. The schedules are made for 190 times as many updates: both networks are undertrained. Seconds are",
        f"of one core that had other work too ({content['machine']}). Width and epochs are what an hour of it allowed,",
        f"set before any result. The networks were trained at commit {content['trained_at_commit']}, the tables made at "
        f"{content['commit']}.",
        "",
        *lines,
        "",
        "What is reduced:",
        "",
        *(f"- {note}" for note in found["differs"]),
        "",
        found["epoch"],
        "Figures 5 to 11: [raw-video.md](raw-video.md#the-papers-experiments).",
        "",
        made_by(name),
    ]


def _beside_the_paper(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what, the paper's number, and ours."""
    accuracy = {row["method"]: row for row in found["table 4"]}
    seconds = {row["method"]: row for row in found["table 5"]}
    rows = []
    for network, table in found["table 3"].items():
        _, cs, cv, total = accuracy[network].values()
        _, best, best_printed, worst, worst_printed = table[-1].values()
        _, printed, whole, alone, videos, device, _ = seconds[network].values()
        rows += [
            (f"Table 4, {network}", f"CS {cs}, CV {cv}", total),
            (f"Table 3, {network}, ten best; ten worst", f"{best_printed}; {worst_printed}", f"{best}; {worst}"),
            (
                f"Table 5, {network}",
                f"{printed} s",
                f"{whole} s from files, {alone} s the network alone ({videos} videos, {device})",
            ),
        ]
    # The paper's systems have numbers of the paper's; what was measured here alone has none.
    for method, *printed, ours in (row.values() for row in accuracy.values()):
        rows += [(method, "", ours)] if ours and not any(printed) else []
    low, high = found["range test"]["low"], found["range test"]["high"]
    fall = "the loss does not fall" if low is None else f"the loss falls from {low:.1e} to {high:.1e}"
    return [*rows, ("Figure 5", "1e-05 to nearly 1e-03", fall)]


def _mcnemar_rows() -> list[str]:
    """Return the table of the paired tests, one row for each training and seed."""
    lines = ["| file | seed | p | ahead |", "|---|---|---|---|"]
    for name in (*RAW_VIDEO, *STATEFUL_ALONE):
        for seed, test in enumerate(results(name)["result"].get("stateful_against_stateless_by_seed", [])):
            lead = test["first_only"] - test["second_only"]
            ahead = "stateful" if lead > 0 else "stateless" if lead < 0 else "neither"
            lines.append(f"| {name}.json | {seed} | {test['p_value']:.2g} | {ahead} |")
    return lines


def _live_lines() -> list[str]:
    """Return what live crops cost networks that were trained on crops of whole videos."""
    rows = results("synthetic_depth")["result"]["live"]
    live, own = ([row[key] for row in rows] for key in ("live", "own"))
    seeds = ", ".join(f"{100 * value:.1f}" for value in live)
    return [
        "With live crops, which know the past frames only (`har evaluate --live`), the stateful network of the embedded set",
        f"reaches {percent(sum(live) / len(live))} ({seeds}) instead of {percent(sum(own) / len(own))}: it was trained on "
        "crops of the whole video.",
        *_live_speed(),
    ]


def _live_speed() -> list[str]:
    """Return how fast live decisions of the network of the paper's size are, and how its memory grows."""
    found = results("live")["result"]
    size = f"{found['peak_mib_first_minute']:.0f} and {found['peak_mib_last_minute']:.0f} MiB"
    return [
        f"Live, at the paper's size, a window of 8 frames of 512x424 px takes {1000 * found['seconds_per_window']:.0f} ms with "
        "its crop:",
        f"{100 * found['share_of_real_time']:.0f} % of real time at {found['fps']} frames/s. Peak memory after the first and "
        f"after the last of {found['minutes']} minutes of video: {size} (live.json).",
    ]


def _maps_row(what: str, name: str) -> str:
    """Return the row of the baseline of motion in a results file."""
    row = results(name)["result"]["motion_maps"]
    one = row["interval_of_first_seed"]
    shown = f"{percent(row['top1'])} | {100 * one['low']:.1f} to {100 * one['high']:.1f}"
    return f"| {what} | motion maps + ridge regression | {shown} | | {name}.json |"


def _raw_row(model: str, result: dict[str, Any]) -> str:
    """Return the cells of a network: its name and training, accuracy, interval, minutes."""
    row = result[model]
    options, one = row["options"], row["interval_of_first_seed"]
    width = "" if options["width"] == 1 else f", {options['width']:g} times the paper's filters"
    seeds = ", ".join(f"{100 * value:.1f}" for value in row["top1_by_seed"])
    spread = f" ± {100 * row['sd']:.1f} ({seeds})" if row["sd"] is not None else ", one seed"
    return (
        f"{model}{width}, {options['epochs']} epochs | {percent(row['top1'])}{spread} | "
        f"{100 * one['low']:.1f} to {100 * one['high']:.1f} | {row['minutes_of_epochs']:.0f}"
    )


def _threads_lines(found: dict[str, Any]) -> list[str]:
    """Return what two threads cost beside other load."""
    rows, ways = [], list(found["alone"]["threads"])
    for key, name in (("alone", "alone"), ("beside_one_process", "beside one busy process")):
        one = found[key]["threads"]
        cells = [f"{one[way]['wall_s']:.2f} | {one[way]['cpu_s']:.2f}" for way in ways]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    named = [f"{way.replace(',', ' threads,', 1) if ',' in way else f'{way} threads'}" for way in ways[1:]]
    return [
        f"Why training takes only the cores that are free: a step of the stateful network, {found['width']} times the paper's",
        f"filters, with one thread and with {found['cores']}, in seconds (threads.json):",
        "",
        "".join(["| | 1 thread, wall | CPU |", *(f" {name}, wall | CPU |" for name in named)]),
        "|---" * (1 + 2 * len(ways)) + "|",
        *rows,
    ]


def _gpu_nets_lines(content: dict[str, Any]) -> list[str]:
    """Return the table of clips per second on a GPU."""
    return [
        f"Clips per second of some nets on their default clips, decoding aside ({content['machine']}; gpu_nets.json). Since",
        "this was measured, nets with convolutions over time, such as I3D, take fp32 (TF32) on a GPU by default:",
        "",
        "| net | stream | fp32 | default | default precision |",
        "|---|---|---|---|---|",
        *(
            f"| {row['net']} | {row['stream']} | {row['fp32']:.0f} | {row['default']:.0f} | {row['default_precision']} |"
            for row in content["result"]["clips_per_s"]
        ),
    ]


def _convlstm_lines(content: dict[str, Any], name: str) -> list[str]:
    """Return the table of seconds per clip beside the other ways to run such a network."""
    rivals = "a ConvLSTM step by step as PyTorch users write it"
    if "keras fp32" in content["result"]["networks"][0]["infer"]["s_per_clip"]:
        rivals = f"Keras 3 on torch, and {rivals}, the faster of the two"
    lines = [
        f"Seconds per clip, 60 classes, depth, batches of 12 and 6 ({name}.json; {content['machine']}, "
        f"{content['result']['threads']} threads);",
        f"rivals: {rivals}:",
        "",
        "| network | | ours fp32 | ours bf16 | rival / ours, fp32 | rival / ours, bf16 | rival in fp32 / ours in bf16 |",
        "|---|---|---|---|---|---|---|",
    ]
    digits = ".4f" if "cuda" in content["command"] else ".3f"
    for row in content["result"]["networks"]:
        for what, text in (("train", "training step"), ("infer", "inference")):
            one = row[what]
            seconds = one["s_per_clip"]
            lines.append(
                f"| {row['network']} | {text} | {seconds['ours fp32']:{digits}} | {seconds['ours bf16']:{digits}} | "
                f"{one['rivals_to_ours_fp32']:.2f} | {one['rivals_to_ours_bf16']:.2f} | "
                f"{one['rivals_fp32_to_ours_bf16']:.2f} |"
            )
    return lines


def _limits_lines(content: dict[str, Any]) -> list[str]:
    """Return the table of a network's inference beside what the arithmetic allows."""
    lines = [
        f"Inference with OMP_NUM_THREADS=1 ({content['machine']}; convlstm_limits.json), in 1e9 operations per CPU second:",
        "products of matrices, the network's bare convolutions, and the whole network, of which only the operations of its",
        "convolutions count:",
        "",
        "| network | precision | products | convolutions | ours | share of products | share of convolutions |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["result"]["networks"]:
        for precision, one in row["limits"].items():
            speed = [f"{one['gflop_per_cpu_s'][what]:.0f}" for what in ("product", "convolutions", "ours")]
            shares = f"{one['ours_to_product']:.2f} | {one['ours_to_convolutions']:.2f}"
            lines.append(f"| {row['network']} | {precision} | {' | '.join(speed)} | {shares} |")
    return lines
