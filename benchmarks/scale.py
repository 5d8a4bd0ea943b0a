"""CPU seconds, wall time and peak memory of what reads many rows: manifests, splits, stores, packs, training. Prints JSON.

For each of `--sizes` it writes into `--folder` manifests of so many rows, a file of its own for each (sparse files of
different sizes, nobody decodes them), and up to `--largest` a store with features of all of them. The store's first video is
extracted as `har extract` does it, the others are copies of its node under their own ids. What is there stays and is used
again; about 20 KiB of disk and five inodes a video beside its features.

    python benchmarks/scale.py --folder scale_out
    python benchmarks/scale.py --folder scale_out --sizes 1000 10000 --only train verify --clips 20

Each work is a `har` command in a process of its own. `peak_mb` is the largest resident size of that process or of one of its
children. `exponent` is that of the CPU seconds between a size and the one before, after those of the smallest size (the
start of the program) were taken off; 1 is linear. `over_features`: what is added to the peak
memory of the smallest size, over what is added to its features. `resume_again` has the index of files that `resume` wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Nothing heavy is imported here: a child's peak memory counts from that of the process that started it.
HAR = [sys.executable, "-m", "har_pipeline"]
MOST_CLASSES, ROWS_OF_CLASS, SUBJECTS, GROUPS = 400, 100, 40, 25
NET = ["--extractor", "efficientnet_lite0", "--weights", "random"]
# Of a clip: 1,280 values in float16.
FEATURE_BYTES = 2560
# The smallest differences of CPU seconds that an exponent is computed from.
LEAST_S = 0.05


def rows_of(size: int) -> Iterator[dict[str, str]]:
    """Give the cells of each row, without the columns that only some manifests have."""
    for number in range(size):
        video_id, label = f"video_{number:07}", f"class_{number % num_classes(size):03}"
        yield {"video_id": video_id, "path": f"data/{label}/{video_id}.avi", "label": label}


def num_classes(size: int) -> int:
    return max(1, min(MOST_CLASSES, size // ROWS_OF_CLASS))


def write_manifests(folder: Path, size: int) -> None:
    """Write the files of so many videos, and their manifest three times: with people, with groups and lists, with neither."""
    for number in range(num_classes(size)):
        (folder / "data" / f"class_{number:03}").mkdir(parents=True)
    names = ("people", "groups", "plain")
    files = {name: open(folder / f"{name}.csv", "w", encoding="utf-8") for name in names}  # noqa: SIM115 - closed below
    files["people"].write("video_id,path,label,subject,split\n")
    files["groups"].write("video_id,path,label,group,x_split1,x_split2,x_split3\n")
    files["plain"].write("video_id,path,label\n")
    for number, row in enumerate(rows_of(size)):
        plain, turn = ",".join(row.values()), number // num_classes(size)
        subject, group = turn % SUBJECTS + 1, turn % GROUPS + 1
        lists = ",".join("test" if 7 * i - 6 <= group <= 7 * i else "train" for i in (1, 2, 3))
        files["people"].write(f"{plain},{subject},{'test' if subject <= 10 else 'train'}\n")
        files["groups"].write(f"{plain},{group},{lists}\n")
        files["plain"].write(plain + "\n")
        with open(folder / row["path"], "wb") as file:
            file.truncate(1000 + number)
    for opened in files.values():
        opened.close()


def write_store(folder: Path, size: int, clips: int) -> None:
    """Write a store with features of so many videos: one by `har extract`, the others as copies of its node."""
    synth, store = folder / "one", folder / "store.zarr"
    run([*HAR, "synth", str(synth), "--subjects", "1", "--scenario", "d1"])
    lines = (synth / "manifest.csv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.startswith("#")]
    rows = [line for line in lines if not line.startswith("#")]
    (synth / "manifest.csv").write_text("\n".join([*kept, *rows[:2]]) + "\n", encoding="utf-8")
    run([*HAR, "extract", str(synth / "manifest.csv"), str(store), *NET, "--num-clips", str(clips)])
    feature_set = next(node for node in store.iterdir() if node.name.startswith("efficientnet"))
    first = next(node for node in feature_set.iterdir() if node.is_dir())
    values = json.loads((first / "zarr.json").read_bytes())
    commit = values["attributes"]
    contents = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    for number, row in enumerate(rows_of(size)):
        node = feature_set / row["video_id"]
        file = {"name": f"{row['video_id']}.avi", "frames": commit["file"]["frames"], "size": f"{1000 + number} bytes"}
        commit |= {"id": row["video_id"], "file": file}
        commit["source_checksum"] = source_checksum(commit)
        for path, content in contents.items():
            (node / path).parent.mkdir(parents=True, exist_ok=True)
            (node / path).write_bytes(json.dumps(values).encode() if path.name == "zarr.json" else content)
    shutil.rmtree(first)


def source_checksum(commit: dict[str, Any]) -> str:
    """Return what the store keeps beside a video's clips and times, of which the id is part."""
    names = ("clip_starts", "clip_ends", "clip_times_s", "num_frames", "fps", "padded", "id")
    text = json.dumps({name: commit[name] for name in names}, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def run(command: list[str]) -> tuple[float, float, float]:
    """Run a command; returns its CPU seconds with those of its children, wall seconds, and peak memory in MB."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)}: exit code {child.returncode}\n{said[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss * unit / 1e6


def splits(name: str, manifest: str, *more: str) -> Callable[[Path, int], list[str]]:
    return lambda folder, clips: ["splits", "show", str(folder / f"{manifest}.csv"), "--protocol", name, *more]


def train(folder: Path, clips: int) -> list[str]:
    manifest, store, out = folder / "people.csv", folder / "store.zarr", folder / "runs"
    options = ["--head", "mean_pool", "--epochs", "1", "--protocol", "column", "--overwrite", "--device", "cpu"]
    return ["train", str(manifest), str(store), "--out", str(out), *options]


def of_store(name: str, *more: str) -> Callable[[Path, int], list[str]]:
    return lambda folder, clips: ["features", name, str(folder / "store.zarr"), *more]


def pack(folder: Path, clips: int) -> list[str]:
    shutil.rmtree(folder / "store.pack", ignore_errors=True)
    return ["features", "pack", str(folder / "store.zarr"), "-o", str(folder / "store.pack")]


def cache_of(folder: Path) -> Path:
    """Return the cache of one size: what is deleted for one must not cost another its index."""
    return folder / "cache"


def resume(folder: Path, clips: int) -> list[str]:
    options = [*NET, "--num-clips", str(clips)]
    return ["extract", str(folder / "people.csv"), str(folder / "store.zarr"), *options]


def resume_without_index(folder: Path, clips: int) -> list[str]:
    shutil.rmtree(cache_of(folder), ignore_errors=True)
    return resume(folder, clips)


# Work -> its command, given the folder of a size and the clips of a video.
OF_ROWS: dict[str, Callable[[Path, int], list[str]]] = {
    "check": lambda folder, clips: ["manifest", "check", str(folder / "people.csv")],
    "holdout": splits("holdout", "people"),
    "holdout_of_files": splits("holdout", "plain"),
    "holdout_with_validation": splits("holdout", "plain", "--val-fraction", "0.2"),
    "kfold": splits("group_kfold", "people"),
    "one_group_out": splits("leave_one_group_out", "groups"),
    "official_lists": splits("ucf101", "groups"),
    "cross_subject": splits("xsub", "people"),
    "column": splits("column", "people"),
}
OF_STORES: dict[str, Callable[[Path, int], list[str]]] = {
    "resume": resume_without_index,
    "resume_again": resume,
    "list": of_store("list"),
    "show": of_store("show"),
    "verify": of_store("verify"),
    "pack": pack,
    "train": train,
}


def exponent(before: dict[str, float], now: dict[str, float], start: dict[str, float]) -> float | None:
    """Return the exponent of the CPU seconds between two sizes, those of the start taken off; None if they are too few."""
    first, second = before["cpu_s"] - start["cpu_s"], now["cpu_s"] - start["cpu_s"]
    if min(first, second) < LEAST_S:
        return None
    return round(math.log(second / first) / math.log(now["size"] / before["size"]), 2)


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return for each size the medians of a work's CPU seconds, wall seconds and peak memory."""
    found: list[dict[str, Any]] = []
    for size in sorted(args.sizes):
        folder = args.folder / f"{size}"
        if name in OF_STORES and size > args.largest:
            continue
        work = (OF_STORES if name in OF_STORES else OF_ROWS)[name]
        os.environ["HAR_CACHE"] = str(cache_of(folder).absolute())
        rounds = [run([*HAR, *work(folder, args.clips)]) for _ in range(args.rounds)]
        cpu, wall, peak = (statistics.median(values) for values in zip(*rounds, strict=True))
        row: dict[str, Any] = {"size": size, "cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "peak_mb": round(peak)}
        if found:
            row["exponent"] = exponent(found[-1], row, found[0])
            if name == "train":
                more = (size - found[0]["size"]) * args.clips * FEATURE_BYTES
                row["over_features"] = round((peak - found[0]["peak_mb"]) * 1e6 / more, 2)
        found.append(row)
        print(f"{name}: {row}", file=sys.stderr, flush=True)
    return found


def make(args: argparse.Namespace, size: int) -> None:
    """Write the manifests and, up to `--largest`, the store of a size, where they are missing."""
    folder = args.folder / f"{size}"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_manifests(folder, size)
        (folder / "made").touch()
    if size <= args.largest and not (folder / f"store_made_{args.clips}").exists():
        shutil.rmtree(folder / "store.zarr", ignore_errors=True)
        shutil.rmtree(folder / "one", ignore_errors=True)
        write_store(folder, size, args.clips)
        (folder / f"store_made_{args.clips}").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = [*OF_ROWS, *OF_STORES]
    parser.add_argument("--folder", type=Path, default=Path("scale_out"), help="what is made here is kept")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--largest", type=int, default=10_000, help="largest size that gets a store")
    parser.add_argument("--clips", type=int, default=20, help="of a video; each is 2,560 bytes")
    parser.add_argument("--only", nargs="+", choices=works, default=works, help="which works; all by default")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--make", type=int, help="write what one size needs, and measure nothing")
    args = parser.parse_args()
    if args.make is not None:
        make(args, args.make)
        return
    for size in args.sizes:
        options = ["--folder", str(args.folder), "--largest", str(args.largest), "--clips", str(args.clips)]
        run([sys.executable, __file__, *options, "--make", str(size)])
    result = {name: measure(name, args) for name in args.only}
    print(json.dumps({"benchmark": "scale", "clips": args.clips, "works": result}, indent=2))


if __name__ == "__main__":
    main()
