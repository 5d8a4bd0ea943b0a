"""Manifests from the folder and file names of published data sets, and of any folder with one subfolder per class."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.records import VideoRecord
from har_pipeline.datasets.official_lists import read_hmdb51_lists, read_kth_sequences, read_ucf101_lists
from har_pipeline.datasets.protocols import KTH_TEST_PERSONS

KTH_ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")


KTH_MISSING = "person13_handclapping_d3"


UT_INTERACTION_LABELS = ("shake_hands", "hug", "kick", "point", "punch", "push")


UTD_MHAD_LABELS = (
    *("swipe_left", "swipe_right", "wave", "clap", "throw", "arm_cross", "basketball_shoot", "draw_x"),
    *("draw_circle_clockwise", "draw_circle_counter_clockwise", "draw_triangle", "bowling", "boxing"),
    *("baseball_swing", "tennis_swing", "arm_curl", "tennis_serve", "push", "knock", "catch", "pickup_throw"),
    *("jog", "walk", "sit_to_stand", "stand_to_sit", "lunge", "squat"),
)


_KTH = re.compile(r"(person\d\d)_([a-z]+)_(d[1-4])(?:_uncomp)?")


_UCF11 = re.compile(r"v_(.+)_(\d\d)_(\d\d)")


_UCF101 = re.compile(r"v_(.+)_(g\d\d)_(c\d\d)")


_HMDB_TAIL = re.compile(r"_[a-z]_(?:nm|cm)_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+$")


_NTU = re.compile(r"(S\d{3})(C\d{3})(P\d{3})(R\d{3})(A\d{3})(?:_rgb)?")


_UT_INTERACTION = re.compile(r"(\d+)_(\d+)_([0-5])")


_UTD_MHAD = re.compile(r"a0*([1-9]|1\d|2[0-7])_(s\d+)_(t\d+)_depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What some builders read besides the folder; see `build_manifest`."""

    sequences: Path | None = None
    splits: Path | None = None
    split_index: int = 1


def escape_id(text: str) -> str:
    """Return a legal video_id for a relative path: `/` becomes `__`, other illegal characters `-xHH` per UTF-8 byte.

    Names that look escaped already (`-x41`) are escaped too, so that they stay apart; a `v` goes before an id that
    would not begin with a letter or digit. Raises: ManifestError if the id is longer than 200 characters.
    """

    def escaped(match: re.Match[str]) -> str:
        return "".join(f"-x{byte:02X}" for byte in os.fsencode(match[0]))

    name = re.sub(r"[^A-Za-z0-9._-]|-(?=x[0-9A-F]{2})", escaped, text.replace("/", "__"))
    if not name[:1].isalnum():
        name = f"v{name}"
    if len(name) > 200:
        raise ManifestError(
            f"{text!r}: the id made of it has {len(name)} characters, at most 200 are allowed: rename it"
        )
    return name


def _matching(
    paths: Iterable[Path], pattern: re.Pattern[str], example: str, root: Path
) -> list[tuple[Path, re.Match[str]]]:
    """Return the files whose stem fits. Raises: ManifestError if none does."""
    found = [(path, match) for path in paths if (match := pattern.fullmatch(path.stem))]
    if not found:
        raise ManifestError(
            f"{root}: no file is named as in {example}; for other names use `har manifest build folder`"
        )
    return found


def build_folder(root: Path) -> list[VideoRecord]:
    """Return one record per video file; its class is the first folder below `root`."""
    root = root.expanduser().resolve()
    records = []
    for path in videos_below(root):
        relative = path.relative_to(root)
        if len(relative.parts) < 2:
            raise ManifestError(
                f"{path}: lies in no class folder; put each class's videos into a folder of its name "
                "(to classify videos without labels, no manifest is needed: `har predict`)"
            )
        name = escape_id(relative.with_suffix("").as_posix())
        records.append(VideoRecord(video_id=name, label=relative.parts[0], path=path))
    return records


