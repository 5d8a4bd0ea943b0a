"""Reads the lists that data sets publish with their videos: KTH's sequences, UCF-101's and HMDB-51's splits."""

from __future__ import annotations

import re
from pathlib import Path

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.kinds import what_is

_KTH_NAME = re.compile(r"person\d\d_[a-z]+_d[1-4]")


def read_kth_sequences(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Return file name -> [(first, last)], 1-based and inclusive, of KTH's `00sequences.txt`.

    The file marked `*missing*` is left out. Ranges that overlap by a frame or are out of order are returned as listed.
    Raises: ManifestError if the file is missing, or a line is malformed or has an empty range.
    """
    listed: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(_read_lines(path), 1):
        words = line.split()
        if not words or not _KTH_NAME.fullmatch(words[0]) or words[1:2] == ["*missing*"]:
            continue
        ranges = re.findall(r"(\d+)\s*-\s*(\d+)", line.split("frames", 1)[-1])
        if "frames" not in line or not ranges:
            raise ManifestError(f"{path}: line {number} lists no frames: {line.strip()!r}")
        if any(not 1 <= int(first) <= int(last) for first, last in ranges):
            raise ManifestError(
                f"{path}: line {number} has an empty range or one that begins before 1: {line.strip()!r}"
            )
        listed[words[0]] = [(int(first), int(last)) for first, last in ranges]
    if not listed:
        raise ManifestError(f"{path}: names no KTH file; a line looks like `person01_boxing_d1  frames  1-95, 96-185`")
    return listed


def read_ucf101_lists(folder: Path) -> dict[str, dict[str, str]]:
    """Return file stem in lower case -> {x_split1: train or test, ...} of `trainlist0N.txt` and `testlist0N.txt`.

    Lower case, because copies of the data set spell HandstandPushups in different ways.
    Raises: ManifestError if one of the six lists is missing.
    """
    _check_folder(folder)
    listed: dict[str, dict[str, str]] = {}
    for number in (1, 2, 3):
        for part in ("train", "test"):
            for line in _read_lines(folder / f"{part}list{number:02d}.txt"):
                if line.strip():
                    stem = line.split()[0].rsplit("/", 1)[-1].removesuffix(".avi")
                    listed.setdefault(stem.lower(), {})[f"x_split{number}"] = part
    return listed


def read_hmdb51_lists(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return (class, file name) -> {x_splitN: part}; the lists' flags are 0 = unused, 1 = train, 2 = test.

    Raises: ManifestError if there is no list, or a line has no such flag.
    """
    _check_folder(folder)
    parts = {"0": "unused", "1": "train", "2": "test"}
    listed: dict[tuple[str, str], dict[str, str]] = {}
    for number in (1, 2, 3):
        for path in sorted(folder.glob(f"*_test_split{number}.txt")):
            label = path.name.removesuffix(f"_test_split{number}.txt")
            for row, line in enumerate(_read_lines(path), 1):
                name, _, flag = line.strip().rpartition(" ")
                if not line.strip():
                    continue
                if flag not in parts:
                    raise ManifestError(f"{path}: line {row} must end in the flag 0, 1 or 2: {line.strip()!r}")
                listed.setdefault((label, name.strip()), {})[f"x_split{number}"] = parts[flag]
    if not listed:
        raise ManifestError(f"{folder}: no list such as wave_test_split1.txt; download the data set's official lists")
    return listed


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ManifestError(f"{folder} is {what_is(folder)}, not the folder of the data set's official lists")


def _read_lines(path: Path) -> list[str]:
    if path.is_dir():
        raise ManifestError(f"{path} is a folder, not the list itself")
    if not path.is_file():
        raise ManifestError(f"{path}: no such list; download the data set's official lists")
    # Decoded like file names, so that any name in a list matches its file.
    return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
