"""Stage one: which features to make of a manifest's videos, with which spec; the engine does the work.

What is in the store already is not made again, so an interrupted job goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.records import FeatureSpec, VideoRecord
from har_pipeline.features.engine import Engine, Progress
from har_pipeline.features.lanes import Lane
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.source_files import changed_videos, known_failures
from har_pipeline.features.store import FeatureStore
from har_pipeline.models.device import keep_freed_memory
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.video.clip_worker import DecodeTask
from har_pipeline.video.flow.cache import FlowCache
from har_pipeline.video.flow.spec import FlowSpec
from har_pipeline.video.preprocess import parse_resize


@dataclass(frozen=True, slots=True)
class ExtractSummary:
    """What a job did for one feature set. failed, failed_before: video_id -> reason; notes: what was odd about a done video.

    padded: done videos that are shorter than their clips, so that frames stand in for missing ones.

    seconds, stages (seconds of the main process waiting for decoders, on flow, on the net, waiting for the writer) and
    bound_by are the whole job's, whatever the number of feature sets.
    """

    feature_set: str
    total: int
    already: int
    done: int
    padded: int
    clips: int
    failed: dict[str, str]
    failed_before: dict[str, str]
    notes: dict[str, tuple[str, ...]]
    seconds: float
    stages: dict[str, float]
    bound_by: str
    device: str
    precision: str
    weights: str


def feature_spec(extractor: Extractor, options: ExtractOptions) -> FeatureSpec:
    """Return the spec of the features that this extractor makes with these options.

    Raises: ExtractionError if the resize mode does not give the net's input size, the clips do not fit the net, or flow is
    asked for from a net on RGB.
    """
    net = extractor.net
    resize = options.resize or extractor.input.resize
    clips = options.clips or extractor.input.clips
    try:
        size = parse_resize(resize).size
    except ValueError as error:
        raise ExtractionError(str(error)) from error
    if size != net.input_size:
        raise ExtractionError(f"{net.name} wants {net.input_size} px, resize {resize!r} gives {size}")
    shortest, longest = extractor.input.clip_lens
    if not shortest <= clips.clip_len <= longest:
        raise ExtractionError(f"{net.name} takes clips of {shortest} to {longest} frames, not {clips.clip_len}")
    if options.flow is not None and extractor.stream != "flow":
        raise ExtractionError(f"a flow method was given, but {net.name} reads {extractor.stream}")
    return FeatureSpec(
        extractor=net.name,
        weights=extractor.weights,
        layer=extractor.layer,
        feature_dim=extractor.feature_dim,
        stream=extractor.stream,
        clips=clips,
        fps=options.fps,
        resize=resize,
        flow=(options.flow or FlowSpec()).describe() if extractor.stream == "flow" else "",
        preprocess=extractor.preprocess.describe(),
        precision=extractor.precision,
        dtype=options.dtype,
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
    Raises: ExtractionError if the options do not fit the net; StoreError if the store cannot be written.
    """
    return extract_many(records, store, [(extractor, options or ExtractOptions())], on_progress)[0]


def extract_many(
    records: Sequence[VideoRecord],
    store: FeatureStore,
    wanted: Sequence[tuple[Extractor, ExtractOptions]],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[ExtractSummary]:
    """As `extract`, for several feature sets in one pass over each file; one summary for each.

    What concerns the job (fps, workers, decoder, time limit, shard, retry_failed, flow_cache) is read from the first
    options. Raises: ExtractionError also if two of the feature sets are the same.
    """
    job = wanted[0][1]
    if any(options.fps != job.fps for _, options in wanted):
        raise ExtractionError("feature sets made in one pass have one frame rate")
    specs = [feature_spec(extractor, options) for extractor, options in wanted]
    if len({spec.name for spec in specs}) < len(specs):
        raise ExtractionError("the same features are asked for twice")
    for spec in specs:
        store.create_feature_set(spec)
    store.remove_debris()
    cache = FlowCache(job.flow_cache) if job.flow_cache else None
    lanes = [
        Lane(extractor, spec, options.batch_size, (options.flow or FlowSpec()) if spec.flow else None, cache)
        for (extractor, options), spec in zip(wanted, specs, strict=True)
    ]
    k, n = job.shard
    mine = sorted(records, key=lambda record: record.video_id)[k - 1 :: n]
    paths = [_path(record) for record in mine]
    changed: list[dict[str, str]] = []
    already: list[int] = []
    failed_before: list[dict[str, str]] = []
    lanes_of: dict[str, list[int]] = {record.video_id: [] for record in mine}
    for number, lane in enumerate(lanes):
        changed.append(changed_videos(store, lane.feature_set, mine, paths, job.replace_changed))
        lane.failed.update(changed[number])
        complete = set(store.video_ids(lane.feature_set))
        known = {} if job.retry_failed else known_failures(store, lane.feature_set, mine, paths)
        missing = [record.video_id for record in mine if record.video_id not in complete]
        already.append(len(mine) - len(missing) - len(changed[number]))
        failed_before.append({video_id: known[video_id] for video_id in missing if video_id in known})
        for video_id in missing:
            if video_id not in known:
                lanes_of[video_id].append(number)
    progress = Progress(
        total=len(mine) * len(lanes), already=sum(already), failed=sum(map(len, (*failed_before, *changed)))
    )
    tasks = [_task(record, job, lanes, lanes_of[record.video_id]) for record in mine if lanes_of[record.video_id]]
    started = time.perf_counter()
    if any(lane.extractor.device.type == "cpu" for lane in lanes):
        keep_freed_memory()
    on_progress(progress)
    if tasks:
        Engine(store, lanes, job.workers, progress).run(tasks, on_progress)
    seconds = time.perf_counter() - started
    return [
        ExtractSummary(
            feature_set=lane.feature_set,
            total=len(mine),
            already=already[number],
            done=lane.done,
            padded=lane.padded,
            clips=lane.clips_done,
            failed=lane.failed,
            failed_before=failed_before[number],
            notes=lane.notes,
            seconds=seconds,
            stages=progress.stages,
            bound_by=progress.bound_by if tasks else "nothing",
            device=str(lane.extractor.device),
            precision=lane.extractor.precision,
            weights=lane.extractor.weights,
        )
        for number, lane in enumerate(lanes)
    ]


def _path(record: VideoRecord) -> Path:
    path = record.path or record.depth_path
    assert path is not None  # a VideoRecord has one of the two; a depth folder fails with "is a folder"
    return path


def _task(record: VideoRecord, job: ExtractOptions, lanes: Sequence[Lane], numbers: Sequence[int]) -> DecodeTask:
    return DecodeTask(
        video_id=record.video_id,
        path=_path(record),
        start_frame=record.start_frame,
        end_frame=record.end_frame,
        fps=job.fps,
        views=tuple(lanes[number].view(number) for number in numbers),
        decoder=job.decoder,
        time_limit_s=job.time_limit_s,
    )
