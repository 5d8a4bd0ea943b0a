"""What committing one video costs when n are there, with icechunk and with the store's own commits. Prints JSON.

Both hold the features of a video as one Zarr array of a group, and commit them one video at a time, as extraction does.
For icechunk that is one transaction; `--every N` also measures it with N videos in one. Measured for each size:

- `cpu_ms`: of a video, the mean of the last 20, both in memory, so that it is work and not waiting;
- `kib`: what a video adds to a second copy on the disk, its features of 50 KiB included;
- `retries`: of two writers that commit 100 videos each to one icechunk branch in turn, how many commits had to be rebased;
- `plain_zarr_reads`: whether `zarr.open_group` opens the folder without more.

    pip install icechunk
    python benchmarks/transactions.py --sizes 100 1000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from har_pipeline import ClipSpec, FeatureSpec, FeatureStore, VideoSource

LAST = 20
CLIPS, DIM = 25, 1024
SPEC = FeatureSpec(
    extractor="drawn",
    weights="random:0",
    layer="last",
    feature_dim=DIM,
    clips=ClipSpec(sampling="uniform", num_clips=CLIPS),
)
SOURCE = VideoSource(clip_starts=np.arange(CLIPS), clip_ends=np.arange(CLIPS) + 1, num_frames=CLIPS, fps=25.0)


def features() -> np.ndarray:
    return np.random.default_rng().standard_normal((CLIPS, DIM), np.float32).astype(np.float16)


def put_array(session: icechunk.Session, name: str) -> None:
    group = zarr.open_group(session.store, mode="a")
    codec = ZstdCodec(level=1, checksum=True)
    array = group.create_array(name, data=features(), chunks=(CLIPS, DIM), compressors=codec)
    array.update_attributes({"clip_starts": list(range(CLIPS)), "clip_ends": list(range(CLIPS))})


def icechunk_writer(storage: Any, every: int) -> Callable[[int], None]:
    """Return what writes the i-th video, and commits after each `every`-th."""
    repository = icechunk.Repository.create(storage)
    session = repository.writable_session("main")

    def write(number: int) -> None:
        nonlocal session
        put_array(session, f"v{number:06}")
        if (number + 1) % every == 0:
            session.commit(f"video {number}")
            session = repository.writable_session("main")

    return write


def own_writer(address: str) -> Callable[[int], None]:
    store = FeatureStore(address, create=True)
    name = store.create_feature_set(SPEC)

    def write(number: int) -> None:
        store.write(name, f"v{number:06}", features(), SOURCE)

    return write


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cost(
    write: Callable[[int], None], on_disk: Callable[[int], None], folder: Path, sizes: list[int]
) -> dict[str, Any]:
    """Return milliseconds in memory and KiB on the disk of a video when each of `sizes` are there."""
    found, seconds, before = {}, list[float](), 0
    for number in range(max(sizes)):
        start = time.process_time()
        write(number)
        seconds.append(time.process_time() - start)
        if number + LAST in sizes:
            before = num_bytes(folder)
        on_disk(number)
        if number + 1 in sizes:
            kib = (num_bytes(folder) - before) / LAST / 1024
            found[str(number + 1)] = {"cpu_ms": round(1000 * statistics.mean(seconds[-LAST:]), 2), "kib": round(kib, 1)}
    return found


def two_writers(storage: Any) -> int:
    """Return how often a commit of one of two writers, who commit by turns, had to be rebased on the other's."""
    repository, retries = icechunk.Repository.create(storage), 0
    zarr.open_group(repository.writable_session("main").store, mode="a")
    first = repository.writable_session("main")
    zarr.open_group(first.store, mode="a")
    first.commit("group")
    for number in range(100):
        sessions = [repository.writable_session("main") for _ in range(2)]
        for writer, session in enumerate(sessions):
            put_array(session, f"w{writer}-{number:06}")
        for session in sessions:
            while True:
                try:
                    session.commit("video")
                    break
                except icechunk.ConflictError:
                    session.rebase(icechunk.ConflictDetector())
                    retries += 1
    return retries


def opens(folder: Path) -> bool:
    try:
        zarr.open_group(folder, mode="r")
    except Exception:
        return False
    return True


def measure(sizes: list[int], every: int) -> dict[str, Any]:
    result: dict[str, Any] = {"benchmark": "transactions", "clips": CLIPS, "dim": DIM, "icechunk": icechunk.__version__}
    with tempfile.TemporaryDirectory() as name:
        ours, one, many = (Path(name) / part for part in ("ours.zarr", "one", "many"))
        result["own"] = cost(own_writer("memory://bench/store.zarr"), own_writer(str(ours)), ours, sizes)
        for key, folder, count in (("icechunk_each", one, 1), (f"icechunk_every_{every}", many, every)):
            in_memory = icechunk_writer(icechunk.in_memory_storage(), count)
            on_disk = icechunk_writer(icechunk.local_filesystem_storage(str(folder)), count)
            result[key] = cost(in_memory, on_disk, folder, sizes)
        result["plain_zarr_reads"] = {"own": opens(ours), "icechunk": opens(one)}
        result["retries"] = two_writers(icechunk.in_memory_storage())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--every", type=int, default=20, help="Videos in one transaction of icechunk.")
    args = parser.parse_args()
    print(json.dumps(measure(sorted(args.sizes), args.every), indent=2))


if __name__ == "__main__":
    main()
