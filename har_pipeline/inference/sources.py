"""What runs read of new videos: the features of heads and the frames of networks, made once for all runs that share them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from har_pipeline.core.errors import FeatureMismatchError, RunError
from har_pipeline.core.files import weights_cache
from har_pipeline.core.known_files import find_used, used_last
from har_pipeline.core.records import FeatureRecord, FeatureSpec, VideoRecord
from har_pipeline.features.extract import extract_many, feature_spec
from har_pipeline.features.fitted import Fit, derived_record, source_spec
from har_pipeline.features.frames import options_of, store_raw_frames
from har_pipeline.features.local import extract_local, local_options
from har_pipeline.features.motion import motion_features, motion_options
from har_pipeline.features.options import MOTION, ExtractOptions
from har_pipeline.features.seen import little_seen
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.table import joined_features
from har_pipeline.inference.load import HeadRun, NetworkRun
from har_pipeline.models.convlstm.windows import stepped_length
from har_pipeline.models.device import pick_device
from har_pipeline.models.extractors import build_extractor
from har_pipeline.models.extractors.base import Extractor
from har_pipeline.models.extractors.hub import weights_sha256
from har_pipeline.models.extractors.nets import published_weights
from har_pipeline.models.extractors.weights import weights_with_hash
from har_pipeline.training.networks.loop import sampling_of
from har_pipeline.video.flow.spec import parse_flow
from har_pipeline.video.local.spec import HANDCRAFTED

_CUBE = re.compile(r"cube sha256:([0-9a-f]{64})")
# Frames of a long video that a network's windows are read from at once.
_FRAMES_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Files:
    """The files that a user gives: `FILE` or `STREAM=FILE` of weights, and a mean cube."""

    weights: Sequence[str] = ()
    mean_cube: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The rows to read, and how."""

    records: Sequence[VideoRecord]
    windows: bool  # whether they are windows of fewer, long files
    workers: int | None
    time_limit_s: float
    on_progress: Callable[[int, int], None]


@dataclass(slots=True)
class _Source:
    """A feature set that is made from the files, and what the runs call it."""

    spec: FeatureSpec
    run: Path  # one that reads it
    names: set[str] = field(default_factory=set)

    def is_called(self, name: str) -> bool:
        """Whether a user may mean it by a name: its stream, or the start of a feature set's name."""
        return name == self.spec.stream or (bool(name) and any(own.startswith(name) for own in self.names))

    @property
    def title(self) -> str:
        return f"{self.spec.stream} ({min(self.names)})"


