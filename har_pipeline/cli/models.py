"""`har models`: what can compute features, with which weights, and their download."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from har_pipeline.cli.options import App, AsJson
from har_pipeline.cli.output import note, print_json, print_rows, print_table, say
from har_pipeline.cli.progress import told_while_waiting
from har_pipeline.core.errors import ExtractionError, WeightsError
from har_pipeline.core.files import weights_cache
from har_pipeline.features.options import describe_handcrafted
from har_pipeline.models.net_names import check_extractor_name, in_family, net_rows
from har_pipeline.video.local.spec import HANDCRAFTED

RAFT = ("raft_small", "raft_large")
MOST_LAYERS = 20
CACHE = (
    "Downloaded weights are kept in the folder HAR_CACHE/weights, by default in the user's cache folder; set HAR_CACHE in the "
    "environment to move them."
)


class _ListByDefault(TyperGroup):
    """A group that takes `har models ...` for `har models list ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


models_app = App(
    cls=_ListByDefault,
    help=f"List the nets and handcrafted extractors (`har models`, `har models i3d`), or download weights.\n\n{CACHE}",
)


@models_app.command("list")
def list_models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Net or handcrafted extractor, shown in full, also timm:NAME and hf:NAME_OR_FOLDER; or part of a name, for "
            "the table of those."
        ),
    ] = None,
    stream: Annotated[Literal["rgb", "flow"] | None, typer.Option(help="Only what reads this stream.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what `har extract --extractor` takes, one line each. `har models` alone is short for it.

    clips: those of one video by default. GMAC: multiply-accumulates of one clip, in 10^9. *: weights that are there already.
    """
    other = name is not None and in_family(name) is not None
    known = _rows_of(name) if other and name else net_rows()
    rows: list[dict[str, Any]] = [{**row, "cached": _cached(row)} for row in known]
    handcrafted = describe_handcrafted()
    if stream is not None:
        rows = [row for row in rows if row["stream"] == stream]
        handcrafted = [row for row in handcrafted if row["stream"] == stream]
    exact = other or name in {row["net"] for row in rows} | {row["extractor"] for row in handcrafted}
    if name is not None and not other:
        rows = [row for row in rows if row["net"] == name or (not exact and name in row["net"])]
        handcrafted = [
            row for row in handcrafted if row["extractor"] == name or (not exact and name in row["extractor"])
        ]
    elif other:
        handcrafted = []
    if name is not None and not rows and not handcrafted:
        check_extractor_name(name)
        raise ExtractionError(f"{name} does not read {stream}")
    if as_json:
        print_json([*rows, *handcrafted])
    elif exact:
        _print_in_full(rows, handcrafted)
    else:
        _print_table(rows, handcrafted)


@models_app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Nets; raft_small and raft_large compute flow.")],
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights of one net, by their names in `har models NAME`. Repeat for several. Default: its own."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download weights into the cache and check them, for a machine that will have no network; prints where they are.

    A file that cannot be downloaded is named, with the place to put it; the exit code is then 1.
    Without --weights: those that `har extract` takes by itself, one set for each stream that a net reads.

    Example: har models fetch i3d vgg16
    """
    for name in names:
        if name not in RAFT:
            check_extractor_name(name)
        if name in HANDCRAFTED:
            raise typer.BadParameter(f"{name} is handcrafted and has no weights")
    if weights and (len(names) > 1 or names[0] in RAFT):
        raise typer.BadParameter("--weights are those of one net: give one NAME")

    from har_pipeline.models.extractors.hub import weights_sha256

    rows: list[dict[str, Any]] = []
    failed: list[WeightsError] = []
    for name in names:
        for chosen, found in _wanted(name, weights):
            try:
                with told_while_waiting(f"fetch {name}"):
                    path = found()
            except WeightsError as error:  # each file that is missing is told of
                failed.append(error)
                continue
            files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
            size, digits = sum(file.stat().st_size for file in files), weights_sha256(path)
            rows.append(
                {"net": name, "weights": chosen, "path": str(path), "MB": round(size / 1e6, 1), "sha256": digits}
            )
    if rows or as_json:
        print_rows(rows if as_json else [{**row, "sha256": row["sha256"][:16]} for row in rows], as_json)
    for missing in failed:
        note(f"failed: {missing}")
    if failed:
        raise typer.Exit(1)


def _wanted(name: str, weights: list[str] | None) -> list[tuple[str, Callable[[], Path]]]:
    """Return the weights of a net, and for each what gives its file, downloaded if it is not there."""
    if name in RAFT:
        from har_pipeline.video.flow.raft import published_raft

        return [("torchvision", functools.partial(published_raft, name))]
    from har_pipeline.models.extractors import find_net
    from har_pipeline.models.extractors.weights import published_file

    net = find_net(name)
    wanted = weights or dict.fromkeys(read.weights for read in net.inputs.values())
    return [(chosen, functools.partial(published_file, net, chosen)) for chosen in wanted]


def _rows_of(name: str) -> list[dict[str, Any]]:
    """Return the rows of a net of timm or transformers."""
    from har_pipeline.models.extractors import describe_net, find_net

    return describe_net(find_net(name))


def _cached(row: dict[str, Any]) -> str | None:
    """Return where downloaded weights are, None if they are not there, or a cache cannot be read."""
    if row["file"] is None:
        return None
    try:
        path = weights_cache() / row["file"]
        return str(path) if path.is_file() else None
    except (OSError, WeightsError):
        return None


def _is_there(row: dict[str, Any]) -> bool:
    """Whether weights need no download: they are cached, or come with a package."""
    return row["cached"] is not None or (row["file"] is None and bool(row["sha256"]))


def _print_table(rows: list[dict[str, Any]], handcrafted: list[dict[str, Any]]) -> None:
    lines: list[list[Any]] = []
    for net in dict.fromkeys(row["net"] for row in rows):
        own = [row for row in rows if row["net"] == net]
        first = next(row for row in own if row["default"])
        weights = [f"{row['weights']}{'*' * _is_there(row)}" for row in sorted(own, key=lambda row: not row["default"])]
        licences = dict.fromkeys(row["licence"].partition(" (")[0] for row in own)
        layer = first["default_layer"]
        dim = next(row["layers"][layer] for row in own if layer in row["layers"])
        streams = ", ".join(dict.fromkeys(row["stream"] for row in own))
        cells = [net, streams, layer, f"{dim:,}", first["clips"], first["gmacs_per_clip"]]
        lines.append([*cells, ", ".join(weights), ", ".join(licences)])
    for row in handcrafted:
        layer = row["default_layer"]
        dim = sum(row["layers"][one] for one in layer.split("+"))
        cells = [row["extractor"], row["stream"], layer, f"{dim:,}", f"a row for each {row['finds']}"]
        lines.append([*cells, None, "none", None])
    print_table(["net", "stream", "layer", "dim", "clips of a video", "GMAC", "weights", "licence"], lines)
    said = "*: there already. " if any("*" in line[6] for line in lines) else ""
    typer.echo("")
    say(
        f"{said}Each in full: har models NAME. Besides: --weights PATH (a local file) and --weights random (for tests). Any "
        "image model of timm: timm:NAME; encoders of transformers: hf:NAME_OR_FOLDER (docs/backbones.md)."
    )


def _gmacs(row: dict[str, Any]) -> str:
    return f"{row['gmacs_per_clip']} GMAC a clip, " if row["gmacs_per_clip"] is not None else ""


def _print_in_full(rows: list[dict[str, Any]], handcrafted: list[dict[str, Any]]) -> None:
    for row in rows:
        named = [f"{k} {v:,}{' (default)' if k == row['default_layer'] else ''}" for k, v in row["layers"].items()]
        listed = ", ".join(
            named if len(named) <= MOST_LAYERS else [*named[:MOST_LAYERS], f"and {len(named) - MOST_LAYERS} more"]
        )
        own = ", the default" if row["default"] else ""
        say(f"{row['net']}  weights {row['weights']!r}{own}, {row['stream']}  ({row['source']})")
        say(f"  input {row['input']}, {_gmacs(row)}{row['preprocess']}")
        say(f"  default clips: {row['clips']}; frames {row['resize']}, scaled by {row['resize_method']}")
        say(f"  layers: {listed}")
        if row["tokens"]:
            listed = ", ".join(f"{k} {count:,} of {dim:,} values" for k, (count, dim) in row["tokens"].items())
            say(f"  tokens of a clip (--tokens): {listed}")
        say(f"  trained on {row['trained_on']}; licence {row['licence']}")
        say(f"  from {row['url']}, sha256 {row['sha256'] or 'not published'}")
        if row["file"] is not None:
            say(
                f"  {row['cached'] or 'not downloaded: har models fetch ' + row['net'] + ' --weights ' + row['weights']}"
            )
        typer.echo("")
    for row in handcrafted:
        say(f"{row['extractor']}  handcrafted, no weights, {row['stream']}  ({row['source']})")
        say(f"  one feature for each {row['finds']}; frames {row['resize']}")
        listed = ", ".join(f"{name} {dim}" for name, dim in row["layers"].items())
        say(f"  layers: {listed}, or several joined by +; default {row['default_layer']}")
        typer.echo("")