def build_kth(root: Path, sequences: Path | None = None) -> list[VideoRecord]:
    """Return KTH's files, or their sequences if `00sequences.txt` is given.

    Source: Schuldt 2004: 25 persons, 6 actions, 4 scenarios, 599 files; the list's frames are 1-based and inclusive.
    """
    listed = read_kth_sequences(sequences) if sequences else None
    records = []
    for path, match in _matching(videos_below(root), _KTH, "person01_boxing_d1_uncomp.avi", root):
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


def kth_rule_records(root: Path) -> list[VideoRecord]:
    """Return KTH's 599 files as its naming rule gives them, whether or not they are there; `split` as kth_original.

    Source: Schuldt 2004: 25 persons, 6 actions, 4 scenarios; one file was never published.
    """
    return [
        VideoRecord(
            video_id=f"person{person:02d}_{action}_d{scenario}",
            label=action,
            path=root / action / f"person{person:02d}_{action}_d{scenario}_uncomp.avi",
            subject=f"person{person:02d}",
            group=f"person{person:02d}",
            scenario=f"d{scenario}",
            split="test" if person in KTH_TEST_PERSONS else "train",
        )
        for action in KTH_ACTIONS
        for person in range(1, 26)
        for scenario in range(1, 5)
        if f"person{person:02d}_{action}_d{scenario}" != KTH_MISSING
    ]


def build_ucf11(root: Path) -> list[VideoRecord]:
    """Return UCF-11's files, `<class>/v_<class>_<group>/v_<class>_<group>_<clip>.mpg`; groups g01 to g25.

    The class is the folder above the group's folder, for the files' own middle part differs from it in some classes
    (`basketball/v_shooting_01`). Without group folders it is the file's folder, in a flat tree the middle part.
    Source: Liu 2009.
    """
    root = root.expanduser().resolve()
    records = []
    for path, match in _matching(videos_below(root), _UCF11, "biking/v_biking_01/v_biking_01_01.mpg", root):
        folder = path.parent.parent if path.parent.name == f"v_{match[1]}_{match[2]}" else path.parent
        label = match[1] if folder == root else folder.name
        name = escape_id(f"{label}__{path.stem}")
        records.append(VideoRecord(video_id=name, label=label, path=path, group=f"g{match[2]}"))
    return records


def build_ucf101(root: Path, splits: Path | None = None, split_index: int = 1) -> list[VideoRecord]:
    """Return UCF-101's files; with the folder of official lists also the columns x_split1 to x_split3.

    `split` then holds split number `split_index`. Source: Soomro 2012; lists trainlist0N.txt and testlist0N.txt.
    """
    found = _matching(videos_below(root), _UCF101, "v_ApplyEyeMakeup_g01_c01.avi", root)
    records = [
        # The files of this one class are spelled otherwise than the class in the official classInd.txt.
        VideoRecord(video_id=path.stem, label=re.sub("^HandStand", "Handstand", match[1]), path=path, group=match[2])
        for path, match in found
    ]
    if splits is None:
        return records
    listed = read_ucf101_lists(splits)
    return _with_splits(records, [listed.get(record.video_id.lower()) for record in records], splits, split_index)


def build_hmdb51(root: Path, splits: Path | None = None, split_index: int = 1) -> list[VideoRecord]:
    """Return HMDB-51's files, `<class>/<name>.avi`; the group is the film that the name starts with.

    With the folder of official lists (`<class>_test_split<N>.txt`) also x_split1 to x_split3 and `split`, as UCF-101.
    Source: Kuehne 2011.
    """
    listed = read_hmdb51_lists(splits) if splits else {}
    records = []
    for path in videos_below(root):
        label = path.parent.name
        name = escape_id(f"{label}__{path.stem}")
        film = re.sub(f"_{re.escape(label)}$", "", _HMDB_TAIL.sub("", path.stem))
        records.append(VideoRecord(video_id=name, label=label, path=path, group=film))
    if splits is None or not records:
        return records
    columns = [listed.get((record.label, record.path.name)) for record in records if record.path]
    return _with_splits(records, columns, splits, split_index)


