"""Manifests from the folder and file names of published data sets, of any folder with one subfolder per class, and from files
of annotations.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from har_pipeline.core.errors import ManifestError, UsageError
from har_pipeline.core.kinds import VIDEO_SUFFIXES, is_video_name
from har_pipeline.core.records import (
    MAX_ID_BYTES,
    RESERVED_ID_PATTERN,
    VideoRecord,
    folded_id,
    is_id_character,
    seconds_text,
)
from har_pipeline.core.text import unknown
from har_pipeline.datasets.annotations import AnnotatedVideo, OnNote, Segment, read_activitynet, read_segments
from har_pipeline.datasets.folders import videos_below, walk
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

_PARTS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# As in `videos_train`, `train_256`, `training_set`.
_PART_FOLDER = re.compile(rf"(?:videos?[_-])?({'|'.join(_PARTS)})(?:[_-]?(?:set|split|data|videos?|\d+))?")

_KTH = re.compile(r"(person\d\d)_([a-z]+)_(d[1-4])(?:_uncomp)?")
_UCF11 = re.compile(r"v_(.+)_(\d\d)_(\d\d)")
_UCF101 = re.compile(r"v_(.+)_(g\d\d)_(c\d\d)")
_HMDB_TAIL = re.compile(r"_[a-z]_(?:nm|cm)_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+$")
_NTU = re.compile(r"(S\d{3})(C\d{3})(P\d{3})(R\d{3})(A\d{3})(?:_rgb)?")
_UT_INTERACTION = re.compile(r"(\d+)_(\d+)_([0-5])")
_UTD_MHAD = re.compile(r"a0*([1-9]|1\d|2[0-7])_(s\d+)_(t\d+)_depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What some builders read besides the folder."""

    # KTH's 00sequences.txt: one record per sequence instead of one per file.
    sequences: Path | None = None
    # Folder of UCF-101's or HMDB-51's official lists: fills the columns x_split1 to x_split3.
    splits: Path | None = None
    # The official split, 1 to 3, that the column `split` holds.
    split_index: int = 1
    # What is seen in which seconds of the videos: a file of ActivityNet's form, or CSV.
    annotations: Path | None = None
    # Called with what is odd about them.
    on_note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True)
class Builder:
    """The naming rule of a data set."""

    # Records of the files below a folder. Raises: ManifestError if they do not follow the rule.
    build: Callable[[Path, BuildOptions], list[VideoRecord]]
    # The path of `BuildOptions` that it reads, and whether it needs it.
    reads: tuple[str, ...] = ()
    needs: bool = False


def escape_id(text: str) -> str:
    """Return a legal video_id for a relative path: `/` becomes `__`, other illegal characters `-xHH` per UTF-8 byte.

    Letters and digits of every script stay, in Unicode's composed form. Names that look escaped (`-x41`) are escaped too, so
    that two names never get one id; an id that would not begin with a letter or digit, or that is reserved (`nul`), is
    prefixed with `v`. Of an id that would be too long the end is replaced by a hash of the whole.
    """

    def escaped(found: str) -> str:
        return "".join(f"-x{byte:02X}" for byte in os.fsencode(found))

    name = unicodedata.normalize("NFC", text).replace("/", "__")
    name = re.sub(r"-(?=x[0-9A-F]{2})|\.$", lambda match: escaped(match[0]), name)
    name = "".join(character if is_id_character(character) else escaped(character) for character in name)
    if not name[:1].isalnum() or RESERVED_ID_PATTERN.fullmatch(name):
        name = f"v{name}"
    if len(name.encode()) > MAX_ID_BYTES:
        mark = f"-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
        name = name.encode()[: MAX_ID_BYTES - len(mark)].decode(errors="ignore") + mark
    return name


def _matching(
    paths: Iterable[Path], pattern: re.Pattern[str], example: str, root: Path
) -> list[tuple[Path, re.Match[str]]]:
    """Return the files whose stem matches. Raises: ManifestError if none does."""
    found = [(path, match) for path in paths if (match := pattern.fullmatch(path.stem))]
    if not found:
        raise ManifestError(f"{root}: no file is named like {example}; for other names use `har manifest build folder`")
    return found


