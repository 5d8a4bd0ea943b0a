"""Manifests from the folder and file names of published data sets, and of any folder with one subfolder per class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from har_pipeline.errors import ManifestError
from har_pipeline.records import VideoRecord

VIDEO_SUFFIXES = frozenset(".avi .mp4 .mkv .mov .mpg .mpeg .m4v .webm .wmv .flv .3gp .ts".split())
KTH_ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
KTH_MISSING = "person13_handclapping_d3"
UT_INTERACTION_LABELS = ("shake_hands", "hug", "kick", "point", "punch", "push")
DATASETS = ("folder", "kth", "ucf11", "ucf101", "hmdb51", "ntu", "ut_interaction", "utd_mhad")

_KTH = re.compile(r"(person\d\d)_([a-z]+)_(d[1-4])(?:_uncomp)?")
_UCF11 = re.compile(r"v_(.+)_(\d\d)_(\d\d)")
_UCF101 = re.compile(r"v_(.+)_(g\d\d)_(c\d\d)")
_HMDB_TAIL = re.compile(r"_[a-z]_(?:nm|cm)_np\d_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+$")
_NTU = re.compile(r"(S\d{3})(C\d{3})(P\d{3})(R\d{3})(A\d{3})")
_UT_INTERACTION = re.compile(r"(\d+)_(\d+)_([0-5])")
_UTD_MHAD = re.compile(r"a(\d+)_(s\d+)_(t\d+)_depth")


def escape_id(text: str) -> str:
    """Return a legal video_id for a relative path: `/` becomes `__`, other illegal characters `-xHH` per UTF-8 byte.

    Raises: ManifestError if it is longer than 200 characters.
    """

    def escaped(match: re.Match[str]) -> str:
        return "".join(f"-x{byte:02X}" for byte in match[0].encode())

    name = re.sub(r"[^A-Za-z0-9._-]", escaped, text.replace("/", "__"))
    if not name[:1].isalnum():
        name = f"v{name}"
    if len(name) > 200:
        raise ManifestError(f"{text!r}: the id made of it has {len(name)} characters, at most 200 are allowed")
    return name


def _videos(root: Path) -> list[Path]:
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder")
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())


def _matching(paths: Iterable[Path], pattern: re.Pattern[str], example: str, root: Path) -> list[tuple[Path, re.Match[str]]]:
    """Return the files whose stem fits. Raises: ManifestError if none does."""
    found = [(path, match) for path in paths if (match := pattern.fullmatch(path.stem))]
    if not found:
        raise ManifestError(f"{root}: no file is named as in {example}; for other names use `har manifest build folder`")
    return found


def build_folder(root: Path) -> list[VideoRecord]:
    """Return one record per video file; its class is the first folder below `root`."""
    root = root.expanduser().resolve()
    records = []
    for path in _videos(root):
        relative = path.relative_to(root)
        if len(relative.parts) < 2:
            raise ManifestError(f"{path}: lies in no class folder; put each class's videos into a folder of its name")
        name = escape_id(relative.with_suffix("").as_posix())
        records.append(VideoRecord(video_id=name, label=relative.parts[0], path=path))
    return records


def build_kth(root: Path, sequences: Path | None = None) -> list[VideoRecord]:
    """Return KTH's files, or their sequences if `00sequences.txt` is given.

    Source: Schuldt 2004: 25 persons, 6 actions, 4 scenarios, 599 files; the list's frames are 1-based and inclusive.
    """
    listed = read_kth_sequences(sequences) if sequences else None
    records = []
    for path, match in _matching(_videos(root), _KTH, "person01_boxing_d1_uncomp.avi", root):
        name = f"{match[1]}_{match[2]}_{match[3]}"
        record = VideoRecord(
            video_id=name, label=match[2], path=path, subject=match[1], group=match[1], scenario=match[3]
        )
        if listed is None:
            records.append(record)
            continue
        if name not in listed:
            raise ManifestError(f"{sequences}: has no line for {name} ({path})")
        for number, (first, last) in enumerate(listed[name], 1):
            records.append(replace(record, video_id=f"{name}_s{number}", start_frame=first - 1, end_frame=last))
    return records


def read_kth_sequences(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Return file name -> [(first, last)], 1-based and inclusive, of KTH's `00sequences.txt`; missing files are left out.

    Raises: ManifestError on a line of another form.
    """
    listed: dict[str, list[tuple[int, int]]] = {}
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1):
        words = line.split()
        if not words or not _KTH.fullmatch(words[0]) or words[1:2] == ["*missing*"]:
            continue
        ranges = re.findall(r"(\d+)-(\d+)", line.split("frames", 1)[-1])
        if "frames" not in line or not ranges:
            raise ManifestError(f"{path}: line {number} lists no frames: {line.strip()!r}")
        listed[words[0]] = [(int(first), int(last)) for first, last in ranges]
    return listed