class HeadSources:
    """The features that heads read.

    Raises: RunError if a run's files are incomplete, or given weights fit none of its nets; FeatureMismatchError if weights
    are nowhere.
    """

    def __init__(self, runs: Sequence[HeadRun], files: Files, device: str) -> None:
        self.runs = runs
        self.failed: dict[str, str] = {}  # row -> why it cannot be read
        self.notes: dict[str, tuple[str, ...]] = {}  # first row of a file -> what was odd about the file
        self._store: FeatureStore
        self._fits: dict[Path, list[Fit | None]] = {}
        self._sources: dict[str, _Source] = {}
        for run in runs:
            fits = self._fits[run.path] = [run.fit(number) for number in range(len(run.streams))]
            for stream, fit in zip(run.streams, fits, strict=True):
                spec = stream.spec if fit is None else source_spec(stream.spec, fit.source_dim)
                # By name: two streams, and two runs, may have been made from the same feature set.
                source = self._sources.setdefault(spec.name, _Source(spec, run.path))
                source.names |= {stream.feature_set, spec.name}
        nets = [one for one in self._sources.values() if one.spec.extractor not in (MOTION, *HANDCRAFTED)]
        if files.weights and len(nets) < len(self._sources):
            _refuse_weights(list(self._sources.values()), nets)
        given = _assigned(nets, files.weights)
        # By name: what is made in one pass over the files, for each frame rate and decoder.
        self._nets: dict[str, tuple[Extractor, ExtractOptions]] = {}
        for one in nets:
            spec = one.spec
            weights = given.get(spec.name) or _found_weights(one, nets)
            cube = files.mean_cube if len(nets) == 1 or "cube" in spec.preprocess else None
            extractor = extractor_for(spec, weights=weights, mean_cube=cube, device=device)
            same = {
                name: getattr(spec, name) for name in ("clips", "fps", "resize", "resize_method", "decoder", "dtype")
            }
            options = ExtractOptions(**same, flow=parse_flow(spec.flow) if spec.flow else None)
            feature_spec(extractor, options).require_equal(spec, str(one.run))
            self._nets[spec.name] = extractor, options

    def extractor(self, spec: FeatureSpec) -> Extractor:
        """Return the net that makes the features of one of the runs' specs."""
        return self._nets[spec.name][0]

    def fill(self, store: FeatureStore, job: Job) -> None:
        """Make the features of all rows."""
        self._store = store
        for source in self._sources.values():
            if source.spec.extractor == MOTION:
                self._fill_motion_maps(source.spec, job)
            elif source.spec.extractor in HANDCRAFTED:
                local = dataclasses.replace(local_options(source.spec), workers=job.workers)
                described = extract_local(
                    job.records, store, local, lambda now: job.on_progress(now.finished, now.total)
                )
                self.failed |= described.failed
        for rate, decoder in {(options.fps, options.decoder): None for _, options in self._nets.values()}:
            one_pass = [
                (net, dataclasses.replace(options, workers=job.workers, time_limit_s=job.time_limit_s))
                for net, options in self._nets.values()
                if (options.fps, options.decoder) == (rate, decoder)
            ]
            made = extract_many(
                job.records,
                store,
                one_pass,
                lambda now: job.on_progress(now.done + now.failed, now.total),
                rows_of_file_at_once=job.windows,
            )
            for summary in made:
                self.failed |= summary.failed
                self.notes |= summary.notes

    def _fill_motion_maps(self, spec: FeatureSpec, job: Job) -> None:
        """Prepare raw frames, and make the motion maps of `spec` of them."""
        frames, how = motion_options(spec)
        options = dataclasses.replace(options_of(frames), workers=job.workers)
        summary = store_raw_frames(
            job.records, self._store, options, lambda state: job.on_progress(state.finished, state.total)
        )
        motion_features(self._store, summary.feature_set, how)
        self.failed |= summary.failed

    def read(self, video_id: str) -> Iterator[tuple[HeadRun, FeatureRecord]]:
        """Yield each run and what it reads of a row."""
        for run in self.runs:
            yield run, self._read(run, video_id)

    def _read(self, run: HeadRun, video_id: str) -> FeatureRecord:
        """Return what a run reads of a row: its streams' features, reduced or encoded by its fits, joined."""
        streams, notes = [], []
        for stream, fit in zip(run.streams, self._fits[run.path], strict=True):
            spec = stream.spec if fit is None else source_spec(stream.spec, fit.source_dim)
            found = self._store.read(spec.name, video_id)
            streams.append(found if fit is None else derived_record(found, fit, stream.spec.dtype))
            notes += [*found.decode_notes, little_seen(spec, found.num_frames, found.fps)]
        # Each stream reads the file itself and may note the same.
        said = tuple(dict.fromkeys(filter(None, notes)))
        return dataclasses.replace(streams[0], features=joined_features(streams), decode_notes=said)


def _refuse_weights(sources: Sequence[_Source], nets: Sequence[_Source]) -> None:
    """Raise RunError if none of a run's features come from a net."""
    if nets:
        return
    spec, run = sources[0].spec, sources[0].run
    if spec.extractor == MOTION:
        raise RunError(f"{run} reads motion maps, which no network makes: omit --weights")
    raise RunError(f"{run} reads features of {spec.extractor}, which has no weights: omit --weights")


def _assigned(nets: Sequence[_Source], given: Sequence[str]) -> dict[str, str]:
    """Return feature set -> the weights that the user gives for it: by name, or else by their hash.

    Raises: RunError if they are for none.
    """
    chosen: dict[str, str] = {}
    titles = ", ".join(sorted(one.title for one in nets))
    for text in given:
        name, equals, file = text.partition("=")
        meant = [one for one in nets if equals and one.is_called(name)]
        if not meant:
            if equals and not Path(text).expanduser().exists():
                raise RunError(f"--weights {text}: there is no stream or feature set {name!r}, but {titles}")
            meant, file = list(nets), text
        if len(meant) > 1:
            fitting = [one for one in meant if _is_of(file, one.spec)]
            if not fitting:
                raise RunError(
                    f"--weights {text}: these are the weights of none of {titles}: write --weights STREAM=FILE"
                )
            meant = fitting
        chosen |= {one.spec.name: file for one in meant}
    return chosen


