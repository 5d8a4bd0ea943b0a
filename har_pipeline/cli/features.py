"""`har models`, `har extract` and `har features`: stage one and what it stores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from har_pipeline.cli.common import (
    AsJson,
    DecoderChoice,
    Device,
    Dtype,
    Precision,
    Root,
    Seed,
    Workers,
    extraction_bar,
    note,
    print_json,
    print_table,
)
from har_pipeline.records import ClipSpec, Sampling

features_app = typer.Typer(no_args_is_help=True, help="List, show and verify the feature sets of a store.")

Store = Annotated[Path, typer.Argument(help="The feature store, a folder such as store.zarr.")]
FeatureSet = Annotated[str | None, typer.Option("--features", help="Feature set, or the start of its name.")]


def models(as_json: AsJson = False) -> None:
    """List the nets, their layers and feature dimensions, weights and licences."""
    from har_pipeline.extractors import NETS

    rows: list[dict[str, Any]] = []
    for net in NETS.values():
        for name, weights in net.weights.items():
            layers = {
                layer: dim for layer, dim in net.layers.items() if weights.layers is None or layer in weights.layers
            }
            rows.append(
                {
                    "net": net.name,
                    "stream": weights.stream,
                    "input": f"{net.inputs[weights.stream].clips.clip_len}x{net.input_size}x{net.input_size}",
                    "layers": layers,
                    "default_layer": net.default_layer,
                    "gmacs_per_clip": net.gmacs,
                    "weights": name,
                    "trained_on": weights.trained_on,
                    "licence": weights.licence,
                    "url": weights.url,
                    "sha256": weights.sha256,
                    "preprocess": weights.preprocess.describe(),
                    "source": net.source,
                }
            )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        listed = ", ".join(
            f"{k} {v:,}{' (default)' if k == row['default_layer'] else ''}" for k, v in row["layers"].items()
        )
        typer.echo(f"{row['net']}  weights {row['weights']!r}, {row['stream']}  ({row['source']})")
        typer.echo(f"  input {row['input']}, {row['gmacs_per_clip']} GMAC a clip, {row['preprocess']}")
        typer.echo(f"  layers: {listed}")
        typer.echo(f"  trained on {row['trained_on']}; licence {row['licence']}")
        typer.echo(f"  from {row['url']}, sha256 {row['sha256']}...\n")
    typer.echo("Besides these: --weights PATH (a local file) and --weights random (for tests).")


def parse_shard(text: str) -> tuple[int, int]:
    """Return (k, n) from `k/n`. Raises: typer.BadParameter if it is not of that form."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise typer.BadParameter(f"{text!r}: give k/n with 1 <= k <= n, as in 2/4")
    return int(parts[0]), int(parts[1])


def extract(
    manifest: Annotated[Path, typer.Argument(help="Manifest CSV; make one with `har manifest build`.")],
    store: Store,
    extractor: Annotated[str, typer.Option(help="Net; see `har models`.")] = "efficientnet_lite0",
    layer: Annotated[str | None, typer.Option(help="Layer of the net; its default if not given.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Name from `har models`, a file, or `random` (tests only).")
    ] = None,
    sampling: Annotated[
        Sampling, typer.Option(help="first: the first clips; uniform: spread over the video; dense: all of them.")
    ] = "first",
    num_clips: Annotated[
        int | None, typer.Option(help="Clips per video (frames, for frame nets); 40, or all if dense.", min=1)
    ] = None,
    clip_stride: Annotated[int, typer.Option(help="Frames between the starts of two clips.", min=1)] = 1,
    fps: Annotated[
        float | None, typer.Option(help="Frame rate to resample to, by frame number; as filmed if not given.")
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(help="stretch-224 (the paper's) or short256-center224; the net's default if not given."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips per batch; 16 on a CPU, 64 on a GPU.", min=1)] = None,
    decoder: Annotated[
        DecoderChoice, typer.Option(help="auto: PyAV; decord is a cross-check, PyAV takes over where decord is wrong.")
    ] = (DecoderChoice.auto),
    time_limit: Annotated[float, typer.Option(help="Seconds that decoding one video may take.", min=0.001)] = 600.0,
    shard: Annotated[
        str, typer.Option(help="k/n: do only the k-th of n parts, for several machines on one store.")
    ] = "1/1",
    retry_failed: Annotated[bool, typer.Option(help="Try videos again that failed before.")] = False,
    root: Root = None,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = None,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the net; auto: bf16 where the device has it.")] = (
        Precision.auto
    ),
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored features.")] = Dtype.float16,
    as_json: AsJson = False,
) -> None:
    """Turn the videos of a manifest into features in a store. Run it again to go on after an interruption.

    A video that cannot be read is listed with its reason and remembered in the store; the others go on, and the exit
    code is 1. Several processes or machines may write one store at the same time.
    """
    from har_pipeline.extract import ExtractOptions
    from har_pipeline.extract import extract as run_extract
    from har_pipeline.extractors import build_extractor
    from har_pipeline.manifests import read_manifest
    from har_pipeline.store import FeatureStore

    shard_parts = parse_shard(shard)
    records = read_manifest(manifest, root=root, check_files=False)
    dense = sampling == "dense"
    if dense and num_clips is not None:
        raise typer.BadParameter("dense sampling takes every clip: leave --num-clips out")
    spec = ClipSpec(sampling=sampling, num_clips=None if dense else num_clips or 40, clip_stride=clip_stride)
    options = ExtractOptions(
        clips=spec,
        fps=fps,
        resize=resize,
        dtype=dtype.value,
        workers=workers,
        batch_size=batch_size,
        decoder=decoder.value,
        time_limit_s=time_limit,
        shard=shard_parts,
        retry_failed=retry_failed,
    )
    net = build_extractor(extractor, layer=layer, weights=weights, device=device, precision=precision.value, seed=seed)
    if net.weights.startswith("random"):
        note("WARNING: random weights: these features are for tests, they mean nothing")
    try:
        with extraction_bar() as update:
            summary = run_extract(records, FeatureStore(store, create=True), net, options, update)
    except KeyboardInterrupt:
        note("interrupted: what is done is kept; run the same command again to go on")
        raise typer.Exit(130) from None
    for video_id, notes in summary.notes.items():
        note(f"note: {video_id}: {'; '.join(notes)}")
    for video_id, reason in summary.failed.items():
        note(f"failed: {video_id}: {reason}")
    for video_id, reason in summary.failed_before.items():
        note(f"failed in an earlier run: {video_id}: {reason} (try again with --retry-failed)")
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        failures = len(summary.failed) + len(summary.failed_before)
        rate = summary.clips / summary.seconds if summary.seconds else 0.0
        typer.echo(
            f"{summary.feature_set}: {summary.done} videos done, {summary.already} were there, {failures} failed, "
            f"of {summary.total}; {summary.seconds:.1f} s, {rate:.1f} clips/s, bound by {summary.bound_by}, "
            f"{summary.device} {summary.precision}"
        )
    if summary.failed or summary.failed_before:
        raise typer.Exit(1)


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
