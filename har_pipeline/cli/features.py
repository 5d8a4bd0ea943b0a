"""`har features`: stored features, their packs for training, and sets that are made from others."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli import options
from har_pipeline.cli.options import AsJson, Store, StoreOrPack, given_options, with_options
from har_pipeline.cli.output import note, print_json, print_rows, say
from har_pipeline.cli.progress import told_while_waiting, video_bar
from har_pipeline.cli.split_options import chosen_splits
from har_pipeline.core.objects import StorePath, store_path
from har_pipeline.core.signals import goes_on_when_repeated
from har_pipeline.datasets.splits import SplitChoice
from har_pipeline.features.options import NAME, EncodeOptions, MotionOptions

if TYPE_CHECKING:
    from har_pipeline.core.records import FeatureSpec, Split
    from har_pipeline.features.fitted import FitSummary, OnProgress
    from har_pipeline.features.pack import PackedStore
    from har_pipeline.features.store import Damage, FeatureStore

features_app = options.App(
    no_args_is_help=True,
    help="List, show, verify, pack, reduce and encode the feature sets of a store, or make motion maps.",
)

FeatureSet = Annotated[
    str | None, typer.Option("--features", help="Feature set, by a name that it was given or the start of its own.")
]


@features_app.command("list")
def list_sets(store: StoreOrPack, as_json: AsJson = False) -> None:
    """List the feature sets of a store or a pack: names, videos, how much of them was seen, and in what sets differ.

    spanned: the part of a video from the first to the last frame that was read. read: the share of its frames.
    """
    from har_pipeline.features.pack import open_features
    from har_pipeline.features.seen import seen_of_set, with_least
    from har_pipeline.features.words import among_their_nets

    opened = open_features(store)
    specs = {name: opened.spec(name) for name in opened.feature_sets()}
    called, differs = {one: name for name, one in opened.names().items()}, among_their_nets(specs)
    rows, shown = [], []
    for name, spec in specs.items():
        videos, failed = len(opened.video_ids(name)), len(opened.failures(name))
        seen = seen_of_set(spec, ((video.num_frames, video.fps) for video in opened.stored(name)))
        fitted = f"{spec.fit.protocol} split {spec.fit.split}" if spec.fit else None
        span, read = with_least(seen.span_mean, seen.span_min), with_least(seen.read_mean, seen.read_min)
        rows.append(
            {
                "feature_set": name,
                "name": called.get(name),
                "videos": videos,
                "failed": failed,
                "layer": spec.layer,
                "dim": spec.feature_dim,
                "tokens": spec.tokens,
                "dtype": spec.dtype,
                "precision": spec.precision,
                "weights": spec.weights[:17],
                "fitted on": fitted,
                "clips": spec.clips.describe(),
                "differs": differs[name],
                **{key: value for key, value in dataclasses.asdict(seen).items() if key != "videos"},
            }
        )
        shown.append(
            {
                "feature_set": name,
                "name": called.get(name),
                "videos": videos,
                "failed": failed,
                "layer": spec.layer,
                "dim": spec.feature_dim,
                "spanned": span if seen.videos else None,
                "read": read if seen.videos else None,
                "fitted on": fitted,
                "differs in": differs[name],
            }
        )
    print_rows(rows if as_json else shown, as_json, empty="no feature sets")


@features_app.command()
def show(
    store: StoreOrPack,
    features: FeatureSet = None,
    video_id: Annotated[str | None, typer.Option(help="Also show the record of this video.")] = None,
    video: Annotated[
        str | None,
        typer.Option(help="Draw the feature sequence of this video: values, their norm, and how alike the steps are."),
    ] = None,
    projection: Annotated[
        str | None, typer.Option(help="Draw all videos of the set as points, coloured by class: pca or tsne.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="Manifest with the classes, for --projection.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Picture to write. Default: features.png, or projection.png."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a feature set was made, its videos and failures. Without --features: every set (JSON: a list).

    With --video or --projection: a picture (PNG, SVG or PDF).
    """
    from har_pipeline.cli.feature_pictures import check_picture, draw_projection, draw_video
    from har_pipeline.core.errors import StoreError
    from har_pipeline.features.pack import open_features

    check_picture(video, projection, manifest, out)
    opened = open_features(store)
    if video is not None:
        draw_video(opened, opened.resolve(features or ""), video, out or Path("features.png"))
        return
    if projection is not None and manifest is not None:
        draw_projection(opened, opened.resolve(features or ""), manifest, projection, out or Path("projection.png"))
        return
    names = [opened.resolve(features)] if features else opened.feature_sets()
    if not names:
        raise StoreError(f"{store}: no feature set; make one with `har extract`")
    results = [_description(opened, name, video_id, not as_json) for name in names]
    if as_json:
        print_json(results[0] if len(results) == 1 else results)
        return
    for number, result in enumerate(results):
        if number:
            typer.echo("")
        _print_description(result)


