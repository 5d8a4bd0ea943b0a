"""Frozen, validated values that cross module borders: rows, specs, features, splits and scores."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from har_pipeline.core.errors import FeatureMismatchError

if TYPE_CHECKING:  # `har --help` waits for no numpy
    import numpy as np


# Of ids and of feature sets' names. More characters than ASCII's: `check_video_id`.
VIDEO_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
MAX_ID_BYTES = 200  # of the UTF-8 form: ids are names of folders, which hold 255
# Names of the store's own metadata, and of devices on Windows (nul, nul.txt), which some mounted file systems refuse; no
# such system can hold a name that ends in a dot either.
RESERVED_ID_PATTERN = re.compile(r"zarr\.json|(?:con|prn|aux|nul|(?:com|lpt)[0-9])(?:\..*)?|.*\.", re.IGNORECASE)
# Of the first kind and not of the second, by one look.
_USUAL_ID = re.compile(rf"(?!(?i:{RESERVED_ID_PATTERN.pattern})\Z){VIDEO_ID_PATTERN.pattern}")
Sampling = Literal["first", "uniform", "dense", "sparse", "segments"]
_SPARSE_PLACES = "floor"
Padding = Literal["repeat_last", "loop"]
Stream = Literal["rgb", "flow", "depth"]
Crops = Literal["center", "three", "ten"]
Encoding = Literal["fisher", "words"]

# Files of a manifest's row that become raw frames.
RawStream = Literal["depth", "rgb"]

# What becomes of a frame that is not square.
Aspect = Literal["stretch", "keep"]
# auto: PyAV. The pixels of the others differ in some files.
Decoder = Literal["auto", "decord", "nvdec", "pyav", "torchcodec"]
# What scales frames: OpenCV's mean over an area after the conversion to RGB, or Pillow's filters, which grow with the factor
# against aliasing; or FFmpeg's scaler in the pass that converts.
ResizeMethod = Literal["area", "bilinear", "bicubic", "swscale"]

# Limits of reading one video, unless a job sets others. A million frames are 11 hours at 25 frames/s.
MAX_FRAMES = 1_000_000
TIME_LIMIT_S = 600.0
MEMORY_LIMIT_GB = 4.0

# Types that extracted features are stored in.
FeatureType = Literal["float16", "float32"]


def is_id_character(character: str) -> bool:
    """Return whether an id may hold a character: a letter or digit of any script, a mark on one, `.`, `_` or `-`."""
    return character in "._-" or character.isalnum() or unicodedata.category(character)[0] == "M"


def check_video_id(video_id: str) -> str:
    """Return `video_id` if it is a legal one: letters and digits of any script, `.`, `_`, `-`, and not reserved.

    It begins with a letter or digit, is in Unicode's composed form (NFC), and has at most 200 bytes in UTF-8.
    Raises: ValueError otherwise.
    """
    if _USUAL_ID.fullmatch(video_id):
        return video_id
    if not VIDEO_ID_PATTERN.fullmatch(video_id) and (
        not video_id[:1].isalnum()
        or not all(map(is_id_character, video_id))
        or not unicodedata.is_normalized("NFC", video_id)
        or len(video_id.encode()) > MAX_ID_BYTES
    ):
        raise ValueError(
            f"video_id {video_id!r} must be letters, digits, '.', '_' and '-', begin with a letter or digit, and have at "
            f"most {MAX_ID_BYTES} characters (of other scripts than Latin fewer: {MAX_ID_BYTES} bytes of UTF-8)"
        )
    if RESERVED_ID_PATTERN.fullmatch(video_id):
        raise ValueError(
            f"video_id {video_id!r} is reserved: zarr.json, names of devices such as con and nul, and a dot at the end"
        )
    return video_id


def folded_id(video_id: str) -> str:
    """Return what two ids share that some file systems take for one: they differ in upper and lower case only."""
    folded = video_id.casefold()
    if folded == video_id:
        folded = video_id  # not a second string of the same letters, for each of a million rows
    return folded if folded.isascii() else unicodedata.normalize("NFC", folded)


class _PathAsText:
    """A field of a record whose path is kept as text, and made a Path when it is read.

    A manifest may have a million rows, and a Path takes more memory than all else of a row.
    """

    def __init__(self, slot: Any) -> None:
        """slot: the descriptor of the record's slot for it."""
        self.text = slot.__get__  # record -> str | None
        self.set_text = slot.__set__  # (record, str | None)

    def __get__(self, record: object, owner: type | None = None) -> Any:
        if record is None:
            return self
        text = self.text(record)
        return None if text is None else Path(text)

    def __set__(self, record: object, path: str | Path | None) -> None:
        self.set_text(record, path if path is None or type(path) is str else os.fspath(path))


