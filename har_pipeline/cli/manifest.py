"""`har manifest`: manifests built from data set folders, and checked."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from har_pipeline.cli import options
from har_pipeline.cli.output import note, print_json, say
from har_pipeline.core.errors import ManifestError, first_few
from har_pipeline.core.files import holds_other, write_text
from har_pipeline.core.kinds import what_is
from har_pipeline.core.text import counted

if TYPE_CHECKING:
    from har_pipeline.core.records import VideoRecord
    from har_pipeline.datasets.updates import ManifestUpdate

manifest_app = options.App(no_args_is_help=True, help="Build manifests from data set folders, and check them.")
LISTED_AT_MOST = 10
Layout = Literal[
    "folder", "kth", "ucf11", "ucf101", "hmdb51", "activitynet", "segments", "ntu", "ut_interaction", "utd_mhad"
]


@manifest_app.command()
def build(
    dataset: Annotated[
        Layout,
        typer.Argument(
            help="Layout of the folder; folder = one subfolder per class, or none: no labels; activitynet and segments = any, "
            "with --annotations."
        ),
    ],
    root: Annotated[Path, typer.Argument(help="The data set's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Manifest to write.")],
    sequences: Annotated[Path | None, typer.Option(help="KTH's 00sequences.txt, for one row per sequence.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Folder with the official split files of UCF-101 or HMDB-51.")
    ] = None,
    split_index: Annotated[
        int,
        typer.Option(
            help="Official split for the column `split`; all three are in x_split1 to x_split3.", min=1, max=3
        ),
    ] = 1,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="For activitynet its JSON file; for segments a CSV file with the columns video, start, end, label, in "
            "seconds. One row per segment."
        ),
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            help="Bring an existing manifest up to date: rows stay as they are, with your columns and changes; rows of new "
            "videos are added, those of videos that are gone removed."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing manifest, with all changes made to it.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a manifest from the folder and file names of a data set. Files and folders that do not fit are listed.

    A manifest that exists and differs stays, unless --update or --overwrite is given. Videos that stand in no class folder
    have an empty label: they can be extracted and predicted, and training leaves them out.
    """
    if update and overwrite:
        raise typer.BadParameter("--update keeps what --overwrite replaces: give one of them")
    if out.is_dir():
        raise typer.BadParameter(f"{out} is {what_is(out)}: name a file, such as {out / 'manifest.csv'}")
    from har_pipeline.datasets.builders import build_manifest, left_out, parts_taken_for_classes

    problems: list[str] = []
    records = build_manifest(
        dataset,
        root,
        sequences=sequences,
        splits=splits,
        split_index=split_index,
        annotations=annotations,
        on_note=problems.append,
    )
    changed, made = _written(out, records, root, update, overwrite)
    if made is not None:
        records = list(made.records)
    if dataset == "folder":
        _note_parts(records, parts_taken_for_classes(root, records))
    _note_unlabelled(records, annotations)
    _note_some(problems)
    others = left_out(root, records, known=(out, sequences, splits, annotations))
    _note_left_out(others, f"{dataset}'s rule" if annotations is None else None)
    if made is not None:
        _note_update(made)
    labels = {record.label for record in records} - {""}
    if as_json:
        summary = {"manifest": str(out), "videos": len(records), "classes": sorted(labels), "written": changed}
        unlabelled = [record.video_id for record in records if not record.label]
        changes = (
            {"added": made.added, "removed": made.removed, "moved": made.moved, "edited": made.edited} if made else {}
        )
        listed = {"unlabelled": unlabelled, "left_out": [str(path) for path in others]}
        print_json({**summary, **changes, **listed, **({"annotations": problems} if annotations else {})})
    else:
        step = "extract" if any(record.path for record in records) else "frames"
        state = "" if changed else ", as it was"
        counts = f"{counted(len(records), 'row')}, {counted(len(labels), 'class', 'classes')}"
        say(f"{out}: {counts}{state}; next: har {step} {shlex.quote(str(out))} store.zarr")


def _written(
    out: Path, records: list[VideoRecord], root: Path, update: bool, overwrite: bool
) -> tuple[bool, ManifestUpdate | None]:
    """Write the manifest; return whether it has changed, and what became of an existing one's rows with --update.

    Raises: ManifestError if another manifest is there, and is neither to be updated nor to be replaced.
    """
    from har_pipeline.datasets.manifests import manifest_text

    made: ManifestUpdate | None = None
    if update and out.exists():
        made, text = _updated(out, records, root)
    else:
        text = manifest_text(out, records, root=root)
    changed = not out.exists() or holds_other(out, text)
    if changed and out.exists() and not (update or overwrite):
        raise ManifestError(
            f"{out} exists ({what_is(out)}) and differs from what would be written: --update keeps its rows and your columns, "
            "--overwrite replaces it, -o names another file"
        )
    if changed:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    return changed, made


