"""`har extract`, `har flow` and `har points`: extraction, and pictures of what extractors see."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from har_pipeline.cli import options
from har_pipeline.cli.options import given_options, parse_shard, with_options
from har_pipeline.cli.output import note, print_failures, print_json
from har_pipeline.cli.progress import extraction_bar, told_while_waiting, video_bar
from har_pipeline.core.errors import ManifestError, VideoError
from har_pipeline.core.kinds import is_video_name
from har_pipeline.core.options import device_option, option, seed_option
from har_pipeline.core.records import ClipSpec, Crops, Padding, Sampling
from har_pipeline.core.signals import goes_on_when_repeated
from har_pipeline.features.options import EngineOptions, ExtractOptions, LocalOptions
from har_pipeline.models.net_names import check_extractor_name
from har_pipeline.video.flow.spec import FlowMethod, FlowSpec
from har_pipeline.video.local.spec import HANDCRAFTED

if TYPE_CHECKING:
    from har_pipeline.core.objects import StorePath
    from har_pipeline.core.records import VideoRecord
    from har_pipeline.features.extract import NetRecipe
    from har_pipeline.features.lanes import ExtractSummary
    from har_pipeline.features.store import FeatureStore
    from har_pipeline.features.workers import Pool
    from har_pipeline.models.extractors.base import Extractor

BOUND = "Clip flow to plus or minus this many pixels per frame."
METHOD = "How flow is computed."


@dataclass(frozen=True, slots=True, kw_only=True)
class NetChoice:
    """Which nets compute the features, and how."""

    extractor: list[str] | None = option(
        None,
        "Net or handcrafted extractor, see `har models`; timm:NAME, an image model of timm; hf:NAME_OR_FOLDER, a video or "
        "image encoder of transformers. Repeat for several nets in one decoding pass. Default: efficientnet_lite0.",
    )
    stream: Literal["rgb", "flow"] = option("rgb", "What the nets see; flow is computed on the fly.", panel="Net")
    layer: str | None = option(
        None,
        "Layer of the net; of a handcrafted extractor its descriptors, joined by +. Default: the extractor's own.",
        panel="Net",
    )
    tokens: bool = option(
        False,
        "Store one feature for each position of the layer's map (token), such as 49 of a frame at vgg16's pool5, for "
        "`har train --head attentive`; much larger than one for each clip.",
        panel="Net",
    )
    weights: str | None = option(
        None,
        "Name from `har models`, downloaded once into the cache (HAR_CACHE moves it), a file, or `random` (tests only).",
        panel="Net",
    )
    mean_cube: Path | None = option(
        None, "c3d: subtract this mean cube (.npy) instead of the channel means.", panel="Net"
    )
    seed: int = seed_option()
    device: str = device_option()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Arithmetic of the net. auto: bf16 where it is fast and close; fp32 with --dtype float32. On NVIDIA GPUs PyTorch "
        "multiplies fp32 convolutions in TF32.",
        panel="Net",
    )

    def __post_init__(self) -> None:
        if len(self.names) > 1 and (self.layer or self.weights not in (None, "random")):
            raise ValueError("--layer and --weights FILE belong to one net: give one --extractor, or none of them")
        for name in self.names:
            check_extractor_name(name)
        if len(self.names) > 1 and any(name in HANDCRAFTED for name in self.names):
            raise ValueError(f"{' and '.join(HANDCRAFTED)} are extracted alone: give one --extractor")
        if self.weights and Path(self.weights).suffix and not Path(self.weights).expanduser().exists():
            raise ValueError(f"--weights {self.weights}: no such file")
        if self.mean_cube is not None and not self.mean_cube.exists():
            raise ValueError(f"--mean-cube {self.mean_cube}: no such file")

    @property
    def names(self) -> list[str]:
        """The nets' names."""
        return self.extractor or ["efficientnet_lite0"]

    @property
    def handcrafted(self) -> bool:
        """Whether it is no net but a handcrafted extractor, which is alone."""
        return self.names[0] in HANDCRAFTED

    def recipes(self, dtype: str) -> list[NetRecipe]:
        """Return what the nets are built of, for features of a stored dtype."""
        from har_pipeline.features.extract import NetRecipe

        # Exact storage asks for exact arithmetic.
        precision = "fp32" if self.precision == "auto" and dtype == "float32" else self.precision
        return [
            NetRecipe(
                name=name,
                layer=self.layer,
                stream=self.stream,
                weights=self.weights,
                precision=precision,
                seed=self.seed,
                mean_cube=self.mean_cube,
                tokens=self.tokens,
            )
            for name in self.names
        ]

    def build(self, recipes: list[NetRecipe], spread: bool, at_once: bool) -> list[Extractor]:
        """Return the nets. at_once: as of `build_extractor`. spread: workers build those that compute, on their devices."""
        if spread:
            recipes = [dataclasses.replace(recipe, precision="fp32") for recipe in recipes]
        return [recipe.build("cpu" if spread else self.device, at_once=at_once and not spread) for recipe in recipes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipChoice:
    """What is changed of a net's own clips; None: nothing."""

    sampling: Sampling | None = option(
        None,
        "Which clips of a video to read. uniform: spread over the video; dense: all; sparse: some of the dense ones; "
        "segments: the middle of equal parts (TSN); first: the first ones only. Default: the net's own, over the whole video.",
        panel="Clips of a video",
    )
    num_clips: int | None = option(None, "Clips per video (frames, for frame nets).", min=1, panel="Clips of a video")
    clip_len: int | None = option(None, "Frames per clip.", min=1, panel="Clips of a video")
    clip_stride: int | None = option(None, "Frames between the starts of two clips.", min=1, panel="Clips of a video")
    frame_interval: int | None = option(
        None, "Frames from one frame of a clip to the next.", min=1, panel="Clips of a video"
    )
    padding: Padding | None = option(
        None,
        "Fill clips past the last frame: repeat_last = with that frame, loop = from the video's start.",
        panel="Clips of a video",
    )
    segment_seed: int | None = option(
        None,
        "Draw random places in the segments with this seed, as in TSN's training.",
        min=0,
        panel="Clips of a video",
    )

    def of(self, default: ClipSpec) -> ClipSpec:
        """Return a net's own clips with the changes. Raises: typer.BadParameter if they do not go together."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        sampling = given.get("sampling", default.sampling)
        if sampling == "dense":
            if "num_clips" in given:
                raise typer.BadParameter(
                    "dense sampling takes every clip: leave --num-clips out, or use --sampling sparse"
                )
            given["num_clips"] = None
        elif default.num_clips is None and "num_clips" not in given:
            raise typer.BadParameter(f"{sampling} sampling needs --num-clips")
        if "clip_stride" in given and sampling in ("uniform", "segments"):
            raise typer.BadParameter(
                f"--clip-stride is for --sampling first, dense and sparse: {sampling} sampling sets where clips begin"
            )
        return dataclasses.replace(default, **given)


# Options of `har extract` that only nets have, and that only handcrafted extractors have.
OF_NETS = (
    *("stream", "weights", "mean_cube", "precision", *(field.name for field in dataclasses.fields(ClipChoice))),
    *(
        "tokens",
        "crops",
        "flow_method",
        "flow_bound",
        "fps",
        "resize",
        "resize_method",
        "flow_cache",
        "batch_size",
        "decoder",
    ),
)
OF_HANDCRAFTED = ("short_side", "max_points")


@with_options
def extract(
    ctx: typer.Context,
    *,
    manifest: options.Manifest,
    store: options.Store,
    nets: NetChoice,
    clips: ClipChoice,
    how: ExtractOptions,
    local: LocalOptions,
    where: EngineOptions,
    shard: options.Shard = "1/1",
    crops: Annotated[
        Crops | None,
        typer.Option(
            help="Crops whose features are averaged: ten = corners and centre, mirrored too.", rich_help_panel="Frames"
        ),
    ] = None,
    flow_method: Annotated[FlowMethod, typer.Option(help=METHOD, rich_help_panel="Optical flow")] = "tvl1",
    flow_bound: Annotated[float, typer.Option(help=BOUND, min=0.1, rich_help_panel="Optical flow")] = 20.0,
    root: options.Root = None,
    as_json: options.AsJson = False,
) -> None:
    """Extract features of a manifest's videos into a store. Run again to continue after an interruption.

    Most jobs need no option but --extractor and --name: each net has its own clips, frames and weights.

    harris3d_hof and idt are handcrafted: one feature for each interest point or trajectory, for an LSTM, or for
    `har features encode`, which makes one vector per video.

    A video that cannot be read is reported with its reason and recorded in the store; the others continue, and the exit
    code is 1. Several processes or machines may write to one store at the same time.

    One machine with several GPUs: --device cuda:0,cuda:1, a process for each. Several machines: --engine ray on a Ray
    cluster, where workers take videos from one queue; or a job array of Slurm or the like, --shard k/n on each machine.
    The features are the same; docs/scale-out.md has the commands.
    """
    devices = _check_options(ctx, nets, how, where)
    records = _colour_videos(manifest, store, root)
    from har_pipeline.features.set_names import check_set_name
    from har_pipeline.features.store import FeatureStore

    if how.name is not None:
        check_set_name(how.name)
    if store.exists():
        FeatureStore(store, create=True)
    goes_on_when_repeated()
    how = dataclasses.replace(how, shard=parse_shard(shard))
    if nets.handcrafted:
        chosen = dataclasses.replace(
            local, extractor=nets.names[0], layer=nets.layer or "", dtype=how.dtype, shard=how.shard
        )
        _extract_local(records, FeatureStore(store, create=True), chosen, where, as_json)
        return
    how = dataclasses.replace(
        how, flow=FlowSpec(method=flow_method, bound_px=flow_bound) if nets.stream == "flow" else None
    )
    spread = len(devices) > 1 or where.engine == "ray"
    if where.engine != "ray":  # whose workers look on their own machines
        from har_pipeline.video.decode import require_decoder

        require_decoder(how.decoder)  # before weights are downloaded
    recipes = nets.recipes(how.dtype)
    wanted = _wanted(nets, recipes, clips, how, crops, devices, spread=spread, at_once=not store.exists())

    from har_pipeline.features.extract import extract_many, extract_with

    with pool_of(where, devices) as pool, extraction_bar() as update:
        opened = FeatureStore(store, create=True)
        if pool is None:
            summaries = extract_many(records, opened, wanted, update)
        else:
            ordered = [(recipe, one) for recipe, (_, one) in zip(recipes, wanted, strict=True)]
            summaries = extract_with(pool, records, opened, ordered, update)
    _print_summaries(summaries, [one.clips for _, one in wanted], spread, as_json)
    if any(summary.failed or summary.failed_before for summary in summaries):
        raise typer.Exit(1)


def _check_options(ctx: typer.Context, nets: NetChoice, how: ExtractOptions, where: EngineOptions) -> list[str]:
    """Return the devices. Raises: typer.BadParameter if the options do not go together."""
    name, *others = nets.names
    if how.name is not None and others:
        raise typer.BadParameter("--name is for one feature set: give one --extractor")
    devices = check_devices(nets.device, where)
    if nets.handcrafted and len(devices) > 1:
        raise typer.BadParameter(f"--device {nets.device}: {name} needs no device; --workers sets its processes")
    if given := given_options(ctx, OF_NETS if nets.handcrafted else OF_HANDCRAFTED):
        kind = "is handcrafted" if nets.handcrafted else "is a net"
        raise typer.BadParameter(f"{name} {kind} and has no {' or '.join(given)}")
    return devices


def _colour_videos(manifest: Path, store: StorePath, root: Path | None) -> list[VideoRecord]:
    """Return the rows of a manifest. Raises: ManifestError also if none names a colour video."""
    from har_pipeline.datasets.manifests import read_manifest

    records = read_manifest(manifest, root=root, check_files=False)
    if not any(record.path for record in records):
        raise ManifestError(
            f"{manifest}: its rows name depth (depth_path) and no colour videos (path): nets read depth as raw frames, which "
            f"`har frames {manifest} {store}` prepares"
        )
    return records


def _wanted(
    nets: NetChoice,
    recipes: list[NetRecipe],
    clips: ClipChoice,
    how: ExtractOptions,
    crops: Crops | None,
    devices: list[str],
    *,
    spread: bool,
    at_once: bool,
) -> list[tuple[Extractor, ExtractOptions]]:
    """Return the nets, and what is to be extracted with each: what does not fit is said before any worker starts.

    spread, at_once: as of `NetChoice.build`.
    """
    from har_pipeline.features.extract import feature_spec
    from har_pipeline.models.device import pick_device
    from har_pipeline.video.preprocess import with_crops

    for device in devices if len(devices) > 1 else ():
        pick_device(device)
    with told_while_waiting("load nets"):
        built = nets.build(recipes, spread, at_once)  # a net that cannot be built leaves no store
    wanted = []
    for net in built:
        resize = how.resize or net.input.resize
        try:
            resize = with_crops(resize, crops) if crops else resize
            wanted.append((net, dataclasses.replace(how, clips=clips.of(net.input.clips), resize=resize)))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    for net, one in wanted:
        feature_spec(net, one)
    for name, net in zip(nets.names, built, strict=True):
        if net.weights.startswith("random"):
            note(f"WARNING: {name}: random weights: these features are for tests and mean nothing")
    return wanted


def check_devices(choice: str, where: EngineOptions) -> list[str]:
    """Return the devices of `--device`, which is one or several with commas. Raises: typer.BadParameter if they do not fit."""
    devices = choice.split(",")
    if len(devices) > 1 and not all(devices):
        raise typer.BadParameter(f"--device {choice}: give devices with commas between them, such as cuda:0,cuda:1")
    if len(devices) > 1 and "auto" in devices:
        raise typer.BadParameter(f"--device {choice}: name each device, such as cuda:0,cuda:1")
    if where.engine == "ray" and devices not in (["auto"], ["cpu"]):
        raise typer.BadParameter(f"--device {choice}: Ray chooses the GPUs of its workers; leave it out, or give cpu")
    return devices


@contextlib.contextmanager
def pool_of(where: EngineOptions, devices: list[str]) -> Iterator[Pool | None]:
    """Give the workers that do the job, None: this process does it alone. Raises: ExtractionError if there are none."""
    if where.engine == "ray":
        from har_pipeline.features.ray_workers import RayActors

        with told_while_waiting("start Ray" if where.ray_address is None else "connect to Ray"):
            actors = RayActors(where, devices[0])
        with contextlib.closing(actors):
            yield actors
    elif len(devices) > 1:
        from har_pipeline.features.workers import LocalProcesses

        with contextlib.closing(LocalProcesses(devices)) as processes:
            yield processes
    else:
        yield None


def _extract_local(
    records: list[VideoRecord], store: FeatureStore, local: LocalOptions, where: EngineOptions, as_json: bool
) -> None:
    """Extract with a handcrafted extractor and print what was done. Raises: typer.Exit if a video failed."""
    from har_pipeline.features.local import extract_local

    with pool_of(where, ["cpu"]) as pool, video_bar() as update:
        summary = extract_local(
            records, store, local, lambda now: update(local.extractor, now.finished, now.total), pool=pool
        )
    print_failures(summary.notes, summary.failed, summary.failed_before)
    if as_json:
        print_json(dataclasses.asdict(summary))
    else:
        failures = len(summary.failed) + len(summary.failed_before)
        rate = summary.frames / summary.seconds if summary.seconds else 0.0
        typer.echo(
            f"{summary.feature_set}: {summary.done} videos done, {summary.already} already there, {failures} failed, of "
            f"{summary.total}; {summary.points} descriptors of {summary.frames} frames, {rate:.1f} frames/s, "
            f"{summary.workers} workers, {summary.seconds:.1f} s"
        )
    if summary.failed or summary.failed_before:
        raise typer.Exit(1)


def _print_summaries(
    summaries: list[ExtractSummary], clips: list[ClipSpec | None], spread: bool, as_json: bool
) -> None:
    """Print what was done. clips: that each feature set was made of. spread: whether several workers did it."""
    for summary, made_of in zip(summaries, clips, strict=True):
        print_failures(summary.notes, summary.failed, summary.failed_before)
        assert made_of is not None
        if text := summary.seen.note(made_of):
            note(f"NOTE: {summary.feature_set}: {text}")
    if summaries[0].flow_cache:
        note(f"NOTE: {summaries[0].flow_cache}")
    if as_json:
        rows = [dataclasses.asdict(summary) for summary in summaries]
        print_json(rows if len(rows) > 1 else rows[0])
        return
    for summary in summaries:
        _print_summary(summary)
    if any(summary.done for summary in summaries):
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summaries[0].stages.items())
        of_all = "; all workers together" if spread else ""
        typer.echo(f"{summaries[0].seconds:.1f} s in all{of_all}: {stages}; bound by {summaries[0].bound_by}")


def _print_summary(summary: ExtractSummary) -> None:
    failures = len(summary.failed) + len(summary.failed_before)
    rate = summary.clips / summary.seconds if summary.seconds else 0.0
    padded = f"{summary.padded} shorter than their clips and padded; " if summary.padded else ""
    worked = f"; {padded}{summary.clips} clips, {rate:.1f} clips/s, {summary.device} {summary.precision}"
    typer.echo(
        f"{summary.feature_set}: {summary.done} videos done, {summary.already} already there, {failures} failed, "
        f"of {summary.total}{worked if summary.done else ''}"
    )
    if text := summary.seen.describe():
        typer.echo(f"  {text}")


def points(
    video: Annotated[Path, typer.Argument(help="Video file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write, such as points.png.")],
    extractor: Annotated[
        Literal["harris3d_hof", "idt"], typer.Option(help="harris3d_hof: interest points; idt: trajectories.")
    ] = "idt",
    start_frame: Annotated[int, typer.Option(help="First frame, numbered from 0.", min=0)] = 0,
    frames: Annotated[int, typer.Option(help="Frames to search.", min=1, max=1000)] = 200,
    pictures: Annotated[int, typer.Option(help="Frames to show, evenly spaced.", min=1, max=64)] = 8,
    short_side: Annotated[
        int, typer.Option(help="Scale frames down to this shorter side first, in pixels; smaller ones stay.", min=16)
    ] = 240,
    as_json: options.AsJson = False,
) -> None:
    """Draw what a handcrafted extractor finds over frames of a video: interest points as circles, trajectories as lines."""
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise typer.BadParameter(f"{out}: give a picture a name that ends in .png or .jpg")
    _check_picture(video, out)

    from har_pipeline.video.encode import write_picture
    from har_pipeline.video.local.drawing import local_descriptor_sheet
    from har_pipeline.video.local.worker import find_points

    with video_bar("frames") as update:
        shown, found = find_points(
            video,
            extractor,
            short_side=short_side,
            start=start_frame,
            stop=start_frame + frames,
            on_frame=lambda done, total: update("search", done, total),
        )
    write_picture(out, local_descriptor_sheet(shown, found, pictures))
    if as_json:
        print_json(
            {"video": str(video), "out": str(out), "frames": len(shown), HANDCRAFTED[extractor].plural: len(found)}
        )
    else:
        typer.echo(f"{out}: {len(found)} {HANDCRAFTED[extractor].plural} in {len(shown)} frames")


def _check_picture(video: Path, out: Path) -> None:
    """Raise VideoError if there is no video, typer.BadParameter if nothing can be written where `out` says."""
    if not video.is_file():
        raise VideoError(f"{video}: {'is a folder, not a video file' if video.is_dir() else 'no such file'}")
    if out.exists() and out.samefile(video):
        raise typer.BadParameter(f"{out} is the video itself: give another name")
    if out.is_dir():
        raise typer.BadParameter(f"{out} is a folder: name a file")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"{out}: no such folder: {out.parent}")


def flow(
    video: Annotated[Path, typer.Argument(help="Video file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Video to write, such as flow.mp4.")],
    flow_method: Annotated[FlowMethod, typer.Option(help=METHOD)] = "tvl1",
    flow_bound: Annotated[float, typer.Option(help=BOUND, min=0.1)] = 20.0,
    max_px: Annotated[
        float, typer.Option(help="Flow speed, in pixels per frame, drawn at full saturation.", min=0.1)
    ] = 10.0,
    short_side: Annotated[
        int | None, typer.Option(help="Scale frames to this shorter side first, in pixels.", min=32)
    ] = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Render a video's optical flow in colour: hue is the direction, saturation the speed."""
    if not out.is_dir() and not is_video_name(out.name):
        raise typer.BadParameter(f"{out}: give a video a name that ends in .mp4 or .avi")
    _check_picture(video, out)

    from har_pipeline.models.device import pick_device
    from har_pipeline.video.flow.render import write_flow_video

    spec = FlowSpec(method=flow_method, bound_px=flow_bound)
    notes: list[str] = []
    with video_bar("frames") as update:
        count = write_flow_video(
            video,
            out,
            spec,
            device=str(pick_device(device)),
            short_side=short_side,
            max_px=max_px,
            on_note=notes.append,
            on_frame=lambda done, total: update("flow", done, total or None),
        )
    for text in notes:
        note(f"NOTE: {video}: {text}")
    if as_json:
        print_json({"video": str(video), "out": str(out), "frames": count, "flow": spec.describe(), "notes": notes})
    else:
        typer.echo(f"{out}: {count} frames of flow, {spec.describe()}")