def _description(
    opened: FeatureStore | PackedStore, name: str, video_id: str | None, in_words: bool
) -> dict[str, object]:
    from har_pipeline.features.pack import PackedStore
    from har_pipeline.features.seen import percent, seen_of_set, seen_of_video

    spec = opened.spec(name)
    notes: dict[str, tuple[str, ...]] = {}

    def lengths() -> Iterator[tuple[int, float]]:
        for video in opened.stored(name):  # one walk for both
            if video.decode_notes:
                notes[video.video_id] = video.decode_notes
            yield video.num_frames, video.fps

    seen = seen_of_set(spec, lengths())
    called = next((own for own, one in opened.names().items() if one == name), None)
    result: dict[str, object] = {
        "feature_set": name,
        **({"name": called} if called or not in_words else {}),
        **({"how it was made": _in_words(spec)} if in_words else {"spec": spec.to_dict()}),
        "videos": len(opened.video_ids(name)),
        "seen": seen.describe() if in_words else dataclasses.asdict(seen),
        "failures": opened.failures(name),
        "notes": notes,
    }
    if (fit := opened.fit_attributes(name)) is not None:
        result["fit"] = fit
    if isinstance(opened, PackedStore):
        result["pack"] = opened.describe(name)
    if video_id is not None:
        record = opened.read(name, video_id)
        span, read = seen_of_video(spec, record.num_frames, record.fps)
        result["record"] = {
            **{f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "features"},
            "clip_starts": record.clip_starts.tolist(),
            "clip_ends": record.clip_ends.tolist(),
            "clip_times_s": record.clip_times_s.tolist(),
            "shape": list(record.features.shape),
            "mean": float(record.features.astype("float32").mean()),
            "spanned": percent(span) if in_words else span,
            "read": percent(read) if in_words else read,
        }
    return result


def _in_words(spec: FeatureSpec) -> dict[str, str]:
    """Return how a feature set was made, with the hash of its weights and the set that it was fitted on as they are."""
    from har_pipeline.report.words import describe_features

    facts = dict(describe_features(spec))
    facts["Weights"] = spec.weights if spec.weights.startswith("sha256:") else facts["Weights"]
    return facts if spec.fit is None else {**facts, "Made of the set": spec.fit.source}


def _print_description(result: dict[str, object]) -> None:
    for key, value in result.items():
        if isinstance(value, dict) and value:
            typer.echo(f"{key}:")
            for inner, text in value.items():
                say(f"  {inner}: {'; '.join(text) if isinstance(text, tuple) else text}")
        elif isinstance(value, dict):
            say(f"{key}: none")
        else:
            say(f"{key}: {value}")


@features_app.command("name")
def give_name(
    store: Store,
    features: Annotated[str, typer.Argument(help="Feature set, by a name that it was given or the start of its own.")],
    name: Annotated[str, typer.Argument(help=NAME)],
) -> None:
    """Give a feature set a name, by which `--features` then finds it, in place of an earlier one."""
    from har_pipeline.features.store import FeatureStore

    opened = FeatureStore(store)
    found = opened.resolve(features)
    before = opened.give_name(found, name)
    say(f"{found}: {name}{f' ({before[0]} before)' if before else ''}")