def _folder(root: Path, options: BuildOptions) -> list[VideoRecord]:
    """Return one record per video file; its class is the first folder below `root`, none of a file beside such folders.

    Where all first folders are named after parts, as in Kinetics' `train/CLASS` and mmaction2's `videos_train/CLASS`, they
    give `split`, and the class is the folder below.
    """
    root = root.expanduser().resolve()
    paths = videos_below(root)
    relatives = [path.relative_to(root) for path in paths]
    tops = {relative.parts[0] for relative in relatives if len(relative.parts) > 1}
    # A single folder without classes below is a class: there may be one called train, for trains.
    by_part = all(map(_part_of_folder, tops)) and (
        len(tops) > 1 or any(len(relative.parts) > 2 for relative in relatives)
    )
    records = []
    for path, relative in zip(paths, relatives, strict=True):
        *folders, _ = relative.parts
        part = _part_of_folder(folders.pop(0)) if by_part and folders else None
        name = escape_id(relative.with_suffix("").as_posix())
        records.append(VideoRecord(video_id=name, label=folders[0] if folders else "", path=path, split=part))
    return records


def _part_of_folder(name: str) -> str | None:
    """Return `train`, `val` or `test` for a folder named after a part of a split, else None."""
    match = _PART_FOLDER.fullmatch(name.lower())
    return _PARTS[match[1]] if match else None


def parts_taken_for_classes(root: Path, records: Sequence[VideoRecord]) -> list[str]:
    """Return the classes that are named after parts of a split and have folders below, as parts would; of `folder`'s rule."""
    base = root.expanduser().resolve()
    deep = {record.label for record in records if record.path and len(record.path.relative_to(base).parts) > 2}
    return sorted(label for label in deep if _part_of_folder(label)) if not any(r.split for r in records) else []


def _kth(root: Path, options: BuildOptions) -> list[VideoRecord]:
    """Return KTH's files, or their sequences where `sequences` is given.

    Source: Schuldt 2004: 25 persons, 6 actions, 4 scenarios, 599 files; the list's frames are 1-based and inclusive.
    """
    listed = read_kth_sequences(options.sequences) if options.sequences else None
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
            raise ManifestError(f"{options.sequences}: has no line for {name} ({path})")
        for number, (first, last) in enumerate(listed[name], 1):
            records.append(replace(record, video_id=f"{name}_s{number}", start_frame=first - 1, end_frame=last))
    return records


def kth_rule_records(root: Path) -> list[VideoRecord]:
    """Return the records of KTH's 599 files by its naming rule, present or not; `split` as in kth_original.

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


def _ucf11(root: Path, options: BuildOptions) -> list[VideoRecord]:
    """Return UCF-11's files, `<class>/v_<class>_<group>/v_<class>_<group>_<clip>.mpg`; groups g01 to g25.

    The class is the folder above the group's folder, because in some classes the name's middle part differs
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


def _ucf101(root: Path, options: BuildOptions) -> list[VideoRecord]:
    """Return UCF-101's files. Source: Soomro 2012; lists trainlist0N.txt and testlist0N.txt."""
    found = _matching(videos_below(root), _UCF101, "v_ApplyEyeMakeup_g01_c01.avi", root)
    records = [
        # This class's files are spelled differently from the official classInd.txt.
        VideoRecord(video_id=path.stem, label=re.sub("^HandStand", "Handstand", match[1]), path=path, group=match[2])
        for path, match in found
    ]
    if options.splits is None:
        return records
    listed = read_ucf101_lists(options.splits)
    return _with_splits(records, [listed.get(record.video_id.lower()) for record in records], options)


def _hmdb51(root: Path, options: BuildOptions) -> list[VideoRecord]:
    """Return HMDB-51's files, `<class>/<name>.avi`; the group is the film that the name starts with.

    A file that is in no class folder is left out.

    Source: Kuehne 2011; lists `<class>_test_split<N>.txt`.
    """
    listed = read_hmdb51_lists(options.splits) if options.splits else {}
    records = []
    top = root.expanduser().resolve()
    for path in (found for found in videos_below(root) if found.parent != top):
        label = path.parent.name
        name = escape_id(f"{label}__{path.stem}")
        film = re.sub(f"_{re.escape(label)}$", "", _HMDB_TAIL.sub("", path.stem))
        records.append(VideoRecord(video_id=name, label=label, path=path, group=film))
    if options.splits is None or not records:
        return records
    columns = [listed.get((record.label, record.path.name)) for record in records if record.path]
    return _with_splits(records, columns, options)


