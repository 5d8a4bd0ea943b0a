"""Extraction: which features to extract from a manifest's videos, and with which spec; the engine does the work.

Videos that are in the store are skipped, so an interrupted job resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from har_pipeline.core.errors import ExtractionError, UsageError
from har_pipeline.core.memory import keep_freed_memory
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.features.engine import Engine, Progress
from har_pipeline.features.job import shard_of, unfinished
from har_pipeline.features.lanes import ExtractSummary, Lane
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.store import FeatureStore
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
    if options.resize_method == "swscale" and extractor.stream != "rgb":
        raise UsageError("--resize-method swscale is for rgb: flow is computed on frames that are scaled by area")
    if options.resize_method == "swscale" and (parse_resize(resize).person or parse_resize(resize).fit):
        raise UsageError(f"--resize-method swscale is for frames that are stretched or cropped, not for {resize}")
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
        resize_method=options.resize_method,
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
    fit; StoreError if the store cannot be written.
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
    job = wanted[0][1]
    require_decoder(job.decoder)
    if any(options.fps != job.fps for _, options in wanted):
        raise ExtractionError("feature sets made in one pass have one frame rate")
    specs = [feature_spec(extractor, options) for extractor, options in wanted]
    if len({spec.name for spec in specs}) < len(specs):
        raise ExtractionError("the same features are asked for twice")
    if (names := [options.name for _, options in wanted if options.name is not None]) and len(set(names)) < len(names):
        raise ExtractionError("a name belongs to one feature set")
    known = store.feature_sets()
    for spec, (extractor, options) in zip(specs, wanted, strict=True):
        if spec.name not in known:
            _ = extractor.module  # a net that cannot be built leaves no feature set
        store.create_feature_set(spec, options.name)
    store.remove_debris()
    cache = FlowCache(job.flow_cache) if job.flow_cache else None
    lanes = [
        Lane(extractor, spec, options.batch_size, (options.flow or FlowSpec()) if spec.flow else None, cache)
        for (extractor, options), spec in zip(wanted, specs, strict=True)
    ]
    mine = shard_of(records, job)
    paths = [record.file for record in mine]
    views: dict[str, list[View]] = {}
    for number, lane in enumerate(lanes):
        for video_id in unfinished(lane.summary, store, mine, paths, job):
            views.setdefault(video_id, []).append(lane.view(number))
    summaries = [lane.summary for lane in lanes]
    progress = Progress(
        total=sum(summary.total for summary in summaries),
        already=sum(summary.already for summary in summaries),
        failed=sum(len(summary.failed) + len(summary.failed_before) for summary in summaries),
    )
    tasks = [_task(record, job, views[record.video_id]) for record in mine if record.video_id in views]
    if rows_of_file_at_once:
        tasks = [_of_rows(list(own)) for _, own in itertools.groupby(tasks, key=lambda task: task.path)]
    started = time.perf_counter()
    for lane in lanes if tasks else ():
        _ = lane.extractor.module
    if tasks and any(lane.extractor.device.type == "cpu" for lane in lanes):
        keep_freed_memory()
    on_progress(progress)
    if tasks:
        Engine(store, lanes, progress).run(tasks, job.workers, on_progress)
    for summary in summaries:
        summary.seconds, summary.stages = time.perf_counter() - started, progress.stages
        summary.bound_by = progress.bound_by if tasks else "nothing"
        summary.flow_cache = cache.problem if cache else ""
    return summaries


def _task(record: VideoRecord, job: ExtractOptions, views: Sequence[View]) -> DecodeTask:
    return DecodeTask(
        video_id=record.video_id,
        path=Path(record.file),  # a depth folder fails with "is a folder"
        start_frame=record.start_frame,
        end_frame=record.end_frame,
        start_s=record.start_s,
        end_s=record.end_s,
        time_limit_s=job.time_limit_s,
        memory_limit_gb=job.memory_limit_gb,
        fps=job.fps,
        views=tuple(views),
        decoder=job.decoder,
        max_frames=job.max_frames,
        hash_content=job.flow_cache is not None,
    )


def _of_rows(tasks: Sequence[DecodeTask]) -> DecodeTask:
    """Return the task of reading a file once for the rows of several tasks."""
    rows = tuple(Row(task.video_id, task.start_frame, task.end_frame or 0) for task in tasks)
    end = max(row.end_frame for row in rows)
    return dataclasses.replace(tasks[0], start_frame=rows[0].start_frame, end_frame=end, rows=rows)
