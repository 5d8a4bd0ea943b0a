"""End-to-end extraction against the pure forward pass and against frame-by-frame extraction. Prints JSON.

For each precision, in turns within one run: (a) `limit`: the net alone on the same decoded batches, already in memory;
(b) `engine`: `extract` from video files to the committed store; and, for VGG16, (c) `algorithm1`: Orozco 2020, Algorithm
1, as people write it: one video at a time, one frame at a time, fp32, `eval` and `inference_mode`, up to the layer,
nothing written; `algorithm1_channels_last` is the same with PyTorch's documented CPU tuning. What binds the engine: `decode`,
reading and resizing the same frames in one process; `engine_no_net`, the engine with a net that takes no time, and
`host_ms_per_frame`, the CPU time of its main process, whose threads fill batches and write the store; on a GPU
`limit_pinned_default`, the default net on batches in pinned memory; and `start_s`, what a job of one video takes. Ratios are
medians over the rounds. Videos are rendered; weights may be random, which changes no timing.

    python benchmarks/extract.py --extractor vgg16 --videos 50 --rounds 5
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch

from har_pipeline import (
    ClipSpec,
    ExtractOptions,
    Extractor,
    FeatureStore,
    FrameReader,
    VideoRecord,
    build_extractor,
    extract,
    keep_freed_memory,
    parse_resize,
    read_manifest,
    resize_frame,
    write_dataset,
)

FRAMES_PER_VIDEO = 40
VIDEOS_PER_SUBJECT = 24  # of the rendered set


def decoded_batches(records: list[VideoRecord], batch_size: int, resize: str) -> list[torch.Tensor]:
    frames = []
    for record in records:
        assert record.path is not None
        for index, frame in FrameReader(record.path, stop=FRAMES_PER_VIDEO):
            assert index < FRAMES_PER_VIDEO
            frames.append(torch.from_numpy(resize_frame(frame, parse_resize(resize))))
    return [torch.stack(frames[i : i + batch_size])[:, None] for i in range(0, len(frames), batch_size)]


def run_limit(extractor: Extractor, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        extractor(batch).cpu()


def run_ahead(extractor: Extractor, pinned: list[torch.Tensor]) -> None:
    """As the limit, but the next batch is on its way while the device works: its memory is pinned, and nothing waits."""
    for rows in [extractor(batch) for batch in pinned]:
        rows.cpu()


class NoNet(Extractor):
    """Gives the same features of each batch, which costs nothing but the way of frames and features to the device and back."""

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) float32 on the device."""
        clips.to(self.device, non_blocking=True)
        return features_of_nothing(len(clips), self.feature_dim, self.device)


@functools.cache
def features_of_nothing(size: int, dim: int, device: torch.device) -> torch.Tensor:
    """Return features (size, dim) with as many zeros as those of a net, whose compression takes about as long."""
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(0)).relu().to(device)


def run_decode(records: list[VideoRecord], batch_size: int, resize: str) -> None:
    """Read and resize all frames in this process."""
    decoded_batches(records, batch_size, resize)


def run_engine(extractor: Extractor, records: list[VideoRecord], options: ExtractOptions) -> None:
    with tempfile.TemporaryDirectory() as folder:
        summary = extract(records, FeatureStore(Path(folder) / "store.zarr", create=True), extractor, options)
    assert summary.done == len(records), summary.failed


def run_algorithm1(extractor: Extractor, records: list[VideoRecord], memory_format: torch.memory_format) -> None:
    """One frame at a time through the layers up to the chosen one, with the usual reader and resize."""
    features = extractor.module.features
    assert isinstance(features, torch.nn.Module)
    mean = torch.tensor(extractor.preprocess.mean).view(1, 3, 1, 1)
    std = torch.tensor(extractor.preprocess.std).view(1, 3, 1, 1)
    for record in records:
        sample = []
        video = cv2.VideoCapture(str(record.path))
        for _ in range(FRAMES_PER_VIDEO):
            _, frame = video.read()
            rgb = cv2.cvtColor(cv2.resize(frame, (224, 224)), cv2.COLOR_BGR2RGB)
            x = (torch.from_numpy(rgb).permute(2, 0, 1)[None].float() - mean) / std
            with torch.inference_mode():
                x = x.to(extractor.device).contiguous(memory_format=memory_format)
                sample.append(features(x).flatten().cpu())
        torch.stack(sample)


