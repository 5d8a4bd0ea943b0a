"""Time until features are ready for training: from the store, from its pack, and from one .npy per video. Prints JSON.

Features of one size are drawn at random (float16) and written three times. Measured, the ways in turn, `--rounds` times
after one round to warm up, so that the files are in the page cache:

- `store`: `load_features` from the feature store, as `har train` does;
- `pack`: the same call on the pack that `har features pack` made of it, checksums included; bit-equal (checked here);
- `npy_files`: np.load of each video's file and one concatenation, without any check;
- `store_reads`: `FeatureStore.read` of each video, with its checksum, and nothing else;
- `zarr_arrays`: the same arrays read by Zarr, and the commit's checksum compared, as versions before 0.2 did;
- `read_once`: the bytes of the pack's file alone, the limit.

UCF-101's size (slow: the store alone is 9,537 arrays):

    python benchmarks/load.py --videos 9537
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from har_pipeline import (
    ClipSpec,
    FeatureSpec,
    FeatureStore,
    FeatureStreams,
    FeatureTable,
    VideoRecord,
    VideoSource,
    load_features,
    open_features,
    pack_features,
)

CLASSES = ("even", "odd")


def write_features(folder: Path, videos: int, clips: int, dim: int) -> tuple[str, list[Path], dict[str, float]]:
    """Write store, pack and .npy files; returns the feature set's name, the files, and the seconds of the first two."""
    spec = FeatureSpec(
        extractor="drawn",
        weights="random:0",
        layer="last",
        feature_dim=dim,
        clips=ClipSpec(sampling="uniform", num_clips=clips),
    )
    store = FeatureStore(folder / "store.zarr", create=True)
    name = store.create_feature_set(spec)
    starts = np.arange(clips)
    source = VideoSource(clip_starts=starts, clip_ends=starts + 1, num_frames=clips, fps=25.0)
    rng, files, store_seconds = np.random.default_rng(0), [], 0.0
    for number in range(videos):
        features = rng.standard_normal((clips, dim), np.float32).astype(np.float16)
        files.append(folder / f"v{number:06}.npy")
        np.save(files[-1], features)
        start = time.perf_counter()
        store.write(name, files[-1].stem, features, source)
        store_seconds += time.perf_counter() - start
    start = time.perf_counter()
    pack_features(store, name, folder / "store.pack")
    return name, files, {"write_store": round(store_seconds, 2), "pack": round(time.perf_counter() - start, 2)}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    name, files, made = write_features(folder, args.videos, args.clips, args.dim)
    ids = [file.stem for file in files]
    records = [
        VideoRecord(video_id=video_id, label=CLASSES[number % 2], path=folder / video_id)
        for number, video_id in enumerate(ids)
    ]

    def load(path: Path) -> FeatureTable:
        return load_features(FeatureStreams(open_features(path), [name]), records, ids, CLASSES)

    def read_videos() -> list[np.ndarray]:
        store = FeatureStore(folder / "store.zarr")
        return [store.read(name, video_id, check=True).features for video_id in ids]

    def read_arrays() -> list[np.ndarray]:
        arrays = []
        for video_id in ids:
            array = zarr.open_array(folder / "store.zarr" / name / video_id, mode="r")
            arrays.append(np.asarray(array[...]))
            if f"sha256:{hashlib.sha256(arrays[-1].tobytes()).hexdigest()}" != array.attrs["checksum"]:
                raise ValueError(f"{video_id} differs from its checksum")
        return arrays

    ways: dict[str, Callable[[], object]] = {
        "store": lambda: load(folder / "store.zarr"),
        "pack": lambda: load(folder / "store.pack"),
        "npy_files": lambda: np.concatenate([np.load(file) for file in files]),
        "store_reads": read_videos,
        "zarr_arrays": read_arrays,
        "read_once": lambda: np.fromfile(folder / "store.pack" / f"{name}.safetensors", np.uint8),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu_seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(args.rounds + 1):
        for way, work in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            work()
            if number:
                seconds[way].append(time.perf_counter() - start)
                cpu_seconds[way].append(time.process_time() - cpu_start)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    one, other = load(folder / "store.zarr"), load(folder / "store.pack")
    return {
        "benchmark": "load",
        "videos": args.videos,
        "clips": args.clips,
        "dim": args.dim,
        "mib": round(one.features.nbytes / 2**20, 1),
        "seconds": seconds,
        "median_seconds": medians,
        "median_cpu_seconds": {way: statistics.median(values) for way, values in cpu_seconds.items()},
        "read_ms_per_video": {
            way: round(1000 * medians[way] / args.videos, 3) for way in ("store_reads", "zarr_arrays", "npy_files")
        },
        "store_reads_over_npy_files": round(medians["store_reads"] / medians["npy_files"], 2),
        "zarr_arrays_over_store_reads": round(medians["zarr_arrays"] / medians["store_reads"], 2),
        "seconds_to_write": made,
        "store_over_pack": round(medians["store"] / medians["pack"], 2),
        "npy_files_over_pack": round(medians["npy_files"] / medians["pack"], 2),
        "pack_over_read_once": round(medians["pack"] / medians["read_once"], 2),
        "bit_equal": all(np.array_equal(*pair) for pair in zip(read_videos(), read_arrays(), strict=True))
        and one.features.tobytes() == other.features.tobytes()
        and one.video_ids == other.video_ids,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--clips", type=int, default=25)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(args, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