def _updated(out: Path, records: list[VideoRecord], root: Path) -> tuple[ManifestUpdate, str]:
    """Return what becomes of an existing manifest's rows, and its new text."""
    from har_pipeline.datasets.manifests import manifest_text, read_comments, read_manifest
    from har_pipeline.datasets.updates import update_records

    made = update_records(read_manifest(out, check_files=False), records)
    return made, manifest_text(out, made.records, root=root, comments=read_comments(out))


def _note_parts(records: list[VideoRecord], mixed: list[str]) -> None:
    """Say which folders fill the column split. mixed: folders named after parts that are taken for classes."""
    if parts := sorted({record.split for record in records if record.split}):
        note(
            f"folders named after parts ({', '.join(parts)}) fill the column split, the folders below them are the "
            "classes; --protocol column trains and tests on these parts"
        )
    if mixed:
        note(
            f"NOTE: the folders {', '.join(mixed)} look like parts of a split, but other folders stand beside them, so all of "
            "them are taken for classes; move the others away if that is wrong"
        )


def _note_left_out(others: Sequence[Path], rule: str | None) -> None:
    """Say which files and folders give no row. rule: that they do not follow; None: annotations name what is taken."""
    for path in others[:LISTED_AT_MOST]:
        what = "nothing in it is taken by" if path.is_dir() else "its name does not follow"
        note(f"left out: {path}: " + (f"{what} {rule}" if rule else "no annotation names it"))
    if len(others) > LISTED_AT_MOST:
        note(f"left out: {len(others) - LISTED_AT_MOST} more")


def _note_update(made: ManifestUpdate) -> None:
    """Say which rows were added and removed, and where the manifest differs from the data set's rule."""
    for word, ids in (("added", made.added), ("removed", made.removed), ("moved", made.moved)):
        if ids:
            note(f"{word}: {len(ids)}: {first_few(ids)}")
    stay = len(made.records) - len(made.added)
    edited = ", ".join(f"{name} in {count}" for name, count in made.edited.items())
    note(
        f"kept: {counted(stay, 'row')}" + (f"; other than the folder's names say, and kept: {edited}" if edited else "")
    )


def _note_some(problems: list[str]) -> None:
    """Say what is odd about annotations: the first of each kind, and how many there are."""
    for kind in dict.fromkeys(text.partition(":")[0] for text in problems):
        own = [text for text in problems if text.partition(":")[0] == kind]
        for text in own[:LISTED_AT_MOST]:
            note(text)
        if len(own) > LISTED_AT_MOST:
            note(f"{kind}: {len(own) - LISTED_AT_MOST} more (--json lists all)")


def _note_unlabelled(records: list[VideoRecord], annotations: Path | None) -> None:
    """Say which videos stand in no class folder, or have no label in the annotations."""
    loose = [str(record.path or record.depth_path) for record in records if not record.label]
    if not loose:
        return
    count = "all" if len(loose) == len(records) else f"{len(loose)} of {len(records)}"
    if annotations is not None:
        note(f"NOTE: rows that {annotations.name} gives no label: {count}. They can be extracted and predicted")
        return
    note(
        f"NOTE: videos in no class folder, whose label is empty: {count}. They can be extracted and predicted; for training "
        "put each into a folder named after its class, or fill in the label"
    )
    if len(loose) < len(records):
        for path in loose[:LISTED_AT_MOST]:
            note(f"no label: {path}")
        if len(loose) > LISTED_AT_MOST:
            note(f"no label: {len(loose) - LISTED_AT_MOST} more")


@manifest_app.command()
def check(
    manifest: options.Manifest,
    root: options.Root = None,
    as_json: options.AsJson = False,
) -> None:
    """Check the columns, ids, frame ranges and files of a manifest. Errors name their rows; the exit code is then 1."""
    from har_pipeline.datasets.manifests import check_manifest

    summary = check_manifest(manifest, root=root)
    if as_json:
        print_json(dataclasses.asdict(summary))
        return
    counts = f"{counted(summary.rows, 'row')}, {counted(len(summary.classes), 'class', 'classes')}"
    missing = f", {counted(summary.unlabelled, 'row')} without a label (not trained on)" if summary.unlabelled else ""
    say(f"ok: {manifest}: {counts}{missing}; all files are there")
    for key, value in dataclasses.asdict(summary).items():
        say(f"{key}: {value}")
