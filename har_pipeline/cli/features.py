"""`har features`: what stage one stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from har_pipeline.cli.common import AsJson, note, print_json, print_table

features_app = typer.Typer(no_args_is_help=True, help="List, show and verify the feature sets of a store.")

Store = Annotated[Path, typer.Argument(help="The feature store, a folder such as store.zarr.")]
FeatureSet = Annotated[str | None, typer.Option("--features", help="Feature set, or the start of its name.")]


@features_app.command("list")
def list_sets(store: Store, as_json: AsJson = False) -> None:
    """List the feature sets of a store."""
    from har_pipeline.store import FeatureStore

    opened = FeatureStore(store)
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
    store: Store,
    features: FeatureSet = None,
    video_id: Annotated[str | None, typer.Option(help="Show this video's record too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a feature set was made, its videos and its failures."""
    from har_pipeline.store import FeatureStore

    opened = FeatureStore(store)
    name = opened.resolve(features or "")
    result: dict[str, object] = {
        "feature_set": name,
        "spec": opened.spec(name).to_dict(),
        "videos": len(opened.video_ids(name)),
        "failures": opened.failures(name),
    }
    if video_id is not None:
        record = opened.read(name, video_id)
        result["record"] = {
            **{f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "features"},
            "clip_starts": record.clip_starts.tolist(),
            "clip_ends": record.clip_ends.tolist(),
            "shape": list(record.features.shape),
            "mean": float(record.features.astype("float32").mean()),
        }
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, text in value.items():
                typer.echo(f"  {inner}: {text}")
        else:
            typer.echo(f"{key}: {value}")


@features_app.command()
def verify(
    store: Store,
    features: FeatureSet = None,
    delete: Annotated[
        bool, typer.Option(help="Delete damaged videos, so that the next extraction makes them again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every feature against its checksum; exit code 1 if any is damaged."""
    from har_pipeline.store import FeatureStore

    opened = FeatureStore(store)
    names = [opened.resolve(features)] if features else opened.feature_sets()
    damaged = []
    checked = 0
    for name in names:
        for damage in opened.verify(name):
            checked += 1
            if damage is not None:
                damaged.append({"feature_set": name, "video_id": damage.video_id, "reason": damage.reason})
                if delete:
                    opened.delete(name, damage.video_id)
    if as_json:
        print_json({"checked": checked, "damaged": damaged, "deleted": delete})
    else:
        for row in damaged:
            note(f"damaged: {row['video_id']}: {row['reason']}")
        action = "deleted; run `har extract` again" if delete else "delete them with --delete and extract again"
        typer.echo(f"{checked} videos checked, {len(damaged)} damaged" + (f" ({action})" if damaged else ""))
    if damaged:
        raise typer.Exit(1)
