"""`har features`: what stage one stored, its packing for training, and its reduction by PCA."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from har_pipeline.cli.options import AsJson, Column, NumFolds, Protocol, Root, Seed, TestFraction
from har_pipeline.cli.output import note, print_json, print_table
from har_pipeline.cli.progress import video_bar
from har_pipeline.cli.split_options import chosen_splits

if TYPE_CHECKING:
    from har_pipeline.features.pack import PackedStore
    from har_pipeline.features.store import FeatureStore

features_app = typer.Typer(
    no_args_is_help=True, help="List, show, verify, pack and reduce the feature sets of a store."
)

Store = Annotated[Path, typer.Argument(help="The feature store, a folder such as store.zarr.")]
StoreOrPack = Annotated[Path, typer.Argument(help="The feature store, or a pack of `har features pack`.")]
FeatureSet = Annotated[str | None, typer.Option("--features", help="Feature set, or the start of its name.")]


@features_app.command("list")
def list_sets(store: StoreOrPack, as_json: AsJson = False) -> None:
    """List the feature sets of a store or a pack."""
    from har_pipeline.features.pack import open_features

    opened = open_features(store)
    rows = []
    for name in opened.feature_sets():
        spec = opened.spec(name)
        rows.append(
            {
                "feature_set": name,
                "videos": len(opened.video_ids(name)),
                "failed": len(opened.failures(name)),
                "layer": spec.layer,
                "dim": spec.feature_dim,
                "dtype": spec.dtype,
                "precision": spec.precision,
                "weights": spec.weights[:17],
                "reduced on": f"{spec.reduction.protocol} split {spec.reduction.split}" if spec.reduction else None,
            }
        )
    if as_json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        typer.echo("no feature sets")


@features_app.command()
def show(
    store: StoreOrPack,
    features: FeatureSet = None,
    video_id: Annotated[str | None, typer.Option(help="Show this video's record too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a feature set was made, its videos and its failures; without --features, every set (JSON: a list)."""
    from har_pipeline.core.errors import StoreError
    from har_pipeline.features.pack import open_features

    opened = open_features(store)
    names = [opened.resolve(features)] if features else opened.feature_sets()
    if not names:
        raise StoreError(f"{store}: there is no feature set; make one with `har extract`")
    results = [_description(opened, name, video_id) for name in names]
    if as_json:
        print_json(results[0] if len(results) == 1 else results)
        return
    for number, result in enumerate(results):
        if number:
            typer.echo("")
        _print_description(result)


def _description(opened: FeatureStore | PackedStore, name: str, video_id: str | None) -> dict[str, object]:
    from har_pipeline.features.pack import PackedStore

    result: dict[str, object] = {
        "feature_set": name,
        "spec": opened.spec(name).to_dict(),
        "videos": len(opened.video_ids(name)),
        "failures": opened.failures(name),
        "notes": opened.decode_notes(name),
    }
    if (fit := opened.reduction_attributes(name)) is not None:
        result["fit"] = fit
    if isinstance(opened, PackedStore):
        result["pack"] = opened.describe(name)
    if video_id is not None:
        record = opened.read(name, video_id)
        result["record"] = {
            **{f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "features"},
            "clip_starts": record.clip_starts.tolist(),
            "clip_ends": record.clip_ends.tolist(),
            "shape": list(record.features.shape),
            "mean": float(record.features.astype("float32").mean()),
        }
    return result


def _print_description(result: dict[str, object]) -> None:
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, text in value.items():
                typer.echo(f"  {inner}: {text}")
        else:
            typer.echo(f"{key}: {value}")


