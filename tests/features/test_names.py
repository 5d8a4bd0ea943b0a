"""Names of feature sets, and in what sets of one net differ."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from feature_sets import blobs, feature_store, split_of
from har_command import har
from pixel_nets import pixel_extractor

from har_pipeline.core.errors import ExtractionError, StoreError
from har_pipeline.core.records import ClipSpec, FeatureSpec, VideoSource
from har_pipeline.features.encode import encode_features
from har_pipeline.features.extract import extract, extract_many
from har_pipeline.features.frames import choose_frames
from har_pipeline.features.options import EncodeOptions, ExtractOptions, RawOptions
from har_pipeline.features.pack import open_features, pack_features
from har_pipeline.features.reduce import ReduceOptions, reduce_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.words import among_their_nets, differences

FIRST = FeatureSpec(extractor="i3d", weights="sha256:" + "a" * 64, layer="Mixed_5c", feature_dim=4, dtype="float32")
CLIPS = ClipSpec(sampling="uniform", num_clips=10, clip_len=64, padding="loop")
WHOLE = dataclasses.replace(FIRST, clips=CLIPS)
OTHER = dataclasses.replace(WHOLE, extractor="i3d_r50")


def fill(store: FeatureStore, spec: FeatureSpec) -> str:
    name = store.create_feature_set(spec)
    one = np.zeros(1, np.int64)
    store.write(
        name, "v", np.ones((1, 4), np.float32), VideoSource(clip_starts=one, clip_ends=one + 9, num_frames=9, fps=25.0)
    )
    return name


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Two sets of one net, and one of a net whose name starts as its name does."""
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    for spec in (FIRST, WHOLE, OTHER):
        fill(store, spec)
    return store


def test_the_way_of_scaling_is_in_the_spec_where_it_is_not_the_usual_one() -> None:
    assert "resize_method" not in FIRST.to_dict()
    other = dataclasses.replace(FIRST, resize_method="swscale")
    assert other.name != FIRST.name == dataclasses.replace(other, resize_method="area").name
    assert FeatureSpec.from_dict(other.to_dict()) == other
    assert FeatureSpec.from_dict(FIRST.to_dict()).resize_method == "area"


def test_a_decoder_is_in_the_spec_where_its_pixels_may_be_others() -> None:
    assert "decoder" not in FIRST.to_dict()
    other = dataclasses.replace(FIRST, decoder="nvdec")
    assert other.name != FIRST.name == dataclasses.replace(other, decoder="pyav").name
    assert FeatureSpec.from_dict(other.to_dict()) == other
    assert FeatureSpec.from_dict(FIRST.to_dict()).decoder == "pyav"
    assert differences({"one": FIRST, "two": other}) == {"one": "decoded by pyav", "two": "decoded by nvdec"}


def test_sets_of_one_net_are_told_apart_by_what_differs() -> None:
    assert differences({"one": FIRST, "two": WHOLE}) == {
        "one": "first, 40 frames",
        "two": "uniform, 10 clips of 64 frames",
    }
    padded, strided = (dataclasses.replace(CLIPS, **more) for more in ({"padding": "repeat_last"}, {"clip_stride": 3}))
    told = differences(
        {
            clips.padding + str(clips.clip_stride): dataclasses.replace(FIRST, clips=clips)
            for clips in (CLIPS, padded, strided)
        }
    )
    assert told == {
        "loop1": "clip stride 1, padding loop",
        "repeat_last1": "clip stride 1, padding repeat_last",
        "loop3": "clip stride 3, padding loop",
    }
    changed = {
        "plain": FIRST,
        "fc6": dataclasses.replace(FIRST, layer="fc6", feature_dim=9),
        "random": dataclasses.replace(FIRST, weights="random:3", preprocess="rgb"),
        "slow": dataclasses.replace(FIRST, fps=5.0, dtype="float16", precision="bf16"),
        "all": dataclasses.replace(FIRST, clips=ClipSpec(sampling="dense", num_clips=None)),
    }
    told = differences(changed)
    assert "layer fc6" in told["fc6"]
    assert "weights random:3" in told["random"]
    assert "9 values" not in told["fc6"]
    assert "5 frames/s" in told["slow"]
    assert "own frame rate" in told["plain"]
    assert "stored in float16" in told["slow"]
    assert "computed in bf16" in told["slow"]
    assert "all frames" in told["all"]
    assert differences({"one": FIRST}) == {"one": ""}
    assert differences({}) == {}
    # Another net's sets do not count.
    assert among_their_nets({"one": FIRST, "other": OTHER}) == {"one": "", "other": ""}


