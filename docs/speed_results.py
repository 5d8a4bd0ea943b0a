"""The section of results.md on speed, on CPUs and GPUs, and on many rows."""

from __future__ import annotations

from typing import Any

from commands import made_by, results


def handcrafted_speed_lines() -> list[str]:
    """Return the table of the handcrafted extractors' speed and memory."""
    points, tracks = results("interest_points"), results("trajectories")
    rows = [
        (f"`harris3d_hof`, {size}", length, row, "interest_points")
        for size, lengths in points["result"]["sizes"].items()
        for length, row in lengths.items()
    ] + [
        (f"`idt`, 320x240, camera {camera}", length, row, "trajectories")
        for camera, lengths in tracks["result"]["speed"].items()
        for length, row in lengths.items()
        if length != "stages"
    ]
    return [
        f"Handcrafted extractors on one core ({tracks['machine']}), frames in memory, rendered people:",
        "",
        "| extractor, frames | length | frames/s | frames per CPU second | peak memory, MiB (before) | file |",
        "|---|---|---|---|---|---|",
        *(
            f"| {what} | {length} | {row['frames_per_s']} | {row['frames_per_cpu_s']} | {row['peak_mib']:.0f} "
            f"({row['peak_mib_before']:.0f}) | {file}.json |"
            for what, length, row, file in rows
        ),
        "",
        "The authors' program for improved trajectories is said to run at about 4 frames/s on one core (not measured here).",
    ]


def speed_block() -> str:
    """Return the table of speeds."""
    flow = results("flow")
    lines = [
        *extraction_lines("extract_vgg16", "extract_efficientnet_lite0"),
        "",
        made_by("extract_vgg16", "extract_efficientnet_lite0"),
        "",
        f"TV-L1 flow ({flow['machine']}), pairs/s:",
        "",
        "| frames | ours | OpenCV's | ratio | file |",
        "|---|---|---|---|---|",
        *flow_rows(flow["result"]),
        "",
        "Rates are medians over rounds, the ratio is the median of the rounds' own ratios.",
        "",
        made_by("flow"),
        "",
        *handcrafted_speed_lines(),
        "",
        made_by("interest_points", "trajectories"),
        "",
        *reading_lines(results("seek"), results("frames")),
        "",
        made_by("seek", "frames"),
        "",
        *start_lines(results("startup")),
        "",
        made_by("startup"),
        "",
        *load_lines(results("load")),
        "",
        made_by("load"),
        "",
        *scale_lines("scale"),
        "",
        made_by("scale"),
        "",
        *scale_lines("scale_resume"),
        "",
        made_by("scale_resume"),
        "",
        *train_lines("train"),
        "",
        made_by("train"),
        "",
        *extraction_lines("gpu_extract"),
        "",
        "A part of each round is the start of the workers; what bound the rest there was not measured. Three costs were found",
        "without a GPU and mended since: a batch's features were asked for behind the net of the next one, so that the GPU",
        "waited while a batch was filled; each frame was copied by as many threads as the net has; one thread wrote the store.",
        "With a net that costs nothing, the main thread now takes 0.20 ms a frame where it took 0.55 (in a trial on 2 cores,",
        "not recorded). No GPU has run this yet.",
        "",
        made_by("gpu_extract"),
        "",
        *train_lines("gpu_train"),
        "",
        made_by("gpu_train"),
    ]
    return "\n".join(lines)