def _with_splits(
    records: list[VideoRecord], columns: list[dict[str, str] | None], splits: Path, split_index: int
) -> list[VideoRecord]:
    """Return the records with their official parts; a file that no list names is `unused` in all three splits.

    Raises: ManifestError if the lists name none of the files, or there is no split of that number.
    """
    if split_index not in (1, 2, 3):
        raise ManifestError(f"there are the official splits 1, 2 and 3, not {split_index}")
    if not any(columns):
        raise ManifestError(f"{splits}: the lists there name none of the {len(records)} files")
    unused = {f"x_split{number}": "unused" for number in (1, 2, 3)}
    extras = [unused | (row or {}) for row in columns]
    return [
        replace(record, extra=extra, split=extra[f"x_split{split_index}"])
        for record, extra in zip(records, extras, strict=True)
    ]


def build_ntu(root: Path) -> list[VideoRecord]:
    """Return NTU RGB+D's recordings: `S001C001P001R001A001_rgb.avi` files and depth folders of the same name.

    A recording with colour and depth is one row. Masked depth is preferred where the full depth is there as well.
    Infrared videos (`_ir.avi`) are left out. Raises: ManifestError if one recording is there twice.
    Source: Shahroudy 2016: setup, camera, performer, replication, action.
    """
    root = root.expanduser().resolve()
    rgb: dict[str, Path] = {}
    full: dict[str, Path] = {}
    masked: dict[str, Path] = {}
    for folder, folders, files in walk(root):
        for name in files:
            path = folder / name
            if path.suffix.lower() in VIDEO_SUFFIXES and _NTU.fullmatch(path.stem):
                _add_once(rgb, path.stem[:20], path)
        for name in [name for name in folders if re.fullmatch(r"(?:[SCPRA]\d{3}){5}", name)]:
            _add_once(masked if "masked" in folder.name else full, name, folder / name)
            folders.remove(name)  # thousands of frames each, and no video
    depth = full | masked
    if not rgb and not depth:
        raise ManifestError(f"{root}: no file or folder is named as in S001C001P001R001A001")
    records = []
    for name in sorted({*rgb, *depth}):
        setup, camera, performer, replication, action = re.findall(r"[A-Z]\d{3}", name)
        records.append(
            VideoRecord(
                video_id=name,
                label=action,
                path=rgb.get(name),
                depth_path=depth.get(name),
                subject=performer,
                camera=camera,
                extra={"x_setup": setup, "x_replication": replication},
            )
        )
    return records


def _add_once(found: dict[str, Path], name: str, path: Path) -> None:
    if name in found:
        raise ManifestError(f"{found[name]} and {path} are both {name}: build from a folder that holds one of them")
    found[name] = path


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
        for path, match in _matching(videos_below(root), _UT_INTERACTION, "0_1_4.avi", root)
    ]


def build_utd_mhad(root: Path) -> list[VideoRecord]:
    """Return UTD-MHAD's depth arrays, `a1_s1_t1_depth.mat`; `split` is the data set's own: odd subjects train, even ones test.

    Source: Chen 2015, table 1 and section 4.
    """
    folders = walk(root.expanduser().resolve())
    paths = sorted(folder / name for folder, _, files in folders for name in files if name.endswith("_depth.mat"))
    records = []
    for path, match in _matching(paths, _UTD_MHAD, "a1_s1_t1_depth.mat", root):
        records.append(
            VideoRecord(
                video_id=path.stem.removesuffix("_depth"),
                label=UTD_MHAD_LABELS[int(match[1]) - 1],
                depth_path=path,
                subject=match[2],
                split="train" if int(match[2][1:]) % 2 else "test",
                extra={"x_trial": match[3]},
            )
        )
    return records