@pytest.mark.parametrize(
    ("clips", "text"),
    [
        (ClipSpec(), "first, 40 frames"),
        (ClipSpec(num_clips=1), "first, 1 frame"),
        (ClipSpec(clip_stride=2, num_clips=20), "first, 20 frames, one every 2"),
        (CLIPS, "uniform, 10 clips of 64 frames"),
        (
            ClipSpec(sampling="uniform", num_clips=5, clip_len=16, frame_interval=2),
            "uniform, 5 clips of 16 frames (one in 2)",
        ),
        (
            ClipSpec(sampling="dense", num_clips=None, clip_len=16, clip_stride=8),
            "dense, all clips of 16 frames, one every 8",
        ),
        (ClipSpec(sampling="dense", num_clips=None), "dense, all frames"),
        (ClipSpec(sampling="segments", num_clips=3, segment_seed=2), "segments, 3 frames, at places drawn with seed 2"),
    ],
)
def test_clips_in_words(clips: ClipSpec, text: str) -> None:
    assert clips.describe() == text


def test_a_prefix_that_several_sets_have_lists_in_what_they_differ(store: FeatureStore) -> None:
    with pytest.raises(StoreError) as caught:
        store.resolve("i3d-")
    assert "2 feature sets start with 'i3d-'; there are: i3d-rgb-" in str(caught.value)
    assert f"{FIRST.name} (first, 40 frames)" in str(caught.value)
    assert f"{WHOLE.name} (uniform, 10 clips of 64 frames)" in str(caught.value)


def test_a_set_is_found_by_its_name(store: FeatureStore, tmp_path: Path) -> None:
    before = store.feature_sets()
    store.give_name(WHOLE.name, "whole")
    assert FeatureStore(store.path).resolve("whole") == WHOLE.name
    assert store.feature_sets() == before
    assert store.names() == {"whole": WHOLE.name}
    # A name is preferred to the start of others' names, and hides no set's own.
    store.give_name(FIRST.name, "i3d")
    assert store.resolve("i3d") == FIRST.name
    assert store.resolve(WHOLE.name) == WHOLE.name
    store.give_name(FIRST.name, "i3d")
    # A new name takes the place of the old one.
    store.give_name(FIRST.name, "start")
    assert store.names() == {"start": FIRST.name, "whole": WHOLE.name}
    with pytest.raises(StoreError, match="'whole'"):
        store.resolve("i3d-")
    # The pack has the names that the sets had when they were packed.
    for name in (WHOLE.name, FIRST.name):
        pack_features(store, name, tmp_path / "store.pack")
    packed = open_features(tmp_path / "store.pack")
    assert packed.resolve("whole") == WHOLE.name
    store.give_name(WHOLE.name, "new")
    assert not pack_features(store, WHOLE.name, tmp_path / "store.pack").written
    assert open_features(tmp_path / "store.pack").names() == {"start": FIRST.name, "new": WHOLE.name}


def test_a_name_belongs_to_one_set(store: FeatureStore) -> None:
    store.give_name(WHOLE.name, "whole")
    with pytest.raises(
        StoreError, match=rf"'whole' is the name of {WHOLE.name}, .*har features name .* whole NEW_NAME"
    ):
        store.give_name(FIRST.name, "whole")
    wanted = dataclasses.replace(FIRST, layer="new")
    with pytest.raises(StoreError, match="'whole' is the name of"):
        store.create_feature_set(wanted, "whole")
    assert wanted.name not in store.feature_sets()
    for odd in ("a b", "", "..", "con", "-x", FIRST.name, "a/b"):
        with pytest.raises(StoreError, match="the name"):
            store.give_name(FIRST.name, odd)
    # The name of a set that is gone is free, and so is a damaged one.
    store.discard_fit(WHOLE.name)
    assert store.names() == {}
    store.give_name(FIRST.name, "whole")
    assert store.names() == {"whole": FIRST.name}
    (store.path / "_names/whole/zarr.json").write_text("{")
    assert FeatureStore(store.path).names() == {}
    store.give_name(FIRST.name, "whole")
    assert FeatureStore(store.path).names() == {"whole": FIRST.name}