def extraction_lines(vgg16: str, lite0: str | None = None) -> list[str]:
    """Return the table of whole extractions: VGG16's record by name, and EfficientNet-Lite0's of the same machine."""
    content = results(vgg16)
    rate, ratio = content["result"]["frames_per_s"], content["result"]["ratios"]
    tuned = rate["algorithm1_channels_last"] / rate["limit_fp32"]
    lines = [
        f"Extraction from video files to the committed store ({content['machine']}), in frames/s:",
        "",
        "| net | frames/s | share of the pure forward pass | times frame-by-frame extraction | file |",
        "|---|---|---|---|---|",
        f"| vgg16 pool5, fp32 | {rate['engine_fp32']:.1f} | {ratio['engine_of_limit_fp32']:.2f} | "
        f"{ratio['engine_fp32_times_algorithm1']:.2f} | {vgg16}.json |",
        f"| vgg16 pool5, default (bf16) | {rate['engine_default']:.1f} | {ratio['engine_of_limit_default']:.2f} | "
        f"{ratio['engine_default_times_algorithm1']:.2f} | {vgg16}.json |",
    ]
    if lite0:
        own = results(lite0)["result"]
        lines.append(
            f"| efficientnet_lite0, default (fp32) | {own['frames_per_s']['engine_fp32']:.0f} | "
            f"{own['ratios']['engine_of_limit_fp32']:.2f} | | {lite0}.json |"
        )
    return [
        *lines,
        "",
        "Frame-by-frame extraction is Algorithm 1 of Orozco 2020 as people write it, in fp32. With PyTorch's documented "
        f"tuning (channels last) that loop reaches {tuned:.2f} of the pure forward pass",
        f"by itself, so against it the engine is {ratio['engine_fp32_times_algorithm1_channels_last']:.2f} times as fast in "
        f"fp32 and {ratio['engine_default_times_algorithm1_channels_last']:.2f} times at its default.",
    ]


def flow_rows(result: dict[str, Any]) -> list[str]:
    """Return the rows of the flow table."""
    rows = []
    for size, row in result["sizes"].items():
        ours, opencv = row["pairs_per_s"]["ours"], row["pairs_per_s"]["opencv"]
        rows.append(f"| {size} | {ours:.2f} | {opencv:.2f} | {row['ours_times_opencv']:.2f} | flow.json |")
    return rows


def reading_lines(seek: dict[str, Any], frames: dict[str, Any]) -> list[str]:
    """Return the table of what reading a part of a video spares."""
    found, few = seek["result"], frames["result"]
    ms = few["cpu_ms_per_frame"]
    rows = [
        (
            f"{found['clips']} clips of {found['clip_len']} frames, {found['minutes']:g} minutes of video",
            f"all decoded: {found['cpu_s']['all decoded']:.2f} s",
            f"the rest skipped: {found['cpu_s']['skipped']:.2f} s",
            found["ratios"]["cpu"],
            "seek",
        ),
        (
            f"40 of {few['frames']:,} frames of 1080p, to 224 px",
            f"all converted to RGB: {ms['few, all converted']:.1f} ms a frame",
            f"those 40 alone: {ms['few']:.1f} ms",
            few["ratios"]["converting_all_times_few"],
            "frames",
        ),
        (
            "all frames of 1080p, to 224 px",
            f"by area, the default: {ms['all']:.1f} ms a frame",
            f"`--resize-method swscale`: {ms['all, swscale']:.1f} ms",
            few["ratios"]["area_times_swscale"],
            "frames",
        ),
    ]
    return [
        f"Decoding and scaling of drawn H.264 in one process ({seek['machine']}), CPU time:",
        "",
        "| read | one way | the other | ratio | file |",
        "|---|---|---|---|---|",
        *(f"| {what} | {one} | {other} | {ratio} | {file}.json |" for what, one, other, ratio, file in rows),
        "",
        "The skipped frames change none of those that are read; swscale's pixels differ by "
        f"{few['levels_apart']} of 255 levels on average.",
    ]


def start_lines(content: dict[str, Any]) -> list[str]:
    """Return the table of what commands take before they do anything."""
    medians = content["result"]["medians"]
    return [
        f"CPU and wall seconds of whole commands ({content['machine']}); the extractions are of one video of four clips:",
        "",
        "| command | CPU s | wall s | file |",
        "|---|---|---|---|",
        *(f"| {name} | {row['cpu_s']:.2f} | {row['wall_s']:.2f} | startup.json |" for name, row in medians.items()),
    ]