def _with_splits(
    records: list[VideoRecord], columns: list[dict[str, str] | None], options: BuildOptions
) -> list[VideoRecord]:
    """Return the records with their official parts; a file that no list names is `unused` in all three splits.

    Raises: ManifestError if the lists name none of the files; UsageError if the split number does not exist.
    """
    if options.split_index not in (1, 2, 3):
        raise UsageError(f"the official splits are 1, 2 and 3, not {options.split_index}")
    if not any(columns):
        raise ManifestError(f"{options.splits}: the lists name none of the {len(records)} files")
    unused = {f"x_split{number}": "unused" for number in (1, 2, 3)}
    extras = [unused | (row or {}) for row in columns]
    return [
        replace(record, extra=extra, split=extra[f"x_split{options.split_index}"])
        for record, extra in zip(records, extras, strict=True)
    ]


def _ntu(root: Path, options: BuildOptions) -> list[VideoRecord]:
    """Return NTU RGB+D's recordings: `S001C001P001R001A001_rgb.avi` files and depth folders of the same name.

    A recording with colour and depth is one record. Masked depth is preferred to full depth. Infrared videos (`_ir.avi`)
    are left out. Raises: ManifestError if a recording appears twice.
    Source: Shahroudy 2016: setup, camera, performer, replication, action.
    """
    root = root.expanduser().resolve()
    rgb: dict[str, Path] = {}
    full: dict[str, Path] = {}
    masked: dict[str, Path] = {}
    for folder, folders, files in walk(root):
        for name in files:
            path = folder / name
            if is_video_name(name) and _NTU.fullmatch(path.stem):
                _add_once(rgb, path.stem[:20], path)
        for name in [name for name in folders if re.fullmatch(r"(?:[SCPRA]\d{3}){5}", name)]:
            _add_once(masked if "masked" in folder.name else full, name, folder / name)
            folders.remove(name)  # thousands of frames each, and no videos
    depth = full | masked
    if not rgb and not depth:
        raise ManifestError(f"{root}: no file or folder is named like S001C001P001R001A001")
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
        raise ManifestError(f"{found[name]} and {path} are both {name}; build from a folder that holds only one")
    found[name] = path


def _ut_interaction(root: Path, options: BuildOptions) -> list[VideoRecord]:
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


def _utd_mhad(root: Path, options: BuildOptions) -> list[VideoRecord]:
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


def _annotated(
    read: Callable[[Path, OnNote], list[AnnotatedVideo]],
) -> Callable[[Path, BuildOptions], list[VideoRecord]]:
    """Return the builder of records of annotated videos, one for each of their segments.

    A video without segments is one record without a label, as those of ActivityNet's test subset. Videos are named by their
    path below the folder, or their file's name, with or without ending, or without ActivityNet's `v_`. Ids hold the times:
    they stay when a segment is added.
    """

    def build(root: Path, options: BuildOptions) -> list[VideoRecord]:
        assert options.annotations is not None
        root = root.expanduser().resolve()
        files = _by_name(root)
        videos = read(options.annotations, options.on_note)
        records: list[VideoRecord] = []
        missing: list[str] = []
        for video in videos:
            path = _file_named(video.name, files, root)
            if path is None:
                missing.append(video.name)
                continue
            name = path.relative_to(root).with_suffix("").as_posix()
            taken: set[str] = set()
            for segment in video.segments:
                row = escape_id(_name_of(name, segment))
                names = (row if number == 1 else f"{row}_{number}" for number in itertools.count(1))
                taken.add(same := next(one for one in names if one not in taken))
                records.append(
                    VideoRecord(
                        video_id=same,
                        label=segment.label,
                        path=path,
                        start_s=segment.start_s,
                        end_s=segment.end_s,
                        split=video.split,
                    )
                )
        if len(missing) == len(videos):
            raise ManifestError(
                f"{root}: holds none of the {len(videos)} videos that {options.annotations} names, such as {videos[0].name}"
            )
        if not records:
            raise ManifestError(f"{options.annotations}: no segment of the videos below {root} can be used")
        for one in missing:
            options.on_note(f"missing: {one}: no file of this name below {root}")
        return records

    return build


def _name_of(name: str, segment: Segment) -> str:
    if segment.start_s is None and segment.end_s is None:
        return name
    end = "end" if segment.end_s is None else seconds_text(segment.end_s)
    return f"{name}_{seconds_text(segment.start_s or 0.0)}-{end}"