def _is_of(weights: str, spec: FeatureSpec) -> bool:
    """Return whether a file, or a name of published weights, is of those that made the features of a spec."""
    named = published_weights(spec.extractor)
    if weights in named:
        return named[weights].stream == spec.stream
    path = Path(weights).expanduser()
    return path.exists() and spec.weights == f"sha256:{weights_sha256(path)}"


def _found_weights(source: _Source, nets: Sequence[_Source]) -> str | None:
    """Return the weights of a source where they are known to be, None for random ones.

    Raises: FeatureMismatchError naming the option to give if they are nowhere.
    """
    spec = source.spec
    if not spec.weights.startswith("sha256:"):
        return None
    named, sha256 = published_weights(spec.extractor), spec.weights.removeprefix("sha256:")
    if (found := weights_with_hash(named, spec.stream, sha256)) is not None:
        return found
    last = used_last(sha256)
    seen = "" if last is None else f", nor at {last}, where they were used last"
    alone = [one.spec.stream for one in nets].count(spec.stream) == 1
    kind = "folder" if spec.extractor.startswith("hf-") else "file"
    option = kind.upper() if len(nets) == 1 else f"{spec.stream if alone else min(source.names)}={kind.upper()}"
    unhashed = [n for n, w in named.items() if w.stream == spec.stream and not w.sha256 and w.url.startswith("http")]
    maybe = f" (or with --weights {option.replace(kind.upper(), unhashed[0])}, if they are those)" if unhashed else ""
    raise FeatureMismatchError(
        f"{source.run}: the {spec.stream} features {min(source.names)} were made with {spec.extractor} weights "
        f"{spec.weights}, which are neither published by this hash nor in the cache {weights_cache()}{seen}: give the "
        f"{kind} with --weights {option}{maybe}"
    )


def extractor_for(
    spec: FeatureSpec, *, weights: str | None = None, mean_cube: Path | None = None, device: str = "auto"
) -> Extractor:
    """Return the extractor that makes features of `spec`.

    weights, mean_cube: files, if `spec` was made with them and they are neither in the cache nor where they were used last.
    Raises: FeatureMismatchError if the weights or the cube are nowhere, or not those of the spec.
    """
    seed = 0
    if spec.weights.startswith("random:"):
        weights, seed = "random", int(spec.weights.removeprefix("random:"))
    elif weights is None:
        source = _Source(spec, Path(spec.name), {spec.name})
        weights = _found_weights(source, [source])
    cube = _CUBE.search(spec.preprocess)
    if mean_cube is None and cube is not None:
        mean_cube = find_used(cube[1])
    extractor = build_extractor(
        spec.extractor,
        layer=spec.layer,
        stream=spec.stream,
        weights=weights,
        device=device,
        precision=spec.precision,
        seed=seed,
        mean_cube=mean_cube,
        tokens=bool(spec.tokens),
    )
    if extractor.weights != spec.weights:
        raise FeatureMismatchError(f"weights {extractor.weights} differ from the run's, {spec.weights}")
    if extractor.preprocess.describe() != spec.preprocess:
        way_out = "extract its features and train it again: an older version prepared them otherwise"
        if mean_cube is not None:
            way_out = "omit --mean-cube"
        if cube is not None:
            last = used_last(cube[1])
            seen = "" if last is None else f"; where it was used last, {last}, it is no longer"
            way_out = f"give its mean cube with --mean-cube FILE{seen}"
        raise FeatureMismatchError(f"the run's frames were prepared as {spec.preprocess}: {way_out}")
    return extractor