BUILDERS: dict[str, Callable[[Path, BuildOptions], list[VideoRecord]]] = {
    "folder": lambda root, _: build_folder(root),
    "kth": lambda root, options: build_kth(root, options.sequences),
    "ucf11": lambda root, _: build_ucf11(root),
    "ucf101": lambda root, options: build_ucf101(root, options.splits, options.split_index),
    "hmdb51": lambda root, options: build_hmdb51(root, options.splits, options.split_index),
    "ntu": lambda root, _: build_ntu(root),
    "ut_interaction": lambda root, _: build_ut_interaction(root),
    "utd_mhad": lambda root, _: build_utd_mhad(root),
}


def build_manifest(
    dataset: str, root: Path, *, sequences: Path | None = None, splits: Path | None = None, split_index: int = 1
) -> list[VideoRecord]:
    """Return the records of a data set folder, sorted by id; `dataset` is one of `BUILDERS`.

    sequences: KTH's 00sequences.txt; splits: folder of UCF-101's or HMDB-51's official lists; split_index: 1, 2 or 3,
    the official split that stands in the column `split`. Files are listed by name and never opened.
    Raises: ManifestError if the data set is unknown, nothing fits, two files get one id, or an option does not apply.
    """
    if dataset not in BUILDERS:
        raise ManifestError(f"unknown data set {dataset!r}; there are: {', '.join(BUILDERS)}")
    if sequences is not None and dataset != "kth":
        raise ManifestError(f"a sequence list belongs to kth, not to {dataset}")
    if splits is not None and dataset not in ("ucf101", "hmdb51"):
        raise ManifestError(f"official split lists are read for ucf101 and hmdb51, not for {dataset}")
    options = BuildOptions(sequences=sequences, splits=splits, split_index=split_index)
    records = BUILDERS[dataset](root, options)
    if not records:
        raise ManifestError(f"{root}: no video files below it (known endings: {', '.join(sorted(VIDEO_SUFFIXES))})")
    owner: dict[str, VideoRecord] = {}
    for record in records:
        other = owner.setdefault(record.video_id, record)
        if other is not record:
            first, second = (one.path or one.depth_path for one in (other, record))
            raise ManifestError(f"{first} and {second} both get the id {record.video_id!r}: rename or move one")
    return sorted(records, key=lambda record: record.video_id)


VIDEO_SUFFIXES = frozenset(
    (".avi", ".mp4", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v", ".webm", ".wmv", ".flv", ".3gp", ".ts")
)


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, subfolders, files) below `root`, by name; links to folders are followed, hidden names left out.

    Each folder is visited once, so that links in a circle end. The caller may drop subfolders that it need not enter.
    Raises: ManifestError if `root` is no folder.
    """
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder")
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), folders, sorted(name for name in files if not name.startswith("."))


def videos_below(root: Path) -> list[Path]:
    """Return all files with a video ending, sorted; a dead link is one of them, for it has to be noticed later."""
    found = [folder / name for folder, _, files in walk(root.expanduser().resolve()) for name in files]
    return sorted(path for path in found if path.suffix.lower() in VIDEO_SUFFIXES)


def left_out(root: Path, records: Sequence[VideoRecord], known: Iterable[Path | None] = ()) -> list[Path]:
    """Return what lies below `root` and stands in no record: it does not follow the data set's naming rule.

    A folder of which no record names anything is listed as a whole, also an empty one; of any other those files that
    stand in no record. known: other files or folders that are no news, such as official lists; hidden names never are.
    """
    root = root.expanduser().resolve()
    named = {path for record in records for path in (record.path, record.depth_path) if path is not None}
    named |= {path.expanduser().resolve() for path in known if path is not None}
    # Resolved, for a linked folder is entered by one of its names only.
    holding = {os.path.realpath(folder) for folder in {folder for path in named for folder in path.parents}}
    found: list[Path] = []
    for folder, folders, files in walk(root):
        below = [name for name in folders if folder / name not in named]
        folders[:] = [name for name in below if os.path.realpath(folder / name) in holding]
        found += [folder / name for name in below if name not in folders]
        found += [folder / name for name in files if folder / name not in named]
    return sorted(found)