def _by_name(root: Path) -> list[dict[str, list[Path]]]:
    """Return name -> video files below `root` that have it: by path, by path without ending, and so on, see `_annotated`."""
    rules: list[dict[str, list[Path]]] = [{}, {}, {}, {}, {}]
    for path in videos_below(root):
        relative = path.relative_to(root)
        names = (
            relative.as_posix(),
            relative.with_suffix("").as_posix(),
            path.name,
            path.stem,
            path.stem.removeprefix("v_"),
        )
        for rule, name in zip(rules, names, strict=True):
            rule.setdefault(unicodedata.normalize("NFC", name), []).append(path)
    return rules


def _file_named(name: str, files: Sequence[dict[str, list[Path]]], root: Path) -> Path | None:
    """Return the file that an annotation means, None if there is none. Raises: ManifestError if there are several."""
    wanted = unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")
    found = next((rule[wanted] for rule in files if wanted in rule), [])
    if len(found) > 1:
        raise ManifestError(
            f"{root}: {found[0].relative_to(root)} and {found[1].relative_to(root)} may both be {name}: name it in the "
            "annotations by its path below this folder"
        )
    return found[0] if found else None


BUILDERS: dict[str, Builder] = {
    "folder": Builder(_folder),
    "kth": Builder(_kth, reads=("sequences",)),
    "ucf11": Builder(_ucf11),
    "ucf101": Builder(_ucf101, reads=("splits",)),
    "hmdb51": Builder(_hmdb51, reads=("splits",)),
    "activitynet": Builder(_annotated(read_activitynet), reads=("annotations",), needs=True),
    "segments": Builder(_annotated(read_segments), reads=("annotations",), needs=True),
    "ntu": Builder(_ntu),
    "ut_interaction": Builder(_ut_interaction),
    "utd_mhad": Builder(_utd_mhad),
}


def build_manifest(
    dataset: str,
    root: Path,
    *,
    sequences: Path | None = None,
    splits: Path | None = None,
    split_index: int = 1,
    annotations: Path | None = None,
    on_note: Callable[[str], None] = lambda text: None,
) -> list[VideoRecord]:
    """Return the records of a data set's folder, sorted by id; `dataset` is one of `BUILDERS`, the rest `BuildOptions`.

    Files are listed by name and never opened.
    Raises: ManifestError if no file fits or two files get one id; UsageError if the data set is unknown, or an option does
    not apply.
    """
    if dataset not in BUILDERS:
        raise UsageError(unknown("data set", dataset, BUILDERS))
    for name, given in (("sequences", sequences), ("splits", splits), ("annotations", annotations)):
        if given is None and BUILDERS[dataset].needs and name in BUILDERS[dataset].reads:
            raise UsageError(f"{dataset} needs --{name} FILE")
        if given is not None and name not in BUILDERS[dataset].reads:
            readers = [other for other, builder in BUILDERS.items() if name in builder.reads]
            raise UsageError(f"{name} is an option of {' and '.join(readers)}, not of {dataset}")
    options = BuildOptions(
        sequences=sequences, splits=splits, split_index=split_index, annotations=annotations, on_note=on_note
    )
    records = BUILDERS[dataset].build(root, options)
    if not records:
        raise ManifestError(f"{root}: no video files below it (known endings: {', '.join(sorted(VIDEO_SUFFIXES))})")
    owner: dict[str, VideoRecord] = {}
    for record in records:
        other = owner.setdefault(folded_id(record.video_id), record)
        if other is not record:
            first, second = (one.path or one.depth_path for one in (other, record))
            same = "" if other.video_id == record.video_id else ", but for upper and lower case"
            raise ManifestError(f"{first} and {second} both get the id {record.video_id!r}{same}; rename or move one")
    return sorted(records, key=lambda record: record.video_id)


def left_out(root: Path, records: Sequence[VideoRecord], known: Iterable[Path | None] = ()) -> list[Path]:
    """Return the files and folders below `root` that are in no record, because they do not follow the naming rule.

    A folder without any file of a record is listed as a whole, also if empty; hidden names never are.
    known: other files or folders to leave out, such as official lists.
    """
    root = root.expanduser().resolve()
    named = {path for record in records for path in (record.path, record.depth_path) if path is not None}
    named |= {path.expanduser().resolve() for path in known if path is not None}
    # Resolved, because a linked folder is entered by one of its names only.
    holding = {os.path.realpath(folder) for folder in {folder for path in named for folder in path.parents}}
    found: list[Path] = []
    for folder, folders, files in walk(root):
        below = [name for name in folders if folder / name not in named]
        folders[:] = [name for name in below if os.path.realpath(folder / name) in holding]
        found += [folder / name for name in below if name not in folders]
        found += [folder / name for name in files if folder / name not in named]
    return sorted(found)
