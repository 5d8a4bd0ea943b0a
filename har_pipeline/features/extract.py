"""Extraction: which features to extract from a manifest's videos, and with which spec; the engine does the work.

Videos that are in the store are skipped, so an interrupted job resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_pipeline.core.errors import ExtractionError, UsageError
from har_pipeline.core.memory import keep_freed_memory
from har_pipeline.core.processes import num_cores
from har_pipeline.core.records import FeatureSpec, Stream, VideoRecord
from har_pipeline.features.engine import Engine
from har_pipeline.features.job import Noted, Outcome, Progress, Report, Spent, shard_of, task_fields, unfinished
from har_pipeline.features.lanes import ExtractSummary, Lane, view_of
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.work import Made
from har_pipeline.features.workers import Pool, at_work
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.video.clip_worker import DecodeTask, Row, View
from har_pipeline.video.decode import require_decoder
from har_pipeline.video.flow.cache import FlowCache
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.preprocess import num_crops, parse_resize


def feature_spec(extractor: Extractor, options: ExtractOptions) -> FeatureSpec:
    """Return the spec of the features that this extractor makes with these options.

    Raises: UsageError if the resize mode does not give the net's input size, the clips do not fit the net, tokens are
    asked for of several crops, flow is asked for from a net on RGB, or the resize method is not for what the net reads.
    """
    net = extractor.net
    resize = options.resize or extractor.input.resize
    clips = options.clips or extractor.input.clips
    try:
        height, width = parse_resize(resize).shape
    except ValueError as error:
        raise UsageError(str(error)) from error
    if (height, width) != extractor.input.shape:
        shapes = extractor.input.shape, (height, width)
        wanted, given = ("x".join(map(str, dict.fromkeys(shape[::-1]))) for shape in shapes)
        raise UsageError(f"{net.name} wants {wanted} px, resize {resize!r} gives {given}")
    shortest, longest = extractor.input.clip_lens
    if not shortest <= clips.clip_len <= longest:
        raise UsageError(f"{net.name} takes clips of {shortest} to {longest} frames, not {clips.clip_len}")
    if extractor.tokens is not None and num_crops(parse_resize(resize)) > 1:
        raise UsageError("tokens are positions of one picture, of which several crops have no mean: leave --crops out")
    method = options.resize_method or extractor.input.resize_method
    if method != "area" and extractor.stream != "rgb":
        raise UsageError(f"--resize-method {method} is for rgb: flow is computed on frames that are scaled by area")
    if method != "area" and (parse_resize(resize).person or parse_resize(resize).fit):
        raise UsageError(f"--resize-method {method} is for frames that are stretched or cropped, not for {resize}")
    if options.flow is not None and extractor.stream != "flow":
        raise UsageError(f"a flow method was given, but {net.name} reads {extractor.stream}")
    return FeatureSpec(
        extractor=net.name,
        weights=extractor.weights,
        layer=extractor.layer,
        feature_dim=extractor.feature_dim,
        stream=extractor.stream,
        clips=clips,
        fps=options.fps,
        resize=resize,
        resize_method=method,
        decoder="pyav" if options.decoder == "auto" else options.decoder,
        flow=(options.flow or FlowSpec()).describe() if extractor.stream == "flow" else "",
        preprocess=extractor.preprocess.describe(),
        precision=extractor.precision,
        dtype=options.dtype,
        trained_on=extractor.trained_on,
        tokens=extractor.num_tokens(clips.clip_len),
    )


def extract(
    records: Sequence[VideoRecord],
    store: FeatureStore,
    extractor: Extractor,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> ExtractSummary:
    """Write the features of all records that `store` lacks, and return what was done.

    A video that fails is recorded in the store and in the summary; the others go on.
    Raises: UsageError if the options do not fit the net; WeightsError if it is built at first use and its weights do not
    fit, or if its features are not finite whatever the video; StoreError if the store cannot be written.
    """
    return extract_many(records, store, [(extractor, options or ExtractOptions())], on_progress)[0]


def extract_many(
    records: Sequence[VideoRecord],
    store: FeatureStore,
    wanted: Sequence[tuple[Extractor, ExtractOptions]],
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    rows_of_file_at_once: bool = False,
) -> list[ExtractSummary]:
    """As `extract`, for several feature sets in one pass over each file; one summary for each.

    rows_of_file_at_once: read the file that neighbouring records share once for all of them, which must name their last
    frames, be sorted by their first ones, and be new to the store; what was odd about the file is noted for the first.
    What concerns the job (fps, workers, decoder, time limit, shard, retry_failed, flow_cache) is read from the first
    options. Raises: as `extract`, and ExtractionError if the decoder is not installed, or two of the feature sets are the
    same.
    """
    work = NetWork(wanted)
    if not {one.spec.name for one in work.made} <= set(store.feature_sets()):
        work.build()  # a net that cannot be built leaves no feature set

    def do(tasks: Sequence[DecodeTask], report: Report, spend: Callable[[Spent], None]) -> None:
        work.run(store, tasks, num_cores(), report, spend)

    options = [options for _, options in wanted]
    return _extract(records, store, work.made, options, do, on_progress, rows_of_file_at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetRecipe:
    """What `build_extractor` makes a net of, but for the device; it can be sent to another process."""

    name: str
    layer: str | None = None
    stream: Stream = "rgb"
    weights: str | None = None
    precision: str = "auto"
    seed: int = 0
    mean_cube: Path | None = None
    tokens: bool = False

    def build(self, device: str, *, at_once: bool = True) -> Extractor:
        """Return the net on a device. at_once, raises: as of `build_extractor`."""
        from har_pipeline.models.extractors import build_extractor

        return build_extractor(**dataclasses.asdict(self), device=device, at_once=at_once)


def extract_with(
    pool: Pool,
    records: Sequence[VideoRecord],
    store: FeatureStore,
    wanted: Sequence[tuple[NetRecipe, ExtractOptions]],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[ExtractSummary]:
    """As `extract_many`, by the workers of a pool, each of which builds the nets on its device. The pool is used up.

    The features are those of `extract_many`, bit for bit, on machines of one type. A worker that dies costs no video; see
    `video_queue`. Raises: as `extract_many`; ExtractionError if no worker can be started, or workers do not agree.
    """
    with at_work(pool, NetJob(tuple(wanted)), store) as workers:
        options = [options for _, options in wanted]
        summaries = _extract(records, store, workers.made, options, workers.do, on_progress, False)
        for summary in summaries:
            summary.device = workers.device
    return summaries


@dataclass(frozen=True, slots=True)
class NetJob:
    """The nets of a job, as a `Job` for workers."""

    wanted: tuple[tuple[NetRecipe, ExtractOptions], ...]

    def prepare(self, device: str) -> NetWork:
        """Build the nets on a device. Raises: as `build_extractor` and `NetWork`."""
        return NetWork([(recipe.build(device), options) for recipe, options in self.wanted])


class NetWork:
    """The nets of a job, ready to be run: a `Work`.

    Raises: UsageError if the options do not fit a net; ExtractionError if the decoder is not installed, or two of the
    feature sets are the same.
    """

    def __init__(self, wanted: Sequence[tuple[Extractor, ExtractOptions]]) -> None:
        self._wanted, self._job = wanted, wanted[0][1]
        require_decoder(self._job.decoder)
        if any(options.fps != self._job.fps for _, options in wanted):
            raise ExtractionError("feature sets made in one pass have one frame rate")
        specs = [feature_spec(extractor, options) for extractor, options in wanted]
        if len({spec.decoder for spec in specs}) > 1:
            raise ExtractionError("feature sets made in one pass have one decoder")
        if len({spec.name for spec in specs}) < len(specs):
            raise ExtractionError("the same features are asked for twice")
        names = [options.name for _, options in wanted if options.name is not None]
        if len(set(names)) < len(names):
            raise ExtractionError("a name belongs to one feature set")
        self.made = tuple(
            Made(spec, str(extractor.device), extractor.precision, extractor.weights)
            for (extractor, _), spec in zip(wanted, specs, strict=True)
        )
        self._lanes: list[Lane] = []
        self._cache = FlowCache(self._job.flow_cache) if self._job.flow_cache else None

    def build(self) -> None:
        """Build the nets that are not built yet. Raises: WeightsError if the weights do not fit."""
        for extractor, _ in self._wanted:
            _ = extractor.module

    def run(
        self,
        store: FeatureStore,
        tasks: Iterable[DecodeTask],
        cores: int,
        report: Report,
        spend: Callable[[Spent], None],
    ) -> None:
        """Extract the features of all tasks; see `Work.run`."""
        self.build()
        if not self._lanes:
            self._lanes = [
                Lane(extractor, made.spec, options.batch_size, options.flow or FlowSpec(), self._cache)
                for (extractor, options), made in zip(self._wanted, self.made, strict=True)
            ]
        devices = {extractor.device.type for extractor, _ in self._wanted}
        if "cpu" in devices:
            keep_freed_memory()
        usual = max(1, cores - 1 if "cuda" in devices else cores // 4)
        Engine(store, self._lanes, report, spend).run(tasks, self._job.workers or usual)
        if self._cache is not None:
            spend(Spent(flow_cache=self._cache.problem))


def _extract(
    records: Sequence[VideoRecord],
    store: FeatureStore,
    made: Sequence[Made],
    options: Sequence[ExtractOptions],
    do: Callable[[Sequence[DecodeTask], Report, Callable[[Spent], None]], None],
    on_progress: Callable[[Progress], None],
    rows_of_file_at_once: bool,
) -> list[ExtractSummary]:
    """Find what the store lacks, let `do` make it, and count."""
    job = options[0]
    for one, how in zip(made, options, strict=True):
        store.create_feature_set(one.spec, how.name)
    store.remove_debris()
    summaries = [
        ExtractSummary(feature_set=one.spec.name, device=one.device, precision=one.precision, weights=one.weights)
        for one in made
    ]
    mine = shard_of(records, job)
    paths = [record.file for record in mine]
    views: dict[str, list[View]] = {}
    for number, (one, summary) in enumerate(zip(made, summaries, strict=True)):
        for video_id in unfinished(summary, store, mine, paths, job):
            views.setdefault(video_id, []).append(view_of(number, one.spec))
    progress = Progress(
        total=sum(summary.total for summary in summaries),
        already=sum(summary.already for summary in summaries),
        failed=sum(len(summary.failed) + len(summary.failed_before) for summary in summaries),
    )
    tasks = [_task(record, job, views[record.video_id]) for record in mine if record.video_id in views]
    if rows_of_file_at_once:
        tasks = [_of_rows(list(own)) for _, own in itertools.groupby(tasks, key=lambda task: task.path)]

    def report(message: Outcome | Noted) -> None:
        if isinstance(message, Noted):
            for summary in summaries:
                summary.notes[message.video_id] = message.notes
            return
        summaries[message.lane].take(message)
        if message.reason is None:
            progress.done += 1
        else:
            progress.failed += 1

    def spend(spent: Spent) -> None:
        progress.spent.add(spent)
        on_progress(progress)

    started = time.perf_counter()
    on_progress(progress)
    if tasks:
        do(tasks, report, spend)
    for summary in summaries:
        summary.seconds, summary.stages = time.perf_counter() - started, progress.spent.stages
        summary.bound_by = progress.bound_by if tasks else "nothing"
        summary.flow_cache = progress.spent.flow_cache
    return summaries


def _task(record: VideoRecord, job: ExtractOptions, views: Sequence[View]) -> DecodeTask:
    return DecodeTask(
        **task_fields(record, Path(record.file), job),  # a depth folder fails with "is a folder"
        fps=job.fps,
        views=tuple(views),
        decoder=job.decoder,
        hash_content=job.flow_cache is not None,
    )


def _of_rows(tasks: Sequence[DecodeTask]) -> DecodeTask:
    """Return the task of reading a file once for the rows of several tasks."""
    rows = tuple(Row(task.video_id, task.start_frame, task.end_frame or 0) for task in tasks)
    end = max(row.end_frame for row in rows)
    return dataclasses.replace(tasks[0], start_frame=rows[0].start_frame, end_frame=end, rows=rows)
