"""Options of the commands: those generated from the fields of a config, and those that several commands share."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape
from typer.core import TyperArgument, TyperCommand, TyperOption

from har_pipeline.core.errors import HarError, UsageError
from har_pipeline.core.kinds import what_is
from har_pipeline.core.objects import SCHEMES, StorePath, store_path
from har_pipeline.core.options import Option, options_of, value_type
from har_pipeline.core.text import did_you_mean, printable

if TYPE_CHECKING:
    from har_pipeline.evaluation.run_folder import Origin

AllowMissing = Annotated[bool, typer.Option(help="Leave out videos that have no features, or no frames.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps; auto uses a GPU if there is one.")]
Manifest = Annotated[Path, typer.Argument(help="Manifest CSV; make one with `har manifest build`.")]
Overwrite = Annotated[bool, typer.Option(help="Replace runs that exist, finished or not.")]
Repeats = Annotated[
    int,
    typer.Option(help="Number of seeds to train, starting at --seed (then in folders seed0, seed1 ...).", min=1),
]
Root = Annotated[
    Path | None, typer.Option(help="Folder that the manifest's paths are relative to. Default: the manifest's folder.")
]
Seed = Annotated[int, typer.Option(help="Random seed.", min=0)]
Shard = Annotated[
    str,
    typer.Option(
        help="k/n: do only part k of n, to share one store between machines.", rich_help_panel="Several machines"
    ),
]
Store = Annotated[
    StorePath,
    typer.Argument(
        parser=store_path,
        help="Feature store: a folder such as store.zarr, or an address such as s3://bucket/store.zarr.",
    ),
]
StoreOrPack = Annotated[
    StorePath,
    typer.Argument(
        parser=store_path, help="Feature store of `har extract`, or its pack of `har features pack`: folder or address."
    ),
]
Workers = Annotated[int | None, typer.Option(help="Worker processes. Default: from the CPU count.", min=1)]


# Where a command's context keeps its arguments as they were typed.
TYPED = f"{__name__}.typed"


class Command(TyperCommand):
    """A command whose help names its arguments as docs/cli.md does, whatever Typer's way: MANIFEST, [VIDEOS...]."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Typer reads help texts as Rich's markup, in which words in brackets are styles and are not shown.
        self.help = self.help and escape(self.help)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument | TyperOption) and parameter.help:
                parameter.help = escape(parameter.help)
            if parameter.param_type_name == "argument":
                name = parameter.name.upper() + "..." * (parameter.nargs != 1)
                parameter.metavar = name if parameter.required else f"[{name}]"

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line after the command's name."""
        arguments = [one.metavar or "" for one in self.params if one.param_type_name == "argument"]
        return [self.options_metavar or "", *arguments]

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments; control characters of one that is refused are shown. The context keeps them as typed."""
        words = list(args[1] if len(args) > 1 else kwargs["args"])  # parsing empties the list
        with _shown_errors():
            ctx = super().make_context(*args, **kwargs)
            for parameter in self.params:
                _refuse_address(parameter, ctx.params.get(parameter.name or ""))
        ctx.meta[TYPED] = words
        return ctx

    def invoke(self, ctx: Any) -> Any:
        """Run the command; control characters of an argument that it refuses are shown."""
        with _shown_errors():
            return super().invoke(ctx)


def _refuse_address(parameter: Any, value: Any) -> None:
    """Raise if a path is an address in object storage: as a path it would be a folder of this machine named s3:."""
    for path in value if isinstance(value, list | tuple) else [value]:
        if isinstance(path, Path) and (found := re.match(rf"({'|'.join(SCHEMES)}):/", path.as_posix())):
            raise typer.BadParameter(
                f"only feature stores and packs can be in object storage, as {found[1]}://BUCKET/PATH", param=parameter
            )


@contextlib.contextmanager
def _shown_errors() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise typer.BadParameter(printable(str(error))) from error
    except typer.BadParameter as error:
        error.message = printable(_with_near_choice(error))
        raise


def _with_near_choice(error: typer.BadParameter) -> str:
    """Return the message of a refused value, with the choice that it resembles."""
    message = error.message.removeprefix("Value error, ")
    given, *choices = re.findall(r"'([^']*)'", message) or [""]
    near = did_you_mean(given, choices).strip() if "is not one of" in message else ""
    return f"{message} D{near[1:]}" if near else message


class App(typer.Typer):
    """A Typer app or group of `Command`s."""

    def command(self, name: str | None = None, *, cls: Any = Command, **settings: Any) -> Callable[[Any], Any]:
        """Return the decorator that adds a function as a command."""
        return super().command(name, cls=cls, **settings)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a command changes of a config's options, as in `Annotated[TrainConfig, Shown(without=("epochs",))]`."""

    # Fields that the command has no options for; they keep the values of the parameter's default.
    without: tuple[str, ...] = ()
    # Field -> help text in the place of its own.
    help: Mapping[str, str] = dataclasses.field(default_factory=dict)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose dataclass parameters become options, one for each field that is a `core.options.option`.

    The parameter's default gives the options' defaults; without one it is the dataclass with all of its defaults. Fields
    of the same name in several dataclasses share an option, listed where the last of them has it. All parameters are
    keyword-only. What the dataclass refuses is a usage error.
    """
    hints = get_type_hints(command, include_extras=True)
    shown: dict[str, inspect.Parameter] = {}
    configs: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        parts: tuple[Any, ...] = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if not dataclasses.is_dataclass(parts[0]):
            shown[parameter.name] = parameter.replace(annotation=hint)
            continue
        kind: Any = parts[0]
        default = kind() if parameter.default is parameter.empty else parameter.default
        configs[parameter.name] = default
        changes = next((mark for mark in parts if isinstance(mark, Shown)), Shown())
        for name, (one, annotation) in options_of(kind).items():
            if name not in changes.without:
                annotation = Annotated[annotation, _typer_option(one, changes.help.get(name), annotation)]
                value, name = getattr(default, name), one.name or name
                shown.pop(name, None)
                shown[name] = parameter.replace(name=name, default=value, annotation=annotation)

    def run(**given: Any) -> None:
        built = {name: _changed(default, given) for name, default in configs.items()}
        # A config's parameter may be called as one of its fields: `split` of a `SplitChoice`.
        command(**{name: given[name] for name in hints if name in given} | built)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__annotations__ = {name: parameter.annotation for name, parameter in shown.items()}
    run.__signature__ = inspect.Signature(list(shown.values()))  # type: ignore[attr-defined]
    return run


def _typer_option(one: Option, text: str | None, kind: Any) -> Any:
    text = text or one.help
    # Typer shows and checks bounds that belong to the range; the others are said, and checked by the config.
    if said := dataclasses.replace(one, min=None, max=None).range:
        text = f"{text} {said.capitalize()}."
    parser = store_path if value_type(kind)[0] is StorePath else None
    return typer.Option(help=text, rich_help_panel=one.panel, min=one.min, max=one.max, parser=parser)


def _changed(default: Any, given: Mapping[str, Any]) -> Any:
    kind: Any = type(default)
    names = {name: one.name or name for name, (one, _) in options_of(kind).items()}
    try:
        return dataclasses.replace(default, **{name: given[shown] for name, shown in names.items() if shown in given})
    except (HarError, ValueError) as error:
        raise option_error(error, names) from error


def given_options(ctx: typer.Context | None, names: Iterable[str]) -> list[str]:
    """Return those of a command's parameters that were given on the command line, as they were written."""
    given = [name for name in names if ctx and getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    return [f"--{name.replace('_', '-')}" for name in given]


def run_origin(ctx: typer.Context, manifest: Path, root: Path | None) -> Origin:
    """Return what a command's runs are made by and from: its command line, printable, and the manifest."""
    from har_pipeline.evaluation.run_folder import Origin

    # Without the program's own name, which may be a path or `python -m`.
    words = ["har", *ctx.command_path.removeprefix(ctx.find_root().command_path).split(), *ctx.meta[TYPED]]
    return Origin(command=printable(shlex.join(words)), manifest=manifest, root=root)


def option_error(error: Exception, names: Iterable[str]) -> typer.BadParameter:
    """Return the usage error of a refused value, its fields `names` written as options: `--batch-size`, not `batch_size`.

    Words of the language, as in `the published schedule`, stay: a field is followed by what it must be or belongs to.
    """
    fields = re.compile(rf"(?<![\w-])({'|'.join(names)})(?=( and \w+)? (?:must|belongs?|takes|keeps)\b|=)")
    return typer.BadParameter(fields.sub(lambda found: f"--{found[1].replace('_', '-')}", str(error)))


def check_folder(out: Path) -> None:
    """Check a folder to be written. Raises: typer.BadParameter if a file is there, or a store or pack."""
    if out.is_file():
        raise typer.BadParameter(f"{out} is a file: name a folder")
    if (found := what_is(out)) in ("a feature store", "a pack of features"):
        raise typer.BadParameter(f"{out} is {found}: name another folder")


def parse_shard(text: str) -> tuple[int, int]:
    """Return (k, n) from `k/n`. Raises: typer.BadParameter if it is not of that form."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise typer.BadParameter(f"--shard {text!r}: give k/n with 1 <= k <= n, such as 2/4")
    return int(parts[0]), int(parts[1])