@features_app.command()
def verify(
    store: StoreOrPack,
    features: FeatureSet = None,
    delete: Annotated[
        bool, typer.Option(help="Delete damaged videos, so that the next extraction makes them again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every feature against its checksum; exit code 1 if any is damaged."""
    from har_pipeline.features.pack import PackedStore, open_features

    opened = open_features(store)
    if delete and isinstance(opened, PackedStore):
        raise typer.BadParameter("--delete is for stores: a damaged pack is mended by `har features pack`")
    names = [opened.resolve(features)] if features else opened.feature_sets()
    damaged = []
    checked = 0
    for name in names:
        for damage in opened.verify(name):
            checked += 1
            if damage is not None:
                damaged.append({"feature_set": name, "video_id": damage.video_id, "reason": damage.reason})
                if delete and not isinstance(opened, PackedStore):
                    opened.delete(name, damage.video_id)
    if as_json:
        print_json({"checked": checked, "damaged": damaged, "deleted": delete})
    else:
        for row in damaged:
            note(f"damaged: {row['video_id']}: {row['reason']}")
        action = "deleted; run `har extract` again" if delete else "delete them with --delete and extract again"
        if isinstance(opened, PackedStore):
            action = "run `har features pack` again"
        typer.echo(f"{checked} videos checked, {len(damaged)} damaged" + (f" ({action})" if damaged else ""))
    if damaged:
        raise typer.Exit(1)


@features_app.command()
def pack(
    store: Store,
    features: Annotated[
        list[str] | None, typer.Option(help="Feature set, or the start of its name; give it once for each set.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The pack; store.pack beside store.zarr by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy feature sets into one flat array each, which training reads many times as fast as the store.

    `har train MANIFEST PACK`, or of raw frames `har train-video MANIFEST --store PACK`, takes the pack in the store's place
    and gives the same numbers, bit for bit. Features that come into the store later are noticed: the same command packs
    again what has changed, and nothing else. Without --features every set is packed that no PCA has reduced.
    """
    from har_pipeline.features.frames import EXTRACTOR
    from har_pipeline.features.pack import default_pack_path, pack_features, whole_sets
    from har_pipeline.features.store import FeatureStore

    opened, path = FeatureStore(store), out or default_pack_path(store)
    summaries = []
    for name in [opened.resolve(prefix) for prefix in features] if features else whole_sets(opened):
        with video_bar() as update:
            summaries.append(pack_features(opened, name, path, update))
    if as_json:
        print_json([dataclasses.asdict(summary) for summary in summaries])
        return
    for summary in summaries:
        size = f"{summary.num_bytes / 2**20:,.1f} MiB"
        done = "packed" if summary.written else "was packed before and is up to date"
        typer.echo(f"{summary.feature_set}: {summary.videos:,} videos, {summary.clips:,} clips, {size}, {done}")
    raw = [opened.spec(summary.feature_set).extractor == EXTRACTOR for summary in summaries]
    if not all(raw):
        typer.echo(f"next: har train MANIFEST {path} ...")
    if any(raw):
        typer.echo(f"next: har train-video MANIFEST --store {path} ...")


@features_app.command()
def reduce(
    ctx: typer.Context,
    store: Store,
    manifest: Annotated[Path, typer.Option(help="Manifest CSV, as for `har train`.")],
    dim: Annotated[int, typer.Option(help="Principal components to keep.", min=1)],
    features: FeatureSet = None,
    protocol: Protocol = "holdout",
    split: Annotated[str, typer.Option(help="Number of the split, or `all`: one feature set for every fold.")] = "0",
    split_file: Annotated[
        Path | None, typer.Option(help="A split from `har splits write` instead of a protocol.")
    ] = None,
    num_folds: NumFolds = 5,
    test_fraction: TestFraction = 0.3,
    column: Column = "split",
    val_fraction: Annotated[
        float,
        typer.Option(help="As for `har train`; give 0.2 if that gets --patience without it.", min=0, max=0.9),
    ] = 0.0,
    whiten: Annotated[bool, typer.Option(help="Divide each projection by its standard deviation.")] = False,
    l2: Annotated[bool, typer.Option(help="Divide each projected clip by its norm.")] = False,
    randomised: Annotated[bool, typer.Option(help="Approximate by a random subspace, drawn with --seed.")] = False,
    allow_missing: Annotated[bool, typer.Option(help="Fit without the training videos that have no features.")] = False,
    root: Root = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Reduce a feature set by a PCA that is fitted on a split's training videos only.

    The result is a feature set of its own, with every video of the first one; `har train` takes it for that split and
    refuses it for others. Exact unless --randomised. The same command goes on with an interrupted job.
    """
    from har_pipeline.datasets.manifests import manifest_sha256, read_manifest
    from har_pipeline.features.reduce import ReduceOptions, reduce_features
    from har_pipeline.features.store import FeatureStore

    opened = FeatureStore(store)
    records = read_manifest(manifest, root=root, check_files=False)
    chosen = chosen_splits(
        records,
        split_file,
        protocol,
        split,
        seed=seed,
        val_fraction=val_fraction,
        num_folds=num_folds,
        test_fraction=test_fraction,
        column=column,
        sha256=manifest_sha256(manifest),
        ctx=ctx,
    )
    source = opened.resolve(features or "")
    options = ReduceOptions(
        dim=dim, whiten=whiten, l2=l2, seed=seed if randomised else None, allow_missing=allow_missing
    )
    summaries = []
    for one in chosen:
        with video_bar() as update:
            summary = reduce_features(opened, source, one, options, update)
        summaries.append({"protocol": one.protocol, "split": one.index, **dataclasses.asdict(summary)})
        if not as_json:
            typer.echo(
                f"{summary.feature_set}: {summary.dim} components of {source} keep {summary.explained:.1%} of the variance "
                f"of {summary.num_rows} clips of {summary.num_train} training videos ({one.protocol} split {one.index}"
                f"{'' if summary.fitted else ', fitted before'}); {summary.done} videos projected, "
                f"{summary.already} were there, {summary.seconds:.1f} s"
            )
        if summary.missing:
            note(f"NOTE: {len(summary.missing)} training videos had no features: {', '.join(summary.missing[:5])}")
    if as_json:
        print_json(summaries)
    elif len(summaries) == 1:
        typer.echo(f"next: har train {manifest} {store} --features {summaries[0]['feature_set']} ... (the same split)")