def kth_rule_records(root: Path) -> list[VideoRecord]:
    """Return KTH's 599 files as its naming rule gives them, whether or not they are there."""
    return [
        VideoRecord(
            video_id=f"person{person:02d}_{action}_d{scenario}",
            label=action,
            path=root / action / f"person{person:02d}_{action}_d{scenario}_uncomp.avi",
            subject=f"person{person:02d}",
            group=f"person{person:02d}",
            scenario=f"d{scenario}",
        )
        for action in KTH_ACTIONS
        for person in range(1, 26)
        for scenario in range(1, 5)
        if f"person{person:02d}_{action}_d{scenario}" != KTH_MISSING
    ]


def build_ucf11(root: Path) -> list[VideoRecord]:
    """Return UCF-11's files, `<class>/v_<class>_<group>/v_<class>_<group>_<clip>.mpg`; groups g01 to g25.

    Source: Liu 2009. The class is the top folder; the files' own middle part differs from it for some classes.
    """
    root = root.expanduser().resolve()
    records = []
    for path, match in _matching(_videos(root), _UCF11, "biking/v_biking_01/v_biking_01_01.mpg", root):
        relative = path.relative_to(root)
        label = relative.parts[0] if len(relative.parts) > 1 else match[1]
        name = escape_id(f"{label}__{path.stem}")
        records.append(VideoRecord(video_id=name, label=label, path=path, group=f"g{match[2]}"))
    return records


def build_ucf101(root: Path, splits: Path | None = None) -> list[VideoRecord]:
    """Return UCF-101's files; with the folder of official lists also the columns x_split1 to x_split3.

    Source: Soomro 2012; lists trainlist0N.txt and testlist0N.txt.
    """
    records = [
        VideoRecord(video_id=path.stem, label=match[1], path=path, group=match[2])
        for path, match in _matching(_videos(root), _UCF101, "v_ApplyEyeMakeup_g01_c01.avi", root)
    ]
    if splits is None:
        return records
    columns: dict[str, dict[str, str]] = {}
    for number in (1, 2, 3):
        for part in ("train", "test"):
            for line in _read_list(splits / f"{part}list{number:02d}.txt"):
                stem = line.split()[0].rsplit("/", 1)[-1].removesuffix(".avi")
                columns.setdefault(stem, {})[f"x_split{number}"] = part
    return _with_splits(records, [columns.get(record.video_id) for record in records], splits)


def build_hmdb51(root: Path, splits: Path | None = None) -> list[VideoRecord]:
    """Return HMDB-51's files, `<class>/<name>.avi`; the group is the film that the name starts with.

    With the folder of official lists (`<class>_test_split<N>.txt`; 1 = train, 2 = test, 0 = unused) also x_split1 to 3.
    Source: Kuehne 2011.
    """
    root = root.expanduser().resolve()
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for number in (1, 2, 3) if splits else ():
        assert splits is not None
        for path in sorted(splits.glob(f"*_test_split{number}.txt")):
            label = path.name.removesuffix(f"_test_split{number}.txt")
            for line in _read_list(path):
                name, flag = line.rsplit(maxsplit=1)
                part = {"0": "unused", "1": "train", "2": "test"}[flag]
                columns.setdefault((label, name), {})[f"x_split{number}"] = part
    records = []
    for path in _videos(root):
        label = path.parent.name
        name = escape_id(f"{label}__{path.stem}")
        film = re.sub(f"_{re.escape(label)}$", "", _HMDB_TAIL.sub("", path.stem))
        records.append(VideoRecord(video_id=name, label=label, path=path, group=film))
    if splits is None or not records:
        return records
    paths = [record.path for record in records]
    return _with_splits(records, [columns.get((p.parent.name, p.name)) for p in paths if p], splits)