def _name_one(path: Path, spec: FeatureSpec, answers: multiprocessing.SimpleQueue[str]) -> None:
    try:
        FeatureStore(path).give_name(spec.name, "mine")
        answers.put(spec.name)
    except StoreError:
        answers.put("")


def test_of_processes_that_want_a_name_one_has_it(store: FeatureStore) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    processes = [context.Process(target=_name_one, args=(store.path, spec, answers)) for spec in (FIRST, WHOLE, OTHER)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    winners = [name for name in (answers.get() for _ in processes) if name]
    assert len(winners) == 1
    assert store.names() == {"mine": winners[0]}


def test_names_are_given_while_sets_are_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    plain = extract([], store, pixel_extractor(), ExtractOptions())
    for name in ("first", "plain", "plain"):
        named = extract([], store, pixel_extractor(), ExtractOptions(name=name))
        assert named.feature_set == plain.feature_set == store.resolve(name)
    assert caplog.messages == [f"{plain.feature_set} is called 'plain' now, and 'first' no longer"]  # told once
    other = ExtractOptions(clips=ClipSpec(num_clips=3), name="plain")
    with pytest.raises(StoreError, match="'plain' is the name of"):
        extract([], store, pixel_extractor(), other)
    assert store.feature_sets() == [plain.feature_set]
    with pytest.raises(ExtractionError, match="one feature set"):
        extract_many([], store, [(pixel_extractor("a"), other), (pixel_extractor("b"), other)])
    raw = RawOptions(stream="rgb", name="pixels")
    small = dataclasses.replace(raw, size=32, name=None)
    for options in (raw, small):
        store.create_feature_set(options.spec(), options.name)
    assert choose_frames(store, "rgb", "pixels") == raw.spec().name
    with pytest.raises(StoreError, match="2 raw-frame sets of rgb"):
        choose_frames(store, "rgb")


def test_derived_sets_are_named_too(tmp_path: Path) -> None:
    features, labels = blobs(["x", "y"], 6)
    store, name = feature_store(tmp_path / "store.zarr", features)
    split = split_of([v for v in labels if v[-1] in "0123"], [v for v in labels if v[-1] in "45"])
    store.give_name(name, "taken")
    made = reduce_features(store, "taken", split, ReduceOptions(dim=2, name="small"))
    assert store.resolve("small") == made.feature_set
    with pytest.raises(StoreError, match="'taken' is the name"):
        encode_features(store, name, split, EncodeOptions(encoding="words", words=2, name="taken"))
    assert [one for one in store.feature_sets() if "words" in one] == []
    assert store.fits() == [made.feature_set]
    encoded = encode_features(store, "taken", split, EncodeOptions(encoding="words", words=2, name="words"))
    assert store.resolve("words") == encoded.feature_set


def test_on_the_command_line(store: FeatureStore, tmp_path: Path) -> None:
    path = store.path.name
    assert f"{WHOLE.name}: whole" in har("features", "name", path, WHOLE.name, "whole", cwd=tmp_path).stdout
    done = har("features", "name", path, "whole", "all", cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"{WHOLE.name}: all (whole before)\n", "")
    har("features", "name", path, "all", "whole", cwd=tmp_path)
    listed = har("features", "list", path, cwd=tmp_path).stdout
    assert "uniform, 10 clips of 64 frames" in listed
    rows = {row["feature_set"]: row for row in json.loads(har("features", "list", path, "--json", cwd=tmp_path).stdout)}
    assert (rows[WHOLE.name]["name"], rows[FIRST.name]["name"]) == ("whole", None)
    assert rows[OTHER.name]["differs"] == ""
    shown = json.loads(har("features", "show", path, "--features", "whole", "--json", cwd=tmp_path).stdout)
    assert (shown["feature_set"], shown["name"]) == (WHOLE.name, "whole")
    assert "is the name of" in har("features", "name", path, FIRST.name, "whole", cwd=tmp_path, code=1).stderr
    assert "the name 'a b'" in har("features", "name", path, FIRST.name, "a b", cwd=tmp_path, code=1).stderr
    for more in (["--extractor", "vgg16", "--extractor", "i3d"], ["--name", "x"]):
        command = ("extract", "m.csv", path, "--name", "one name", *more)
        assert har(*command, cwd=tmp_path, code=2 if more[0] == "--extractor" else 1).stderr