def load_lines(content: dict[str, Any]) -> list[str]:
    """Return the table of loading times."""
    result = content["result"]
    seconds = result["median_seconds"]
    what = {
        "pack": "pack (`har features pack`), checksums included",
        "store": "store, one Zarr array per video",
        "npy_files": "one .npy per video, unchecked",
    }
    return [
        f"Loading {result['videos']:,} videos of {result['clips']} clips of {result['dim']:,} values for training "
        f"({result['mib']:.0f} MiB, in the page cache; {content['machine']}):",
        "",
        "| from | seconds | times the pack's | file |",
        "|---|---|---|---|",
        *(
            f"| {text} | {seconds[way]:.2f} | {seconds[way] / seconds['pack']:.1f} | load.json |"
            for way, text in what.items()
        ),
    ]


# Work of benchmarks/scale.py -> its command, in words.
AT_SCALE = {
    "check": "`har manifest check`",
    "holdout": "`har splits show --protocol holdout`, 40 people",
    "holdout_of_files": "the same, without people",
    "holdout_with_validation": "the same, with `--val-fraction 0.2`",
    "kfold": "`--protocol group_kfold`",
    "one_group_out": "`--protocol leave_one_group_out`, 25 groups",
    "official_lists": "`--protocol ucf101`, three lists",
    "cross_subject": "`--protocol xsub`",
    "column": "`--protocol column`",
    "resume": "`har extract` that finds everything there",
    "resume_again": "the same once more, with the index that it wrote",
    "list": "`har features list`",
    "show": "`har features show`",
    "verify": "`har features verify`",
    "pack": "`har features pack`",
    "train": "`har train --head mean_pool`, one epoch",
}


def scale_lines(name: str) -> list[str]:
    """Return the table of what whole commands take for many rows: a record of benchmarks/scale.py."""
    content = results(name)
    works = content["result"]["works"]
    sizes = sorted({row["size"] for rows in works.values() for row in rows})
    lines = [
        f"Whole commands on many rows ({content['machine']}; {name}.json): CPU seconds, peak memory at the largest size, the",
        "exponent of the CPU seconds between the two largest sizes, without the start (1 is linear):",
        "",
        f"| command | {' | '.join(f'{size:,} rows' for size in sizes)} | peak, MB | exponent |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for work, text in AT_SCALE.items():
        if work not in works:
            continue
        row_of = {row["size"]: row for row in works[work]}
        last = works[work][-1]
        cells = [f"{row_of[size]['cpu_s']:.1f}" if size in row_of else "" for size in sizes]
        power = last.get("exponent")
        lines.append(
            f"| {text} | {' | '.join(cells)} | {last['peak_mb']:,} | {'' if power is None else f'{power:.2f}'} |"
        )
    clips = content["result"]["clips"]
    stored = f"{clips} clip{'s' * (clips > 1)} of 1,280 values a video, copies of one"
    lines += [
        "",
        f"Stores hold {stored}; the video files are empty and never decoded.",
    ]
    if over := [row["over_features"] for row in works.get("train", ()) if "over_features" in row]:
        lines += [
            "",
            f"Training adds {over[-1]:.2f} times the size of the features to the peak memory of the smallest set.",
        ]
    return lines


def train_lines(name: str) -> list[str]:
    """Return the table of training epochs of a record."""
    content = results(name)
    result = content["result"]
    seconds = result["median_seconds"]
    workers, usual = min(
        ((way, value) for way, value in seconds.items() if way.startswith("usual")), key=lambda x: x[1]
    )
    head, epochs = result["head"], result["epoch_seconds"]
    rounds = [ours / limit for ours, limit in zip(epochs["ours"], epochs["limit"], strict=True)]
    return [
        f"One epoch of training on {result['videos']:,} videos of {result['clips']} clips of {result['dim']:,} values "
        f"({content['machine']}); limit: forward, backward and step on",
        f"batches already in memory; DataLoader: PyTorch's, over one .npy per video,{workers[6:]}; "
        f"threads: {result['threads']}:",
        "",
        "| head | seconds | times the limit | DataLoader, times ours | file |",
        "|---|---|---|---|---|",
        f"| {head['name']}, {head['units']} units | {seconds['ours']:.1f} | {result['ours_over_limit']:.2f} | "
        f"{usual / seconds['ours']:.2f} | {name}.json |",
        "",
        f"In single rounds, ours took {min(rounds):.2f} to {max(rounds):.2f} times the limit.",
    ]
