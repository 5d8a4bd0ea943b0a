"""Kills, full disks, reads that fail or hang, broken files: what `har` loses, gets wrong or keeps silent. Prints JSON.

The embedded data set is rendered, and every command is run undisturbed. Then, each with the same command again afterwards:
`kills`: SIGKILL at random moments, up to three before the command may end; `writers`: three processes at once on one store,
two broken files among its videos; `full_disk`: the disk is full half-way, later it is not; `failed_reads`: the disk gives an
error for some files; `hanging_reads`: FIFOs that nobody writes to; `broken_files`: cut, zeroed, empty or of another kind
than they say, pictures of depth also with flipped bits. Every result is compared with the undisturbed one: features,
frames, packs, reductions, weights and scores bit for bit. Of each it counts
    lost        results that are not there in the end, and videos of a broken file's neighbours
    wrong       results that differ
    silent      commands that ended with exit code 0 though something was missing, and broken files that are not named
    tracebacks  commands that wrote one, and such as ended by a signal of their own
    hung        commands that took longer than five minutes, and workers that outlived a killed command
    debris      files that an undisturbed run does not leave
The exit code is 1 if any of them is not 0. `ways` says how the disk was filled and the reads made to fail: as root on Linux
with a small tmpfs and a loop device that shrinks (ENOSPC, EIO), else with a limit on file sizes (EFBIG) and /proc/self/mem.

    python benchmarks/faults.py
    python benchmarks/faults.py --quick
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from copies import Copies, Copy, started_copies

from har_pipeline import (
    HarError,
    VideoRecord,
    open_features,
    read_manifest,
    write_manifest,
)

KILLS = {"extract": 40, "train": 10, "frames": 10, "train-video": 10, "reduce": 10, "pack": 10, "sweep": 10}
SHORT = ("extract", "train", "frames", "reduce", "pack")  # commands that end within seconds
KINDS = ("lost", "wrong", "silent", "tracebacks", "hung", "debris")
Results = dict[str, str]


@dataclass
class Counts:
    """What happened under one fault."""

    tried: int = 0
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    # What is behind the numbers, a line each.
    told: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str) -> None:
        """Count one of a kind."""
        self.found[kind] += 1
        self.told.append(f"{kind}: {what}")

    def ended(self, copy: Copy, expected: Sequence[int] = (0,)) -> int | None:
        """Wait for a command and count how it ended; returns its exit code."""
        code, name = copy.wait(), " ".join(copy.command)
        if code is None:
            self.add("hung", name)
        elif code < 0 or "Traceback (most recent call last)" in copy.text():
            self.add("tracebacks", f"{name}: exit {code}: {copy.text()[-2000:]}")
        elif code not in expected:
            self.add("lost" if code else "silent", f"{name}: exit {code}: {copy.text()[-500:]}")
        return code

    def compare(self, found: Results, expected: Results, what: str) -> None:
        """Count the results that are missing or differ."""
        for name, value in expected.items():
            if name not in found:
                self.add("lost", f"{name} ({what})")
            elif found[name] != value:
                self.add("wrong", f"{name} ({what})")

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, and what is behind them."""
        return {"tried": self.tried, **self.found, **({"told": self.told} if self.told else {})}