@features_app.command()
def verify(
    store: StoreOrPack,
    features: FeatureSet = None,
    delete: Annotated[
        bool, typer.Option(help="Delete what is damaged, so that the next `har extract` makes it again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check features, failure records and fits against their checksums. The exit code is 1 if any is damaged.

    --delete removes what was read and is wrong; what cannot be read (permission, faulty disk) stays, and is listed. In object
    storage it also removes what killed writers put without a commit, if that is a week old.
    """
    from har_pipeline.core.errors import StoreError
    from har_pipeline.core.processes import num_cores
    from har_pipeline.features.pack import PackedStore, open_features

    opened = open_features(store)
    of_store = None if isinstance(opened, PackedStore) else opened
    if delete and of_store is None:
        raise typer.BadParameter("--delete is for stores; run `har features pack` again to repair a pack")
    names = [opened.resolve(features)] if features else opened.feature_sets()
    odd: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    checked = 0
    with video_bar() as update:
        for name in names:
            try:
                videos, before = len(opened.video_ids(name)), checked
                update(name, 0, videos)
                found = opened.verify(name) if of_store is None else of_store.verify(name, workers=num_cores())
                for damage in found:
                    checked += damage is None or damage.kind == "features"
                    update(name, checked - before, videos)
                    if damage is not None:
                        odd[damage.readable].append(_damaged(name, damage))
                        if delete and damage.readable and of_store is not None:
                            of_store.mend(name, damage)
            except StoreError as error:  # of the set as a whole, or of a deletion; the other sets are checked
                odd[False].append({"feature_set": name, "video_id": "", "kind": "set", "reason": str(error)})
    if of_store is not None and not features:
        for name, reason in of_store.damaged_sets().items():
            odd[False].append({"feature_set": name, "video_id": "", "kind": "set", "reason": reason})
        for name in sorted(set(of_store.fits()) - set(names)):
            for damage in of_store.verify_fit(name):
                odd[damage.readable].append(_damaged(name, damage))
                if delete and damage.readable:
                    of_store.mend(name, damage)
    damaged, unreadable = odd[True], odd[False]
    left = _leftovers(of_store, names if features else None, delete) if of_store is not None else []
    if as_json:
        wrong = {"damaged": damaged, "unreadable": unreadable}
        print_json({"checked": checked, **wrong, "leftovers": left, "deleted": delete})
    else:
        for word, rows in (("damaged", damaged), ("unreadable", unreadable)):
            for row in rows:
                note(f"{word}: {row['video_id'] or row['feature_set']}: {row['reason']}")
        action = "deleted; run `har extract` again" if delete else "delete them with --delete and extract again"
        if of_store is None:
            action = "run `har features pack` again"
        line = f"{checked} videos checked, {len(damaged)} damaged" + (f" ({action})" if damaged else "")
        typer.echo(line + (f", {len(unreadable)} unreadable (not deleted)" if unreadable else ""))
    if damaged or unreadable:
        raise typer.Exit(1)


def _leftovers(store: FeatureStore, names: list[str] | None, delete: bool) -> list[str]:
    """Return what stands in a store's feature sets and is no video, and tell of it. delete: what can be told to be dead."""
    from har_pipeline.core.errors import StoreError, first_few
    from har_pipeline.core.files import LEASE_DAYS
    from har_pipeline.features.leftovers import leftovers, remove_leftovers
    from har_pipeline.features.places import META

    try:
        left = leftovers(store, names)
        removed: list[str] = []
        if delete and left and store.folder is None:
            with told_while_waiting("delete what killed writers left, which waits for those that live"):
                removed = remove_leftovers(store, names)
    except (OSError, StoreError) as error:
        note(f"NOTE: {store.path}: what writers left cannot be looked for ({error})")
        return []
    if not left:
        return []
    if store.folder is not None:
        note(
            f"NOTE: without {META}, and so no videos and not checked: {first_few(left)} ({len(left)} in all); move away what "
            "is yours and delete the rest; extracting a video of that name replaces it"
        )
    else:
        way_out = f"{len(removed)} deleted" if delete else "--delete removes it"
        note(
            f"NOTE: put by writers that ended more than {LEASE_DAYS} days ago before their commit, and so no videos: "
            f"{first_few(left)} ({len(left)} in all); {way_out}"
        )
    return left


def _damaged(feature_set: str, damage: Damage) -> dict[str, str]:
    return {"feature_set": feature_set, "video_id": damage.video_id, "kind": damage.kind, "reason": damage.reason}


@features_app.command()
def pack(
    store: Store,
    features: Annotated[
        list[str] | None, typer.Option(help="Feature set, or a prefix of its name. Repeat for several.")
    ] = None,
    out: Annotated[
        StorePath | None,
        typer.Option("--out", "-o", parser=store_path, help="Pack to write. Default: store.pack beside store.zarr."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy feature sets into one safetensors file each, which training reads several times faster than the store.

    `har train MANIFEST PACK`, or for raw frames `har train-video MANIFEST --store PACK`, gives the same numbers as with
    the store, bit for bit. Run again after the store has changed: only what changed is packed again. Without --features,
    every set is packed that is neither reduced nor encoded.
    """
    from har_pipeline.features.options import EXTRACTOR
    from har_pipeline.features.pack import default_pack_path, pack_features, whole_sets
    from har_pipeline.features.store import FeatureStore

    opened, path = FeatureStore(store), out or default_pack_path(store)
    goes_on_when_repeated()
    summaries = []
    with video_bar() as update:
        for name in [opened.resolve(prefix) for prefix in features] if features else whole_sets(opened):
            summaries.append(pack_features(opened, name, path, _named(update, f"{name}, ")))
    if as_json:
        print_json([dataclasses.asdict(summary) for summary in summaries])
        return
    for summary in summaries:
        size = f"{summary.num_bytes / 2**20:,.1f} MiB"
        done = "packed" if summary.written else "already packed and up to date"
        typer.echo(f"{summary.feature_set}: {summary.videos:,} videos, {summary.clips:,} clips, {size}, {done}")
    raw = [opened.spec(summary.feature_set).extractor == EXTRACTOR for summary in summaries]
    if not all(raw):
        typer.echo(f"next: har train MANIFEST {shlex.quote(str(path))} ...")
    if any(raw):
        typer.echo(f"next: har train-video MANIFEST --store {shlex.quote(str(path))} ...")


@features_app.command()
def copy(
    store: StoreOrPack,
    target: Annotated[
        StorePath,
        typer.Argument(parser=store_path, help="Store to copy into, made if it is missing: folder or address."),
    ],
    features: Annotated[
        list[str] | None, typer.Option(help="Feature set, or a prefix of its name. Repeat for several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy feature sets into another store, on a disk or in object storage, each video compared with its checksum.

    Without --features: every set. Run again to go on after an interruption: what is there and equal is passed over, and
    what is there and differs is never replaced, but listed, as is what cannot be read; the exit code is 1 then.

    Example: har features copy store.zarr s3://bucket/store.zarr
    """
    from har_pipeline.features.copy import copy_features
    from har_pipeline.features.pack import open_features
    from har_pipeline.features.store import FeatureStore

    opened = open_features(store)
    names = [opened.resolve(prefix) for prefix in features] if features else opened.feature_sets()
    goes_on_when_repeated()
    into, summaries = FeatureStore(target, create=True), []
    with video_bar() as update:
        for name in names:
            summaries.append(copy_features(opened, name, into, functools.partial(update, f"copy {name}")))
    for summary in summaries:
        for video_id, reason in summary.failed.items():
            note(f"failed: {video_id}: {reason}")
    if as_json:
        print_json([dataclasses.asdict(summary) for summary in summaries])
    else:
        for summary in summaries:
            typer.echo(
                f"{summary.feature_set}: {summary.done} videos copied ({summary.num_bytes / 2**20:,.1f} MiB), "
                f"{summary.already} already there, {len(summary.failed)} failed"
            )
    if any(summary.failed for summary in summaries):
        raise typer.Exit(1)


@features_app.command()
def export(
    store: StoreOrPack,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .npz, .parquet or .h5.")],
    features: FeatureSet = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest CSV: its videos in its order, with their labels and other columns.")
    ] = None,
    allow_missing: options.AllowMissing = False,
    root: options.Root = None,
    as_json: AsJson = False,
) -> None:
    """Write a feature set into one file for numpy (.npz), pandas (.parquet) or HDF5 (.h5), with how it was made.

    npz and h5: `features` (rows, D), and `offsets`: video v owns the rows offsets[v] to offsets[v + 1]; parquet: one row for
    each clip, with video_id and step. Needs `pip install 'har-pipeline[parquet]'` or `'har-pipeline[hdf5]'`.

    Example: har features export store.zarr --features i3d --manifest manifest.csv -o features.parquet
    """
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.features.export import export_features
    from har_pipeline.features.pack import open_features

    records = None if manifest is None else read_manifest(manifest, root=root, check_files=False)
    with video_bar() as update:
        summary = export_features(
            open_features(store),
            features or "",
            out,
            records,
            allow_missing=allow_missing,
            on_video=lambda done, total: update("export", done, total),
        )
    if summary.missing:
        note(f"NOTE: {len(summary.missing)} videos have no features and are left out: {', '.join(summary.missing[:5])}")
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        say(
            f"{summary.path}: {summary.feature_set}, {summary.videos:,} videos, {summary.rows:,} rows of {summary.dim} values"
        )


@features_app.command()
@with_options
def reduce(
    *,
    ctx: typer.Context,
    store: Store,
    manifest: Annotated[Path, typer.Option(help="Manifest CSV, as for `har train`.")],
    dim: Annotated[int, typer.Option(help="Principal components to keep.", min=1)],
    features: FeatureSet = None,
    split: SplitChoice,
    whiten: Annotated[bool, typer.Option(help="Divide each component by its standard deviation.")] = False,
    l2: Annotated[bool, typer.Option(help="Divide each reduced clip by its norm.")] = False,
    randomised: Annotated[bool, typer.Option(help="Approximate PCA in a random subspace, drawn with --seed.")] = False,
    allow_missing: options.AllowMissing = False,
    name: Annotated[str | None, typer.Option(help=NAME)] = None,
    root: options.Root = None,
    as_json: AsJson = False,
) -> None:
    """Reduce a feature set by PCA, fitted on a split's training videos only.

    The result is a new feature set with every video of the first, one for each split of --split all; `har train` accepts
    it for that split and refuses it for others: give --val-fraction as there, 0.2 if that is run with --patience. Exact
    unless --randomised. An interrupted reduction continues when run again.
    """
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.features.store import FeatureStore

    records = read_manifest(manifest, root=root, check_files=False)
    opened = FeatureStore(store)

    from har_pipeline.features.reduce import ReduceOptions, ReduceSummary, reduce_features

    source = opened.resolve(features or "")
    how = ReduceOptions(
        dim=dim,
        whiten=whiten,
        l2=l2,
        seed=split.seed if randomised else None,
        allow_missing=allow_missing,
        name=name,
    )

    def words(made: FitSummary) -> str:
        assert isinstance(made, ReduceSummary)
        return f"{made.dim} components of {source} keep {made.explained:.1%} of the variance of {made.num_rows} clips"

    _fit_sets(
        chosen_splits(ctx, manifest, records, split),
        lambda one, update: reduce_features(opened, source, one, how, update),
        words,
        "projected",
        f"har train {shlex.quote(str(manifest))} {shlex.quote(str(store))}",
        as_json,
        name,
    )


@features_app.command()
@with_options
def encode(
    *,
    ctx: typer.Context,
    store: Store,
    manifest: Annotated[Path, typer.Option(help="Manifest CSV, as for `har train`.")],
    features: FeatureSet = None,
    split: SplitChoice,
    how: EncodeOptions,
    root: options.Root = None,
    as_json: AsJson = False,
) -> None:
    """Encode all rows of a video as one, a Fisher vector or a bag of words, fitted on a split's training videos only.

    For local descriptors and for the clips of any net. The result is a new feature set with every video of the first;
    `har train` accepts it for that split and refuses it for others: give --val-fraction as there, 0.2 if that is run with
    --patience. Rows of zeros mean that nothing was found; a video of such rows only becomes zeros, and is noted. An
    interrupted encoding continues when run again.

    Example: har features encode store.zarr --features idt --manifest manifest.csv, then har train manifest.csv store.zarr
    --features idt-rgb-fisher256 --head svm --logistic-c 100
    """
    from har_pipeline.datasets.manifests import read_manifest
    from har_pipeline.features.store import FeatureStore

    if given := given_options(ctx, how.unread()):
        note(f"NOTE: the encoding {how.encoding} does not read {', '.join(given)}")
    records = read_manifest(manifest, root=root, check_files=False)
    opened = FeatureStore(store)

    from har_pipeline.features.encode import EncodeSummary, encode_features

    source, how = opened.resolve(features or ""), dataclasses.replace(how, seed=split.seed)

    def words(made: FitSummary) -> str:
        assert isinstance(made, EncodeSummary)
        if made.without_rows:
            note(f"NOTE: {made.without_rows} training videos have no row with a value")
        if made.unconverged:
            note(f"NOTE: the Gaussians of {', '.join(made.unconverged)} still changed when their fit ended")
        kind = f"{made.size} {'Gaussians' if made.encoding == 'fisher' else 'words'}"
        return f"{made.dim} values a video of {source}: {kind} of {', '.join(made.blocks)} on {made.num_rows} rows"

    _fit_sets(
        chosen_splits(ctx, manifest, records, split),
        lambda one, update: encode_features(opened, source, one, how, update),
        words,
        "encoded",
        f"har train {shlex.quote(str(manifest))} {shlex.quote(str(store))}",
        as_json,
        how.name,
    )


def _named(update: OnProgress, name: str) -> OnProgress:
    """Return `update` for stages whose names begin with `name`."""
    return lambda stage, done, total: update(f"{name}{stage}", done, total)


def _fit_sets(
    splits: Sequence[Split],
    job: Callable[[Split, OnProgress], FitSummary],
    words: Callable[[FitSummary], str],
    done: str,
    train: str,
    as_json: bool,
    name: str | None,
) -> None:
    """Make a feature set for each split, and print what `words` says of it. train: the command that reads it; name: the set's.

    Raises: typer.BadParameter if there is one name for several sets.
    """
    if name is not None and len(splits) > 1:
        raise typer.BadParameter("--name is for one feature set: give the number of one --split")
    goes_on_when_repeated()
    summaries = []
    for one in splits:
        with video_bar() as update:
            made = job(one, _named(update, f"split {one.index}, " * (len(splits) > 1)))
        summaries.append({"protocol": one.protocol, "split": one.index, **dataclasses.asdict(made)})
        said = words(made)
        if not as_json:
            typer.echo(
                f"{made.feature_set}: {said} of {made.num_train} training videos ({one.protocol} split {one.index}"
                f"{'' if made.fitted else ', fitted before'}); {made.done} videos {done}, {made.already} already there, "
                f"{made.seconds:.1f} s"
            )
        if made.missing:
            note(f"NOTE: {len(made.missing)} training videos had no features: {', '.join(made.missing[:5])}")
    if as_json:
        print_json(summaries)
    elif len(summaries) == 1:
        typer.echo(f"next: {train} --features {name or summaries[0]['feature_set']} ... (the same split)")


@features_app.command()
@with_options
def motion(
    *,
    store: Store,
    features: Annotated[
        str | None, typer.Option("--features", help="Raw-frame set, or a prefix of its name, if there are several.")
    ] = None,
    how: MotionOptions,
    as_json: AsJson = False,
) -> None:
    """Make motion maps of raw frames: one vector per video, where and how much it changes. The baseline for raw video.

    A new feature set of every video that `har frames` prepared, for any head of `har train`. It reads no labels, so it
    serves every split. Run again after the frames have changed, or after an interruption.

    Example: har features motion store.zarr, then har train manifest.csv store.zarr --features motion_maps
    --head ridge --logistic-c 50 --no-standardise
    """
    from har_pipeline.core.errors import StoreError
    from har_pipeline.features.frames import choose_frames
    from har_pipeline.features.motion import motion_features
    from har_pipeline.features.store import FeatureStore

    opened = FeatureStore(store)
    found = [name for stream in ("depth", "rgb") if (name := choose_frames(opened, stream))] if features is None else []
    if features is None and len(found) != 1:
        raise StoreError(
            f"{store}: {len(found) or 'no'} raw-frame sets; "
            + ("choose with --features" if found else "make one with `har frames`")
        )
    source = opened.resolve(features) if features is not None else found[0]
    goes_on_when_repeated()
    with video_bar() as update:
        summary = motion_features(opened, source, how, lambda done, total: update("motion maps", done, total))
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        typer.echo(
            f"{summary.feature_set}: {summary.done} videos done, {summary.already} already there, {summary.dim} values each, "
            f"of {source}, {summary.seconds:.1f} s"
        )