# Shared by all records without columns of their own.
NO_EXTRA: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The part of a file that a row covers: frames `[start_frame, end_frame)`, numbered from 0, or times `[start_s, end_s)`.

    Times are seconds from the file's first frame; which frames they mean is known once the file is open
    (`timing.in_frames`).
    Raises: ValueError if the range is empty or negative, or both frames and times are given.
    """

    start_frame: int = 0
    end_frame: int | None = None  # None: to the end of the video
    start_s: float | None = None  # None: from the first frame, or frames are given
    end_s: float | None = None

    @property
    def timed(self) -> bool:
        """Whether the range is given in seconds."""
        return self.start_s is not None or self.end_s is not None

    def check_span(self, name: str) -> None:
        """Raise ValueError, with the row's name in it, as the class says."""
        if self.end_frame is self.start_s is self.end_s is None and self.start_frame == 0:
            return  # of the whole file, as most rows are
        if self.timed and (self.start_frame or self.end_frame is not None):
            raise ValueError(f"{name}: its range is given in frames and in seconds: give one of the two")
        for unit in ("frame", "s"):
            start, end = getattr(self, f"start_{unit}") or 0, getattr(self, f"end_{unit}")
            if not 0 <= start < float("inf"):
                raise ValueError(f"{name}: start_{unit} {start} is {'negative' if start < 0 else 'no number'}")
            if end is not None and not start < end < float("inf"):
                raise ValueError(f"{name}: end_{unit} {end} is not above start_{unit} {start}")

    def describe_span(self) -> str:
        """Return the range as text, other ranges as other texts: `5 to the end`, `from 1.5 s to 12 s`."""
        if self.timed:
            end = "the end" if self.end_s is None else f"{seconds_text(self.end_s)} s"
            return f"from {seconds_text(self.start_s or 0.0)} s to {end}"
        return f"{self.start_frame} to {'the end' if self.end_frame is None else self.end_frame}"


WHOLE = Span()