def results(folder: Path) -> Results:
    """Return a hash of everything of value below a folder: features of stores and packs, weights and scores of runs."""
    found: Results = {}
    for parent, names, files in os.walk(folder):
        inside = Path(parent)
        if inside.suffix in (".zarr", ".pack"):
            names.clear()
            with contextlib.suppress(HarError):  # not one yet
                found |= {f"{inside.relative_to(folder)}/{name}": value for name, value in stored(inside)}
        elif not any(part.startswith(".") for part in inside.relative_to(folder).parts):
            for file in (inside / name for name in files if name == "scores.csv" or name.endswith(".safetensors")):
                found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def stored(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and a hash of each video of a store or pack, and of each reduction's arrays."""
    reader = open_features(path)
    for name in reader.feature_sets():
        for video_id in reader.video_ids(name):
            try:
                record = reader.read(name, video_id, check=True)
                arrays = {"features": record.features, "starts": record.clip_starts, "ends": record.clip_ends}
                yield f"{name}/{video_id}", hash_of(arrays)
            except HarError as error:
                yield f"{name}/{video_id}", f"unreadable: {error}"
        if reader.spec(name).reduction is not None:
            yield f"{name}: reduction", hash_of(reader.read_fit(name))


def hash_of(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def disk_bytes(folder: Path) -> int:
    """Return what the files of a folder take on a disk, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@dataclass
class Job:
    """A command, what it needs, and what it leaves when nothing disturbs it."""

    name: str
    # From the folder of the results to the arguments.
    arguments: Callable[[Path], Sequence[object]]
    # Puts into that folder what has to be there before.
    prepare: Callable[[Path], object] = lambda folder: None
    seconds: float = 0.0
    expected: Results = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    # On a disk, before and afterwards.
    bytes_before: int = 0
    bytes_after: int = 0

    def start(self, copies: Copies, folder: Path, limits: dict[str, int] | None = None) -> Copy:
        """Start the command."""
        return copies.start(*self.arguments(folder), limits=limits)

    def fresh(self, folder: Path) -> Path:
        """Return a new folder with what has to be there."""
        folder.mkdir(parents=True)
        self.prepare(folder)
        return folder

    def run_undisturbed(self, copies: Copies, folder: Path) -> Path:
        """Set what the command takes and leaves; returns the folder."""
        self.bytes_before = disk_bytes(self.fresh(folder))
        started = time.perf_counter()
        copy = self.start(copies, folder)
        if copy.wait() != 0:
            sys.exit(f"undisturbed, {self.name} failed: {copy.text()}")
        self.seconds, self.expected, self.files = time.perf_counter() - started, results(folder), files(folder)
        self.bytes_after = disk_bytes(folder)
        return folder

    def finish(self, copies: Copies, folder: Path, counts: Counts, what: str) -> None:
        """Run the command to its end and compare everything; the folder is deleted."""
        code = counts.ended(self.start(copies, folder))
        before = len(counts.told)
        counts.compare(results(folder), self.expected, what)
        if code == 0 and len(counts.told) > before:
            counts.add("silent", f"{self.name} ({what})")
        for name in sorted(files(folder) - self.files):
            counts.add("debris", f"{name} ({what})")
        shutil.rmtree(folder)


class Bench:
    """The data, the commands, and the faults they meet."""

    def __init__(self, folder: Path, copies: Copies, quick: bool, seed: int) -> None:
        self.folder, self.copies, self.quick = folder, copies, quick
        self.rng = random.Random(seed)
        self.numbers = iter(range(10**6))
        self.ways: dict[str, str] = {}
        self.records = self.render()
        self.manifest = self.write_manifest("manifest.csv", self.records)
        # Spread over the whole video, so that all of a file is read.
        self.options = ("--sampling", "uniform", "--num-clips", 2 if quick else 4, "--device", "cpu", "--batch-size", 4)
        extract = Job("extract", lambda out: ("extract", self.manifest, out / "store.zarr", *self.options))
        frames = Job("frames", lambda out: ("frames", self.manifest, out / "frames.zarr", "--size", 48))
        self.jobs = {job.name: job for job in (extract, frames)}
        store, raw = (self.undisturbed(job) for job in (extract, frames))
        one_split = ("--protocol", "leave_one_subject_out", "--device", "cpu")
        split = (*one_split, "--split", "all")
        small = ("--units", 16, "--epochs", 4 if quick else 20)
        video = (
            "--width",
            0.05,
            "--epochs",
            2 if quick else 3,
            "--store",
            raw / "frames.zarr",
            "--workers",
            1,
            "--val-fraction",
            0,
        )
        features = store / "store.zarr"

        def with_store(out: Path) -> None:
            shutil.copytree(features, out / "store.zarr")

        reduce = ("--manifest", self.manifest, "--dim", 4, *one_split[:2], "--split", "all")
        others = (
            Job("train", lambda out: ("train", self.manifest, features, "-o", out / "run", *split, *small)),
            Job("train-video", lambda out: ("train-video", self.manifest, "-o", out / "run", *one_split, *video)),
            Job("reduce", lambda out: ("features", "reduce", out / "store.zarr", *reduce), with_store),
            Job("pack", lambda out: ("features", "pack", features, "-o", out / "store.pack")),
            Job(
                "sweep",
                lambda out: ("sweep", self.manifest, features, "-o", out / "sweep", *split, *small[2:], "--units", "8,16",
                             "--val-fraction", 0, "--workers", 1),
            ),
        )  # fmt: skip
        for job in others:
            if job.name in SHORT or not quick:
                self.jobs[job.name] = job
                self.undisturbed(job)

    def new(self, name: str) -> Path:
        """Return a path that was not used before."""
        return self.folder / f"{name}{next(self.numbers)}"

    def undisturbed(self, job: Job) -> Path:
        """Run a command undisturbed in a new folder, which stays."""
        return job.run_undisturbed(self.copies, self.new(job.name))

    def render(self) -> list[VideoRecord]:
        """Return the rendered videos: people doing all actions, outdoors, with depth."""
        data = self.folder / "data"
        people = 1 if self.quick else 3
        copy = self.copies.start("synth", data, "--subjects", people, "--scenario", "d1", "--depth")
        if copy.wait() != 0:
            sys.exit(copy.text())
        records = read_manifest(data / "manifest.csv")
        if not self.quick:
            return records
        # Nothing here depends on what they do: six videos are three people and two classes.
        return [
            dataclasses.replace(record, subject=f"person{number // 2}", label=("one", "other")[number % 2])
            for number, record in enumerate(records)
        ]

    def write_manifest(self, name: str, records: Sequence[VideoRecord]) -> Path:
        """Write a manifest beside the data."""
        write_manifest(self.folder / name, records)
        return self.folder / name

    def kills(self, name: str, wanted: int) -> Counts:
        """Kill a command `wanted` times at moments drawn evenly from its whole time."""
        job, counts = self.jobs[name], Counts()
        while counts.tried < wanted:
            folder, moments = job.fresh(self.new(name)), []
            for _ in range(min(self.rng.choice((1, 1, 2, 3)), wanted - counts.tried)):
                moments.append(self.rng.uniform(0, job.seconds))
                copy = job.start(self.copies, folder)
                time.sleep(moments[-1])
                if copy.kill() != -9:
                    break  # it had ended
                counts.tried += 1
                if not copy.orphans_end():
                    counts.add("hung", f"a worker of {name}, killed after {moments[-1]:.2f} s")
            times = ", ".join(f"{moment:.2f}" for moment in moments)
            job.finish(self.copies, folder, counts, f"killed after {times} s of {job.seconds:.2f}")
        return counts

    def writers(self) -> Counts:
        """Let three processes write into one store, of whose videos two are broken, and three train one run."""
        counts = Counts()
        broken = []
        for number, record in enumerate(self.records[:2]):
            path = self.folder / f"broken{number}.avi"
            path.write_bytes(b"" if number else b"no video" * 100)
            depth = self.folder / f"broken{number}.mat"
            depth.write_bytes(b"no depth" * 100)
            broken.append(dataclasses.replace(record, video_id=f"broken{number}", path=path, depth_path=depth))
        manifest = self.write_manifest("with_broken.csv", [broken[0], *self.records, broken[1]])
        for name in ("extract",) if self.quick else ("extract", "frames"):
            job, folder = self.jobs[name], self.new("writers")
            job.fresh(folder)
            arguments = [manifest if argument == self.manifest else argument for argument in job.arguments(folder)]
            copies = [self.copies.start(*arguments) for _ in range(3)]
            counts.tried += 3
            for copy in copies:
                counts.ended(copy, (1,))
                for record in broken:
                    if record.video_id not in copy.text():
                        counts.add("silent", f"{name}: {record.video_id} is not named: {copy.text()[-500:]}")
            counts.compare(results(folder), job.expected, f"three writers, {name}")
            for stray in sorted(files(folder) - job.files):
                if "broken" not in stray and "_failures" not in stray:
                    counts.add("debris", f"{stray} (three writers, {name})")
            shutil.rmtree(folder)
        for name in () if self.quick else ("reduce", "pack"):
            job, folder = self.jobs[name], self.jobs[name].fresh(self.new("writers"))
            copies = [job.start(self.copies, folder) for _ in range(3)]
            counts.tried += 3
            for copy in copies:
                counts.ended(copy, (0, 1))
            job.finish(self.copies, folder, counts, f"three writers, {name}")
        job, folder = self.jobs["train"], self.new("writers")
        folder.mkdir()
        copies = [job.start(self.copies, folder) for _ in range(3)]
        counts.tried += 3
        codes = [counts.ended(copy, (0, 1)) for copy in copies]
        if 0 not in codes:
            counts.add("lost", f"of three trainings none ended: {codes}")
        job.finish(self.copies, folder, counts, "three writers, train")
        return counts

    def full_disk(self, names: Sequence[str]) -> Counts:
        """Fill the disk half-way, then make room."""
        counts = Counts()
        for name in names:
            job = self.jobs[name]
            with self.small_disk((job.bytes_before + job.bytes_after) // 2) as (folder, limits, make_room):
                job.prepare(folder)
                copy = job.start(self.copies, folder, limits)
                counts.tried += 1
                code = counts.ended(copy, (1,))
                if code == 1 and not copy.err.read_text().strip():
                    counts.add("silent", f"{name}: exit 1 without a word on a full disk")
                make_room()
                kept = self.new("after")
                shutil.copytree(folder, kept)
            job.finish(self.copies, kept, counts, "full disk")
        return counts

    @contextlib.contextmanager
    def small_disk(self, size: int) -> Iterator[tuple[Path, dict[str, int] | None, Callable[[], object]]]:
        """Give a folder on a disk of `size` bytes, limits for who writes there, and what makes room."""
        folder = self.new("disk")
        folder.mkdir()
        if mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
            self.ways["full_disk"] = "ENOSPC: tmpfs of half the size"
            try:
                yield folder, None, lambda: mount("-o", "remount,size=512m", folder)
            finally:
                subprocess.run(["umount", str(folder)], check=True)
        else:
            self.ways["full_disk"] = "EFBIG: RLIMIT_FSIZE, as no tmpfs may be mounted"
            yield folder, {"RLIMIT_FSIZE": 2048}, lambda: None

    def failed_reads(self) -> Counts:
        """Three videos on a disk whose last part is gone, two elsewhere; and a store there that is only read."""
        counts, good = Counts(), self.records[-2:]
        bad = self.records[:3]
        with self.bad_disk(bad) as paths:
            gone = [dataclasses.replace(r, path=path) for r, path in zip(bad, paths, strict=True)]
            self.broken_among(gone, good, counts, "read error", flow=not self.quick)
        return counts

    @contextlib.contextmanager
    def bad_disk(self, records: Sequence[VideoRecord]) -> Iterator[list[Path]]:
        """Give the videos' files on a disk that cannot read them any more."""
        folder, image = self.new("disk"), self.new("image")
        folder.mkdir()
        with open(image, "wb") as file:
            file.truncate(64 * 2**20)
        device = ""
        if os.geteuid() == 0 and shutil.which("losetup") and shutil.which("mkfs.ext4"):
            subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
            done = subprocess.run(["losetup", "-f", "--show", str(image)], check=False, capture_output=True, text=True)
            device = done.stdout.strip()
        if device and mount(device, folder):
            self.ways["failed_reads"] = "EIO: a loop device that shrinks under its file system"
            try:
                paths = []
                for record in records:
                    assert record.path is not None
                    # Behind 40 MB, which stay readable, as do all folders.
                    (folder / f"{record.video_id}.fill").write_bytes(bytes(4 * 2**20))
                    paths.append(Path(shutil.copy(record.path, folder / f"{record.video_id}.avi")))
                subprocess.run(["umount", str(folder)], check=True)
                mount("-o", "ro", device, folder)
                os.truncate(image, 2 * 2**20)
                subprocess.run(["losetup", "-c", device], check=True)
                yield paths
            finally:
                subprocess.run(["umount", str(folder)], check=True)
                subprocess.run(["losetup", "-d", device], check=True)
        else:
            self.ways["failed_reads"] = "EIO: links to /proc/self/mem, as no loop device may be made"
            paths = [folder / f"{record.video_id}.avi" for record in records]
            for path in paths:
                path.symlink_to("/proc/self/mem")
            yield paths

    def hanging_reads(self) -> Counts:
        """Two FIFOs that nobody writes to, one that somebody holds open, among good videos, with a limit of 3 s."""
        counts, bad = Counts(), []
        for number, record in enumerate(self.records[:3]):
            path = self.folder / f"fifo{number}.avi"
            os.mkfifo(path)
            bad.append(dataclasses.replace(record, path=path))
        held = os.open(bad[0].path or "", os.O_RDWR)
        try:
            self.broken_among(bad, self.records[-2:], counts, "hanging read", flow=True, more=("--time-limit", 3))
        finally:
            os.close(held)
        return counts

    def broken_among(
        self,
        bad: Sequence[VideoRecord],
        good: Sequence[VideoRecord],
        counts: Counts,
        what: str,
        *,
        flow: bool,
        more: Sequence[object] = (),
    ) -> None:
        """Extract bad videos among good ones: the bad ones are named, the good ones are as ever."""
        manifest = self.write_manifest(f"{what.replace(' ', '_')}.csv", [*bad[:1], *good, *bad[1:]])
        by_flow = ("--extractor", "tsn_efficientnet_lite0", "--stream", "flow", "--flow-method", "farneback")
        cached = ("--resize", "stretch-224", "--flow-cache", self.new("flow"))
        for options in ((), (*by_flow, *cached)) if flow else ((),):
            folder = self.new("broken")
            folder.mkdir()
            arguments = ("extract", manifest, folder / "store.zarr", *self.options, "--json", *options, *more)
            copy = self.copies.start(*arguments)
            counts.tried += len(bad)
            counts.ended(copy, (1,))
            for record in bad:
                if str(record.path) not in copy.err.read_text():
                    counts.add("silent", f"{record.path} is not named ({what}): {copy.text()[-500:]}")
            kept = {video.video_id for video in good}
            if options:
                done = {name.rsplit("/", 1)[1] for name in results(folder)}
                for video_id in sorted(kept - done):
                    counts.add("lost", f"flow of {video_id} ({what})")
            else:
                expected = self.jobs["extract"].expected
                own = {name: value for name, value in expected.items() if name.rsplit("/", 1)[1] in kept}
                counts.compare(results(folder), own, what)
            shutil.rmtree(folder)

    def broken_files(self, videos: int, depths: int) -> Counts:
        """Make broken copies of videos and depth folders; each fails by name, or has a note, or the whole file's values."""
        counts = Counts()
        broken = [self.break_video(number) for number in range(videos)]
        self.judge(broken, "extract", (*self.options, "--json"), counts)
        broken = [self.break_depth(number) for number in range(depths)]
        self.judge(broken, "frames", ("--size", 48, "--json"), counts)
        return counts

    def judge(self, broken: list[tuple[VideoRecord, str]], name: str, more: tuple[object, ...], counts: Counts) -> None:
        """Let a command read broken copies, each given with the id of the whole one."""
        job, folder = self.jobs[name], self.new("broken")
        folder.mkdir()
        manifest = self.write_manifest(f"broken_{name}.csv", [record for record, _ in broken])
        store = folder / next(iter(job.expected)).split("/")[0]
        copy = self.copies.start(name, manifest, store, *more)
        counts.tried += len(broken)
        if counts.ended(copy, (0, 1)) is None:
            return
        summary = json.loads(copy.out.read_text() or "{}")
        told = {**summary.get("failed", {}), **summary.get("notes", {})}
        found = {key.rsplit("/", 1)[1]: value for key, value in results(folder).items()}
        expected = {key.rsplit("/", 1)[1]: value for key, value in job.expected.items()}
        for record, whole in broken:
            if record.video_id in summary.get("failed", {}):
                if record.video_id in found:
                    counts.add("wrong", f"{record.video_id} failed, and has features")
            elif record.video_id not in found:
                counts.add("lost", f"{record.video_id}: neither features nor a reason")
            elif record.video_id not in told and found[record.video_id] != expected[whole]:
                counts.add("silent", f"{record.video_id}: other features than the whole file's, and no note")
        shutil.rmtree(folder)

    def break_video(self, number: int) -> tuple[VideoRecord, str]:
        """Return a record of a broken copy of a video, and the id of the whole one."""
        record = self.records[number % len(self.records)]
        assert record.path is not None
        data = bytearray(record.path.read_bytes())
        # No flipped bits: a codec without checksums takes most of them for a picture, see docs/video-files.md.
        how = ("cut", "zeroed", "empty", "text", "suffix")[number % 5]
        suffix = self.rng.choice((".mp4", ".mkv", ".txt", "")) if how == "suffix" else record.path.suffix
        path = self.folder / f"video{number}_{how}{suffix}"
        path.write_bytes(self.damage(data, how))
        return dataclasses.replace(record, video_id=f"{how}{number}", path=path), record.video_id

    def break_depth(self, number: int) -> tuple[VideoRecord, str]:
        """Return a record of a copy of a depth folder with one broken picture, and the id of the whole one."""
        record = self.records[number % len(self.records)]
        assert record.depth_path is not None
        how = ("cut", "zeroed", "flipped", "empty", "text", "suffix")[number % 6]
        folder = self.folder / f"depth{number}_{how}"
        shutil.copytree(record.depth_path, folder)
        picture = self.rng.choice(sorted(folder.iterdir()))
        if how == "suffix":
            picture.rename(picture.with_suffix(".txt"))
        else:
            picture.write_bytes(self.damage(bytearray(picture.read_bytes()), how))
        return dataclasses.replace(record, video_id=f"{how}{number}", depth_path=folder), record.video_id

    def damage(self, data: bytearray, how: str) -> bytes:
        """Return the content of a file, damaged."""
        start = self.rng.randrange(len(data))
        if how == "cut":
            return bytes(data[:start])
        if how == "zeroed":
            length = min(self.rng.choice((16, 512, 4096)), len(data) - start)
            data[start : start + length] = bytes(length)
        elif how == "flipped":
            for _ in range(8):
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        return {"empty": b"", "text": b"this is no video\n" * 100}.get(how, bytes(data))


def mount(*arguments: object) -> bool:
    """Run mount(8); returns whether it may and can."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    return subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True).returncode == 0


def run(folder: Path, quick: bool, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    with started_copies(folder / "written") as copies:
        bench = Bench(folder, copies, quick, seed)
        found: dict[str, Counts] = {}

        def note(name: str, counts: Counts) -> None:
            found[name] = counts
            numbers = ", ".join(f"{key} {value}" for key, value in counts.found.items())
            print(f"{time.perf_counter() - started:.0f} s, {name}: {counts.tried} tried, {numbers}", file=sys.stderr)
            for line in counts.told:
                print(f"    {line}", file=sys.stderr)

        for name in SHORT if quick else KILLS:
            note(f"kills of {name}", bench.kills(name, KILLS[name] // 20 or 1 if quick else KILLS[name]))
        note("writers", bench.writers())
        note("full_disk", bench.full_disk(("extract", "train") if quick else tuple(KILLS)))
        note("failed_reads", bench.failed_reads())
        note("hanging_reads", bench.hanging_reads())
        note("broken_files", bench.broken_files(*((5, 3) if quick else (48, 12))))
    return {
        "benchmark": "faults",
        "seed": seed,
        "ways": bench.ways,
        "seconds": round(time.perf_counter() - started),
        "faults": {name: counts.to_dict() for name, counts in found.items()},
        "all": {kind: sum(counts.found[kind] for counts in found.values()) for kind in KINDS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, of short commands, in about a minute")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), arguments.quick, arguments.seed)
    print(json.dumps(result, indent=2))
    sys.exit(any(result["all"].values()))


if __name__ == "__main__":
    main()