class FrameSources:
    """The frames that networks on raw video read. A file's windows are cut from long stretches of it."""

    def __init__(self, runs: Sequence[NetworkRun], device: str) -> None:
        self.runs = runs
        self.failed: dict[str, str] = {}
        self.notes: dict[str, tuple[str, ...]] = {}
        self._store: FeatureStore
        self._rows: dict[str, tuple[str, VideoRecord | None]] = {}  # row -> its stretch, and what it has of that
        for run in runs:
            run.network.to(pick_device(device))
        self._stretch = functools.lru_cache(max(1, len(runs)))(self._read_stretch)

    def fill(self, store: FeatureStore, job: Job) -> None:
        """Prepare the frames of all rows."""
        self._store = store
        stretches = _stretches(job.records) if job.windows else [(record, [record]) for record in job.records]
        self._rows = {
            row.video_id: (stretch.video_id, row if job.windows else None)
            for stretch, rows in stretches
            for row in rows
        }
        for spec in {run.spec.name: run.spec for run in self.runs}.values():
            options = dataclasses.replace(options_of(spec), workers=job.workers, time_limit_s=job.time_limit_s)
            records = [stretch for stretch, _ in stretches]
            summary = store_raw_frames(
                records, store, options, lambda state: job.on_progress(state.finished, state.total)
            )
            for stretch, rows in stretches:
                if reason := summary.failed.get(stretch.video_id):
                    self.failed |= {row.video_id: reason for row in rows}
                    continue
                for row in rows if job.windows else ():
                    if not _inside(self._stretch(spec.name, stretch.video_id), row).any():
                        self.failed[row.video_id] = (
                            f"{row.path}: no frame could be decoded from frame {row.start_frame} on"
                        )

    def _read_stretch(self, feature_set: str, video_id: str) -> FeatureRecord:
        return self._store.read(feature_set, video_id)

    def read(self, video_id: str) -> Iterator[tuple[NetworkRun, FeatureRecord]]:
        """Yield each run and the frames that its network is shown of a row."""
        for run in self.runs:
            yield run, self._read(run, video_id)

    def _read(self, run: NetworkRun, video_id: str) -> FeatureRecord:
        """Return the frames that a network is shown of a row."""
        stretch, window = self._rows[video_id]
        stored = self._stretch(run.spec.name, stretch)
        if window is not None:
            stored = dataclasses.replace(stored, features=stored.features[_inside(stored, window)])
        notes = (*stored.decode_notes, *_repeated(run, len(stored.features)))
        return dataclasses.replace(stored, decode_notes=notes)


def _inside(stored: FeatureRecord, window: VideoRecord) -> np.ndarray:
    """Return which of the stored frames (F,) are in a window."""
    assert window.end_frame is not None
    return (stored.clip_starts >= window.start_frame) & (stored.clip_starts < window.end_frame)


def _stretches(windows: Sequence[VideoRecord]) -> list[tuple[VideoRecord, list[VideoRecord]]]:
    """Return the rows to read for windows of files: each holds several windows, whole, and few enough frames for memory."""
    found: list[tuple[VideoRecord, list[VideoRecord]]] = []
    for _, own in itertools.groupby(windows, key=lambda window: window.path):
        rows: list[VideoRecord] = []
        for window in own:
            assert window.end_frame is not None
            if rows and window.end_frame - rows[0].start_frame > _FRAMES_AT_ONCE:
                found.append((dataclasses.replace(rows[0], end_frame=rows[-1].end_frame), rows))
                rows = []
            rows.append(window)
        found.append((dataclasses.replace(rows[0], end_frame=rows[-1].end_frame), rows))
    return found


def _repeated(run: NetworkRun, num_frames: int) -> list[str]:
    """Return a note on a video that is shorter than a clip, or a stateful network's window."""
    sampling, clip_len = sampling_of(run.config), run.network.clip_len
    if not num_frames or stepped_length(num_frames, sampling.step) >= clip_len:
        return []
    if num_frames == 1:
        return [f"1 frame: shown {clip_len} times, so nothing moves"]
    if run.network.votes:
        return [f"{num_frames} frames: the last one shown again to fill the {clip_len} that the network sees at once"]
    if sampling.spread:
        return [f"{num_frames} frames: some shown repeatedly to fill the {clip_len} that the network sees at once"]
    return [f"{num_frames} frames: played backwards and forwards to fill the {clip_len} that the network sees at once"]