def median_ratio(seconds: dict[str, list[float]], slower: str, faster: str) -> float:
    return round(statistics.median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extractor", default="vgg16", choices=["vgg16", "efficientnet_lite0"])
    parser.add_argument("--videos", type=int, default=50, help="in all rounds together, 40 frames each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    weights = "random" if arguments.extractor == "vgg16" else None
    options = ExtractOptions(clips=ClipSpec(num_clips=FRAMES_PER_VIDEO), workers=arguments.workers)
    exact = build_extractor(arguments.extractor, weights=weights, device=arguments.device, precision="fp32")
    default = build_extractor(arguments.extractor, weights=weights, device=arguments.device, precision="auto")
    if exact.device.type == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        each = arguments.videos // arguments.rounds
        subjects = min(25, max(1, math.ceil(each / VIDEOS_PER_SUBJECT)))
        records = read_manifest(write_dataset(Path(folder), num_subjects=subjects))[:each]
        batches = decoded_batches(records, 64 if exact.device.type == "cuda" else 16, exact.input.resize)
        runs: dict[str, Callable[[], None]] = {
            "engine_fp32": lambda: run_engine(exact, records, options),
            "limit_fp32": lambda: run_limit(exact, batches),
        }
        if default.precision != "fp32":
            runs["engine_default"] = lambda: run_engine(default, records, options)
            runs["limit_default"] = lambda: run_limit(default, batches)
        runs["decode"] = lambda: run_decode(records, len(batches[0]), exact.input.resize)
        no_net = NoNet(**{field.name: getattr(default, field.name) for field in dataclasses.fields(default)})
        host_s: list[float] = []

        def run_no_net() -> None:
            started = time.process_time()
            run_engine(no_net, records, options)
            host_s.append(time.process_time() - started)

        runs["engine_no_net"] = run_no_net
        runs["start"] = lambda: run_engine(default, records[:1], options)
        if exact.device.type == "cuda":
            pinned = [batch.pin_memory() for batch in batches]
            runs["limit_pinned_default"] = lambda: run_ahead(default, pinned)
        if arguments.extractor == "vgg16":
            plain = build_extractor("vgg16", weights="random", device=arguments.device, precision="fp32")
            plain.module.to(memory_format=torch.contiguous_format)
            runs["algorithm1"] = lambda: run_algorithm1(plain, records, torch.contiguous_format)
            runs["algorithm1_channels_last"] = lambda: run_algorithm1(exact, records, torch.channels_last)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for extractor in (exact, default):
            extractor(batches[0])
        for _ in range(arguments.rounds):
            for name, work in runs.items():
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
    start_s = round(statistics.median(seconds.pop("start")), 3)
    frames = len(records) * FRAMES_PER_VIDEO
    ratios = {"engine_of_limit_fp32": median_ratio(seconds, "limit_fp32", "engine_fp32")}
    if default.precision != "fp32":
        ratios["engine_of_limit_default"] = median_ratio(seconds, "limit_default", "engine_default")
    for rival in ("algorithm1", "algorithm1_channels_last"):
        if rival in seconds:
            ratios[f"engine_fp32_times_{rival}"] = median_ratio(seconds, rival, "engine_fp32")
            fastest = "engine_default" if "engine_default" in seconds else "engine_fp32"
            ratios[f"engine_default_times_{rival}"] = median_ratio(seconds, rival, fastest)
    result = {
        "benchmark": "extract",
        "extractor": f"{arguments.extractor} {exact.layer}",
        "frames_in_all": frames * arguments.rounds,
        "rounds": arguments.rounds,
        "frames_per_s": {name: round(frames / statistics.median(values), 2) for name, values in seconds.items()},
        "ratios": ratios,
        "host_ms_per_frame": round(1000 * statistics.median(host_s) / frames, 3),
        "start_s": start_s,
        "default_precision": default.precision,
        "device": f"{exact.device.type}, {torch.get_num_threads()} threads",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