def _read_list(path: Path) -> list[str]:
    if not path.is_file():
        raise ManifestError(f"{path}: no such split file; download the data set's official lists")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _with_splits(records: list[VideoRecord], columns: list[dict[str, str] | None], splits: Path) -> list[VideoRecord]:
    """Return the records with their official parts; a file that no list names is `unused` in all three splits.

    Raises: ManifestError if the lists name none of the files.
    """
    if not any(columns):
        raise ManifestError(f"{splits}: the lists there name none of the {len(records)} files")
    unused = {f"x_split{number}": "unused" for number in (1, 2, 3)}
    return [replace(record, extra=unused | (row or {})) for record, row in zip(records, columns, strict=True)]


def build_ntu(root: Path) -> list[VideoRecord]:
    """Return NTU RGB+D's recordings: `S001C001P001R001A001_rgb.avi` files and masked depth folders of the same name.

    Source: Shahroudy 2016: setup, camera, performer, replication, action.
    """
    root = root.expanduser().resolve()
    rgb = {m[0]: path for path in _videos(root) if (m := _NTU.match(path.stem))}
    depth = {path.name: path for path in sorted(root.rglob("S*")) if path.is_dir() and _NTU.fullmatch(path.name)}
    if not rgb and not depth:
        raise ManifestError(f"{root}: no file or folder is named as in S001C001P001R001A001")
    records = []
    for name in sorted({*rgb, *depth}):
        match = _NTU.fullmatch(name)
        assert match is not None
        records.append(
            VideoRecord(
                video_id=name,
                label=match[5],
                path=rgb.get(name),
                depth_path=depth.get(name),
                subject=match[3],
                camera=match[2],
                extra={"x_setup": match[1], "x_replication": match[4]},
            )
        )
    return records


def build_ut_interaction(root: Path) -> list[VideoRecord]:
    """Return UT-Interaction's segmented clips, `<number>_<sequence>_<label>.avi`; the sequence is the group.

    Source: Ryoo and Aggarwal 2010.
    """
    return [
        VideoRecord(
            video_id=f"ut{int(match[1]):02d}_s{int(match[2]):02d}_{UT_INTERACTION_LABELS[int(match[3])]}",
            label=UT_INTERACTION_LABELS[int(match[3])],
            path=path,
            group=f"seq{int(match[2]):02d}",
        )
        for path, match in _matching(_videos(root), _UT_INTERACTION, "0_1_4.avi", root)
    ]


def build_utd_mhad(root: Path) -> list[VideoRecord]:
    """Return UTD-MHAD's depth arrays, `a1_s1_t1_depth.mat`. Source: Chen 2015."""
    paths = sorted(root.expanduser().resolve().rglob("*_depth.mat"))
    return [
        VideoRecord(
            video_id=path.stem.removesuffix("_depth"),
            label=f"a{int(match[1]):02d}",
            depth_path=path,
            subject=match[2],
            extra={"x_trial": match[3]},
        )
        for path, match in _matching(paths, _UTD_MHAD, "a1_s1_t1_depth.mat", root)
    ]


def build_manifest(
    dataset: str, root: Path, *, sequences: Path | None = None, splits: Path | None = None
) -> list[VideoRecord]:
    """Return the records of a data set folder, sorted by id; `dataset` is one of `DATASETS`.

    Raises: ManifestError if the data set is unknown, nothing fits, two files get one id, or an option does not apply.
    """
    plain = {
        "folder": build_folder,
        "ucf11": build_ucf11,
        "ntu": build_ntu,
        "ut_interaction": build_ut_interaction,
        "utd_mhad": build_utd_mhad,
    }
    if sequences is not None and dataset != "kth":
        raise ManifestError(f"a sequence list belongs to kth, not to {dataset}")
    if splits is not None and dataset not in ("ucf101", "hmdb51"):
        raise ManifestError(f"official split lists are read for ucf101 and hmdb51, not for {dataset}")
    if dataset == "kth":
        records = build_kth(root, sequences)
    elif dataset == "ucf101":
        records = build_ucf101(root, splits)
    elif dataset == "hmdb51":
        records = build_hmdb51(root, splits)
    elif dataset in plain:
        records = plain[dataset](root)
    else:
        raise ManifestError(f"unknown data set {dataset!r}; there are: {', '.join(DATASETS)}")
    if not records:
        raise ManifestError(f"{root}: no video files below it (known endings: {', '.join(sorted(VIDEO_SUFFIXES))})")
    owner: dict[str, VideoRecord] = {}
    for record in records:
        if other := owner.get(record.video_id):
            if (other.path, other.start_frame) != (record.path, record.start_frame):
                raise ManifestError(f"{other.path} and {record.path} both get the id {record.video_id!r}: rename one")
        owner[record.video_id] = record
    return sorted(records, key=lambda record: record.video_id)