def seconds_text(seconds: float) -> str:
    """Return a number of seconds as the shortest decimal number that is read back unchanged: `1.5`, `12`."""
    text = f"{Decimal(repr(float(seconds))):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class VideoRecord(Span):
    """One row of a manifest: a file, or a part of it.

    Ids and names of classes, people and so on are kept in Unicode's composed form (NFC): typed names and those of a Mac's
    folders differ in nothing that can be seen. The paths are given as a Path or as text, and kept as text.
    Raises: ValueError if the id is illegal, the range is not as in `Span`, or no path is given.
    """

    video_id: str
    label: (
        str  # the class; empty of a video whose class is not known: it can be extracted and predicted, not trained on
    )
    path: Path | None = None  # absolute, of a video file; one of the two paths is set
    depth_path: Path | None = None  # absolute, of a depth file or folder
    subject: str | None = None
    group: str | None = None
    camera: str | None = None
    scenario: str | None = None
    split: str | None = None
    # The manifest's own columns, whose names start with x_; rows of a manifest with the same cells share one mapping.
    extra: Mapping[str, str] = field(default_factory=lambda: NO_EXTRA)

    def __init__(
        self,
        *,
        video_id: str,
        label: str,
        path: Path | str | None = None,
        depth_path: Path | str | None = None,
        subject: str | None = None,
        group: str | None = None,
        camera: str | None = None,
        scenario: str | None = None,
        split: str | None = None,
        extra: Mapping[str, str] = NO_EXTRA,
        start_frame: int = 0,
        end_frame: int | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> None:
        if not (
            video_id.isascii()
            and label.isascii()
            and (subject is None or subject.isascii())
            and (group is None or group.isascii())
            and (camera is None or camera.isascii())
            and (scenario is None or scenario.isascii())
            and (split is None or split.isascii())
        ):
            video_id, label = unicodedata.normalize("NFC", video_id), unicodedata.normalize("NFC", label)
            names = (subject, group, camera, scenario, split)
            subject, group, camera, scenario, split = (name and unicodedata.normalize("NFC", name) for name in names)
        check_video_id(video_id)
        if path is None and depth_path is None:
            raise ValueError(f"{video_id}: one of path and depth_path is required")
        # By hand: a manifest may have a million rows, and the constructor that a dataclass gets takes 1.7 times as long.
        set_value = object.__setattr__
        set_value(self, "video_id", video_id)
        set_value(self, "label", label)
        _set_path(self, path if path is None or type(path) is str else os.fspath(path))
        _set_depth_path(self, depth_path if depth_path is None or type(depth_path) is str else os.fspath(depth_path))
        set_value(self, "subject", subject)
        set_value(self, "group", group)
        set_value(self, "camera", camera)
        set_value(self, "scenario", scenario)
        set_value(self, "split", split)
        set_value(self, "extra", extra)
        set_value(self, "start_frame", start_frame)
        set_value(self, "end_frame", end_frame)
        set_value(self, "start_s", start_s)
        set_value(self, "end_s", end_s)
        if start_frame or not (end_frame is start_s is end_s is None):
            self.check_span(video_id)

    @property
    def file(self) -> str:
        """The path of what is read, as text: the video file, or where the row has none its depth file or folder."""
        path: str | None = _path_text(self)
        file: str = _depth_path_text(self) if path is None else path
        return file

    @property
    def files(self) -> tuple[str, ...]:
        """The paths that are set, `path` first, as text: no Path is made of them."""
        path, depth_path = _path_text(self), _depth_path_text(self)
        if path is None or depth_path is None:
            return (path or depth_path,)
        return path, depth_path


_PATHS = {name: _PathAsText(getattr(VideoRecord, name)) for name in ("path", "depth_path")}
_path_text, _depth_path_text = (one.text for one in _PATHS.values())
_set_path, _set_depth_path = (one.set_text for one in _PATHS.values())
for _name, _descriptor in _PATHS.items():
    setattr(VideoRecord, _name, _descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec:
    """Which frames of a video make which clip.

    Defaults: Orozco 2020, section 3: the first 40 frames, completed with the last frame.
    Raises: ValueError if a count is below 1, or num_clips does not fit the sampling.
    """

    # first: clips start at 0, clip_stride, 2 clip_stride ...; uniform: num_clips clips spread evenly, first and last
    # included; dense: as `first`, but all that fit; sparse: num_clips of the dense ones, evenly; segments: one clip in each
    # of num_clips equal parts of the video, around the part's middle or, with a segment_seed, around a frame drawn in it.
    # Which of the dense ones, says `clips.sparse_clip_indices`.
    sampling: Sampling = "first"
    clip_len: int = 1  # frames
    frame_interval: int = 1  # frames from one frame of a clip to the next
    clip_stride: int = 1  # frames from the start of one clip to the next
    num_clips: int | None = 40  # None with dense sampling only
    padding: Padding = (
        "repeat_last"  # what replaces frames after the last: the last one again, or the video from its start
    )
    segment_seed: int | None = None  # with segments sampling only

    def __post_init__(self) -> None:
        for name in ("clip_len", "frame_interval", "clip_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.sampling == "dense":
            if self.num_clips is not None:
                raise ValueError("dense sampling takes every clip: num_clips must be None")
        elif self.num_clips is None or self.num_clips < 1:
            raise ValueError(f"num_clips must be at least 1 for {self.sampling} sampling, not {self.num_clips}")
        if self.segment_seed is not None and self.sampling != "segments":
            raise ValueError(f"segment_seed belongs to segments sampling, not to {self.sampling}")

    def describe(self) -> str:
        """Return the clips in words, such as `uniform, 10 clips of 64 frames`; what sampling does not read is left out."""
        count = "all" if self.num_clips is None else str(self.num_clips)
        several = self.num_clips != 1
        step = f" (one in {self.frame_interval})" if self.frame_interval > 1 else ""
        clips = (
            f"frame{'s' * several}" if self.clip_len == 1 else f"clip{'s' * several} of {self.clip_len} frames{step}"
        )
        strided = self.sampling in ("first", "dense", "sparse") and several
        apart = self.clip_stride != 1 or (self.clip_len > 1 and self.sampling == "dense")
        stride = f", one every {self.clip_stride}" if strided and apart else ""
        seed = "" if self.segment_seed is None else f", at places drawn with seed {self.segment_seed}"
        return f"{self.sampling}, {count} {clips}{stride}{seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReductionSpec:
    """How a PCA made a feature set from another one, and which training videos it was fitted on.

    Raises: ValueError if dim is below 1 or the solver is unknown.
    """

    source: str  # name of the feature set that was projected
    dim: int  # components kept
    whiten: bool = False  # projections are divided by their standard deviation
    l2: bool = False  # each projected row is then divided by its norm
    solver: str = "exact"  # or `randomised:<seed>`
    protocol: str  # of the split whose training videos were used
    split: int  # its number
    train_ids_sha256: str  # as `fitted.train_ids_sha256` returns it

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"the dimension of a reduction must be at least 1, not {self.dim}")
        if not re.fullmatch(r"exact|randomised:\d+", self.solver):
            raise ValueError(f"unknown solver {self.solver!r}; there are: exact, randomised:<seed>")

    @property
    def title(self) -> str:
        """What stands in the name of the feature set."""
        return f"pca{self.dim}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingSpec:
    """How all rows of a video became one row, and which training videos that was fitted on.

    Raises: ValueError if a number is below 1 or the encoding is unknown.
    """

    source: str  # name of the feature set that was encoded
    encoding: Encoding  # a Fisher vector, or a histogram of words
    size: int  # Gaussians, or words, of each block
    components: int | None = (
        None  # most principal components of a block; None: half of its values, and for words always
    )
    sample: int  # most rows that it was fitted on
    seed: int  # of that sample and of the fit
    protocol: str  # of the split whose training videos were used
    split: int  # its number
    train_ids_sha256: str  # as `fitted.train_ids_sha256` returns it

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise ValueError(f"unknown encoding {self.encoding!r}; there are: {', '.join(get_args(Encoding))}")
        if min(self.size, self.sample, self.components or 1) < 1:
            raise ValueError(f"size, sample and components of an encoding must be at least 1: {self}")

    @property
    def title(self) -> str:
        """What stands in the name of the feature set."""
        return f"{self.encoding}{self.size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedOn:
    """The split whose training videos a net of ours was trained on."""

    protocol: str
    split: int  # its number
    train_ids_sha256: str  # as `fitted.train_ids_sha256` returns it


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """All that changes the numbers of a feature set; two features may be mixed only if their specs are equal."""

    extractor: str
    weights: str  # `sha256:<hex>` of the weights file, or `random:<seed>`
    layer: str
    feature_dim: int  # D
    stream: Stream = "rgb"
    clips: ClipSpec = field(default_factory=ClipSpec)
    fps: float | None = None  # frames/s after resampling; None: as filmed
    resize: str = "stretch-224"  # or such as `short256-center224`
    flow: str = ""  # as `FlowSpec.describe` puts it; empty for rgb
    preprocess: str = ""
    precision: str = "fp32"  # of the net's arithmetic
    dtype: str = "float16"  # of the stored features
    reduction: ReductionSpec | None = None  # None: features are not reduced
    encoding: EncodingSpec | None = None  # None: features are not encoded
    trained_on: TrainedOn | None = None  # None: of a net that was not trained here
    resize_method: ResizeMethod = "area"
    tokens: int = 0  # M, the rows of a clip: one for each position of a net's map; 0: one row, of the whole clip
    decoder: Decoder = "pyav"

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or self.tokens < 0:
            raise ValueError(f"tokens must be a whole number of at least 0, not {self.tokens!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as a plain nested dict, ready for JSON; of the last six only those that there are."""
        values = dataclasses.asdict(self)
        # So that feature sets keep the names they had before these existed.
        for name in ("reduction", "encoding", "trained_on", "tokens"):
            if not values[name]:
                del values[name]
        if self.resize_method == "area":
            del values["resize_method"]
        if self.decoder == "pyav":
            del values["decoder"]
        # Earlier versions rounded the places of sparse clips: their sets have other names.
        if self.clips.sampling == "sparse":
            values["clips"]["places"] = _SPARSE_PLACES
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSpec:
        """Build a spec from what `to_dict` returned. Raises: ValueError for sparse clips of an older version."""
        clips = dict(values["clips"])
        if clips["sampling"] == "sparse" and clips.pop("places", "rounded") != _SPARSE_PLACES:
            raise ValueError(
                "its sparse clips are those of an older version, which rounded their places: extract it again"
            )
        kinds: dict[str, type] = {"reduction": ReductionSpec, "encoding": EncodingSpec, "trained_on": TrainedOn}
        nested = {name: kind(**values[name]) for name, kind in kinds.items() if values.get(name)}
        return cls(**{**values, "clips": ClipSpec(**clips), **nested})

    @property
    def fit(self) -> ReductionSpec | EncodingSpec | None:
        """What was fitted on training videos to make this set from another one; None: it was made from the files."""
        return self.reduction or self.encoding

    @property
    def rows_per_clip(self) -> int:
        """Rows that a video's array has for each of its clips: its tokens, in order; an encoded video has one row in all."""
        return 1 if self.encoding is not None else max(1, self.tokens)

    @property
    def name(self) -> str:
        """The feature set's name: `<extractor>-<stream>-<first 10 hex of the sha256 of the canonical JSON>`.

        A reduced set's has `-pca<dim>` before the hash, an encoded one's `-fisher<gaussians>` or `-words<words>`.
        """
        kind = f"{self.stream}-{self.fit.title}" if self.fit else self.stream
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return f"{self.extractor}-{kind}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"

    def require_equal(self, other: FeatureSpec, where: str) -> None:
        """Check that `other` is the same spec. Raises: FeatureMismatchError naming each differing field."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        differing = [f"{key}: {mine[key]!r} != {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]
        if differing:
            raise FeatureMismatchError(f"{where}: the feature specs differ in " + "; ".join(differing))


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSource:
    """What is known of the video that features were computed from."""

    clip_starts: np.ndarray  # (N,) int64, first frame of each clip in the file, 0-based
    clip_ends: np.ndarray  # (N,) int64, the frame after its last
    num_frames: int  # decodable frames as far as known, or the container's count
    fps: float  # of the file, frames/s
    padded: bool = False  # whether a clip holds frames that replace missing ones
    decode_notes: tuple[str, ...] = ()  # what was wrong with the file
    provenance: Mapping[str, str] = field(default_factory=dict)  # versions, decoder, device
    file: Mapping[str, str] = field(
        default_factory=dict
    )  # what was read, as `source_files.describe_file` says it; may be empty

    # (N, 2) float64 start and end of each clip in seconds from the start of the file; from starts, ends and fps by default
    clip_times_s: np.ndarray = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.clip_times_s is None:
            import numpy as np

            with np.errstate(divide="ignore", invalid="ignore"):  # a file without a frame rate: no finite times
                times = np.stack([self.clip_starts, self.clip_ends], axis=1) / self.fps
            object.__setattr__(self, "clip_times_s", times)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRecord(VideoSource):
    """The stored features of one video."""

    video_id: str
    features: np.ndarray  # (N, D) of the spec's dtype; (N * M, D), clip by clip, of M tokens a clip
    checksum: str  # `sha256:<hex>` of the features' bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What a head says of a video as it goes on: after each of T steps, from the steps up to it."""

    times_s: (
        np.ndarray
    )  # (T,) float64, end of each step, s from the start of the file; not finite where it is not known
    probabilities: np.ndarray  # (T, K) float64; the last row is that of the whole video


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Video ids of one fold of a protocol; the three parts share no id. Raises: ValueError if they do."""

    protocol: str
    index: int
    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...]
    seed: int = 0
    manifest_sha256: str = ""  # of the manifest it was made from

    def __post_init__(self) -> None:
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            fewer, more = sorted((getattr(self, first), getattr(self, second)), key=len)
            if not set(fewer).isdisjoint(more):
                shared = sorted(set(fewer) & set(more))
                raise ValueError(f"{self.protocol} split {self.index}: {first} and {second} share {shared[:3]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Class probabilities of V videos. Raises: ValueError if lengths disagree or a probability is not finite."""

    video_ids: tuple[str, ...]
    labels: tuple[str, ...]  # (V,) true classes
    classes: tuple[str, ...]  # (K,)
    probabilities: np.ndarray  # (V, K) float64, columns as in `classes`; rows sum to 1
    part: tuple[str, ...]  # (V,) `train`, `val` or `test`
    fold: tuple[int, ...]  # (V,) the fold that a row comes from
    seed: tuple[int, ...]  # (V,) the repeat that a row comes from

    def __post_init__(self) -> None:
        rows = len(self.video_ids)
        if self.probabilities.shape != (rows, len(self.classes)):
            raise ValueError(f"probabilities are {self.probabilities.shape}, not ({rows}, {len(self.classes)})")
        for name in ("labels", "part", "fold", "seed"):
            if len(getattr(self, name)) != rows:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {rows} videos")
        import numpy as np

        if not np.isfinite(self.probabilities).all():
            raise ValueError("a probability is not finite")

    def select(self, rows: Sequence[int] | np.ndarray) -> Scores:
        """Return the scores of the given row numbers, in that order."""
        index = [int(i) for i in rows]
        columns = ("video_ids", "labels", "part", "fold", "seed")
        taken = {name: tuple(getattr(self, name)[i] for i in index) for name in columns}
        return dataclasses.replace(self, probabilities=self.probabilities[index], **taken)
