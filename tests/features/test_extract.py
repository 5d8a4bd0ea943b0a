from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from experiments import BENCHMARKS, load
from paths import python_path
from pixel_nets import pixel_extractor
from torch import nn
from video_files import make_audio, make_video

from har_pipeline.core.errors import ExtractionError, UsageError, WeightsError
from har_pipeline.core.records import ClipSpec, VideoRecord
from har_pipeline.datasets.builders import build_manifest
from har_pipeline.datasets.manifests import read_manifest, write_manifest
from har_pipeline.features.extract import extract, extract_many, feature_spec
from har_pipeline.features.job import Progress
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.pack import PackedStore, pack_features
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.words import differences
from har_pipeline.models.extractors import Extractor, build_extractor


def videos(folder: Path, count: int, frames: int = 20) -> list[VideoRecord]:
    return [
        VideoRecord(video_id=f"v{i:02d}", label="a", path=make_video(folder / f"v{i:02d}.avi", frames + i, seed=i))
        for i in range(count)
    ]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store.zarr", create=True)


def all_features(store: FeatureStore, name: str) -> dict[str, np.ndarray]:
    return {video_id: store.read(name, video_id, check=True).features for video_id in store.video_ids(name)}


def test_features_are_those_of_the_right_frames(tmp_path: Path, store: FeatureStore) -> None:
    """Against the same frames read and pooled one by one."""
    from har_pipeline.video.decode import FrameReader
    from har_pipeline.video.preprocess import parse_resize, resize_frame

    records = videos(tmp_path, 3)
    options = ExtractOptions(clips=ClipSpec(num_clips=25), batch_size=7, workers=2, dtype="float32")
    extractor = pixel_extractor()
    summary = extract(records, store, extractor, options)
    assert (summary.done, summary.clips, summary.failed, summary.notes) == (3, 75, {}, {})
    for record in records:
        assert record.path is not None
        frames = [resize_frame(frame, parse_resize("stretch-32")) for _, frame in FrameReader(record.path)]
        clips = torch.from_numpy(np.stack([frames[min(i, len(frames) - 1)] for i in range(25)]))[:, None]
        stored = store.read(summary.feature_set, record.video_id, check=True)
        np.testing.assert_allclose(stored.features, extractor(clips).numpy(), rtol=1e-6)
        assert stored.clip_starts.tolist() == [min(i, len(frames) - 1) for i in range(25)]
        assert stored.num_frames == len(frames)
        assert stored.provenance["decoder"] == "pyav"


def test_features_do_not_depend_on_workers_batches_order_or_decoder(tmp_path: Path, store: FeatureStore) -> None:
    """Bit for bit over workers, order and what else is in a batch; 1 level of 255 between decoders' colours."""
    records = videos(tmp_path, 5)
    options = [
        ExtractOptions(workers=1, batch_size=8),
        ExtractOptions(workers=3, batch_size=8),
        ExtractOptions(workers=2, batch_size=8, decoder="decord"),
    ]
    results = []
    for number, option in enumerate(options):
        own = FeatureStore(tmp_path / f"s{number}.zarr", create=True)
        chosen = records if number != 1 else [records[i] for i in (3, 1, 4, 0, 2)]
        if option.decoder == "decord":
            pytest.importorskip("decord")
        summary = extract(chosen, own, pixel_extractor(), option)
        results.append(all_features(own, summary.feature_set))
    for video_id, features in results[0].items():
        np.testing.assert_array_equal(features, results[1][video_id])
        assert np.abs(features.astype(np.float32) - results[2][video_id]).max() <= 2


@pytest.mark.parametrize("broken", [False, True])
def test_without_decord_nothing_is_begun(tmp_path: Path, store, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and no video is recorded as failed: the videos are sound."""
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    if broken:  # it is there, and a library that it was built for is not
        (tmp_path / "decord.py").write_text("raise OSError('libbz2.so.1.0: cannot open shared object file')")
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setitem(sys.modules, "decord", None)
    says = "cannot be loaded here .libbz2" if broken else "is not installed"
    with pytest.raises(ExtractionError, match=f"decord {says}.*; without --decoder decord PyAV reads the files"):
        extract(videos(tmp_path, 1), store, pixel_extractor(), ExtractOptions(decoder="decord"))
    assert store.feature_sets() == []


def test_real_net_is_the_same_alone_and_among_others(tmp_path: Path, store: FeatureStore) -> None:
    records = videos(tmp_path, 3, frames=6)
    extractor = build_extractor("efficientnet_lite0", device="cpu")
    options = ExtractOptions(clips=ClipSpec(num_clips=6), batch_size=4)
    together = extract(records, store, extractor, options)
    alone = FeatureStore(tmp_path / "alone.zarr", create=True)
    extract(records[1:2], alone, extractor, options)
    np.testing.assert_array_equal(
        store.read(together.feature_set, "v01").features, alone.read(together.feature_set, "v01").features
    )


def test_a_second_run_does_only_what_is_missing(tmp_path: Path, store: FeatureStore) -> None:
    records = videos(tmp_path, 4)
    first = extract(records[:2], store, pixel_extractor())
    seen: list[Progress] = []
    second = extract(records, store, pixel_extractor(), on_progress=seen.append)
    assert (first.done, second.already, second.done) == (2, 2, 2)
    assert second.feature_set == first.feature_set
    assert seen[-1].done == 2
    third = extract(records, store, pixel_extractor())
    assert (third.already, third.done, third.bound_by) == (4, 0, "nothing")


def test_the_net_is_built_only_where_there_is_something_to_do(tmp_path: Path, store: FeatureStore) -> None:
    records = videos(tmp_path, 2)
    built: list[Extractor] = []

    def net() -> Extractor:
        plain = pixel_extractor()

        def make() -> nn.Module:
            built.append(plain)
            return plain.make_module()

        return dataclasses.replace(plain, make_module=make)

    assert extract(records[:1], store, net()).done == 1
    assert len(built) == 1, "once, whatever asks for it"
    assert extract(records[:1], store, net()).already == 1
    assert len(built) == 1
    assert extract(records, store, net()).done == 1
    assert len(built) == 2


def test_a_net_that_cannot_be_built_leaves_no_feature_set(tmp_path: Path, store: FeatureStore) -> None:
    def damaged() -> NoReturn:
        raise WeightsError("net.pt: does not fit the net")

    with pytest.raises(WeightsError, match="does not fit"):
        extract(videos(tmp_path, 1), store, dataclasses.replace(pixel_extractor(), make_module=damaged))
    assert store.feature_sets() == []


def test_a_file_that_was_replaced_is_noticed_and_made_anew_on_demand(tmp_path: Path, store: FeatureStore) -> None:
    records = videos(tmp_path, 2)
    name = extract(records, store, pixel_extractor()).feature_set
    before = all_features(store, name)
    make_video(tmp_path / "v00.avi", 33, seed=9)
    summary = extract(records, store, pixel_extractor())
    assert (summary.done, summary.already, set(summary.failed)) == (0, 1, {"v00"})
    assert "another file, v00.avi (" in summary.failed["v00"]
    assert store.failures(name) == {}
    np.testing.assert_array_equal(store.read(name, "v00").features, before["v00"])
    summary = extract(records, store, pixel_extractor(), ExtractOptions(replace_changed=True))
    assert (summary.done, summary.already, summary.failed) == (1, 1, {})
    assert store.read(name, "v00").num_frames == 33


def bad_folder(folder: Path) -> list[VideoRecord]:
    make_video(folder / "good.avi", 50)
    make_video(folder / "one_frame.avi", 1)
    whole = make_video(folder / "whole.avi", 80, seed=1).read_bytes()
    (folder / "truncated.avi").write_bytes(whole[: int(len(whole) * 0.8)])
    (folder / "stump.avi").write_bytes(whole[: int(len(whole) * 0.2)])
    (folder / "empty.avi").write_bytes(b"")
    (folder / "text.avi").write_text("this is not a video\n" * 50)
    (folder / "folder.avi").mkdir()
    make_audio(folder / "audio.mp4")
    names = ("good", "one_frame", "whole", "truncated", "stump", "empty", "text", "folder", "missing")
    records = [VideoRecord(video_id=name, label="a", path=folder / f"{name}.avi") for name in names]
    return [*records, VideoRecord(video_id="audio", label="a", path=folder / "audio.mp4")]


def test_bad_files_cost_only_themselves(tmp_path: Path, store: FeatureStore) -> None:
    records = bad_folder(tmp_path)
    options = ExtractOptions(clips=ClipSpec(sampling="uniform", num_clips=12), workers=2)
    summary = extract(records, store, pixel_extractor(), options)
    assert store.video_ids(summary.feature_set) == ["good", "one_frame", "truncated", "whole"]
    reasons = {
        "empty": "is empty",
        "text": "not a readable video",
        "folder": "is a folder",
        "missing": "does not exist",
        "audio": "no video stream",
        "stump": "truncated or damaged",
    }
    assert set(summary.failed) == set(reasons)
    for video_id, reason in reasons.items():
        assert reason in summary.failed[video_id]
        assert video_id in summary.failed[video_id]  # the file is named
    assert store.failures(summary.feature_set) == summary.failed
    assert set(summary.notes) == {"truncated"}
    assert "could be decoded" in " ".join(store.read(summary.feature_set, "truncated").decode_notes)
    assert np.isfinite(store.read(summary.feature_set, "one_frame").features).all()
    again = extract(records, store, pixel_extractor(), options)
    assert (again.done, again.failed, again.failed_before) == (0, {}, summary.failed)
    make_video(tmp_path / "empty.avi", 30)
    from dataclasses import replace

    retried = extract(records, store, pixel_extractor(), replace(options, retry_failed=True))
    assert retried.done == 1
    assert "empty" not in store.failures(summary.feature_set)


def test_rows_of_one_file_are_cut_at_their_frames(tmp_path: Path, store: FeatureStore) -> None:
    path = make_video(tmp_path / "long.avi", 60)
    bounds = {"a": (0, 20), "b": (20, 41), "late": (100, 120)}
    records = [
        VideoRecord(video_id=name, label="a", path=path, start_frame=s, end_frame=e) for name, (s, e) in bounds.items()
    ]
    summary = extract(
        records, store, pixel_extractor(), ExtractOptions(clips=ClipSpec(sampling="uniform", num_clips=3))
    )
    assert store.read(summary.feature_set, "a").clip_starts.tolist() == [0, 10, 19]
    assert store.read(summary.feature_set, "b").clip_starts.tolist() == [20, 30, 40]
    assert "starts at frame 100" in summary.failed["late"]


def test_overflow_of_float16_is_an_error_not_inf(tmp_path: Path, store: FeatureStore) -> None:
    records = videos(tmp_path, 1)
    extractor = pixel_extractor(scale=1000.0)
    summary = extract(records, store, extractor)
    assert "overflows float16: use --dtype float32" in summary.failed["v00"]
    kept = extract(records, store, extractor, ExtractOptions(dtype="float32"))
    assert kept.done == 1
    assert kept.feature_set != summary.feature_set


class _Once(nn.Module):
    """Features (B, 32) that are not finite at the first call."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.full((len(x), 32), torch.nan if self.calls == 1 else 1.0)


def test_a_video_whose_features_are_not_finite_fails_alone(tmp_path: Path, store: FeatureStore) -> None:
    net = dataclasses.replace(pixel_extractor(), make_module=_Once)
    summary = extract(videos(tmp_path, 2), store, net, ExtractOptions(workers=1, batch_size=1))
    assert summary.failed == {"v00": "the net gave a value that is not finite: its weights may be damaged"}
    assert store.video_ids(summary.feature_set) == ["v01"]


def test_a_net_that_gives_no_finite_value_is_refused_once(tmp_path: Path, store: FeatureStore) -> None:
    net = dataclasses.replace(pixel_extractor(scale=float("nan")), weights_file=Path("net.pt"))
    with pytest.raises(
        WeightsError, match=r"^net\.pt: with these weights the net gives values in fp32 .*get the weights again"
    ):
        extract(videos(tmp_path, 3), store, net)
    (name,) = store.feature_sets()
    assert (store.video_ids(name), store.failures(name)) == ([], {})


def test_shards_together_are_the_whole(tmp_path: Path, store: FeatureStore) -> None:
    records = videos(tmp_path, 5)
    done = [extract(records, store, pixel_extractor(), ExtractOptions(shard=(k, 3))).done for k in (1, 2, 3)]
    assert done == [2, 2, 1]
    assert len(store.video_ids(feature_spec(pixel_extractor(), ExtractOptions()).name)) == 5


def test_options_that_make_no_sense() -> None:
    for options in ({"shard": (3, 2)}, {"dtype": "int8"}, {"fps": 0.0}, {"workers": 0}, {"batch_size": 0}):
        with pytest.raises(ExtractionError):
            ExtractOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="wants 32 px"):
        feature_spec(pixel_extractor(), ExtractOptions(resize="stretch-64"))
    with pytest.raises(UsageError, match="write stretch-<size>"):
        feature_spec(pixel_extractor(), ExtractOptions(resize="squeeze"))


def test_frames_may_be_scaled_while_they_are_converted(tmp_path: Path, store: FeatureStore) -> None:
    """Beside a net whose frames are scaled by area, which get the same features as alone."""
    records = videos(tmp_path, 2)
    net, other = pixel_extractor(resize="short48-center32"), pixel_extractor(resize="stretch-32")
    options = ExtractOptions(dtype="float32")
    alone = extract(records, store, net, options).feature_set
    expected = all_features(store, alone)
    again = FeatureStore(tmp_path / "again.zarr", create=True)
    fast = dataclasses.replace(options, resize_method="swscale")
    both, by_area, _ = extract_many(records, again, [(net, fast), (net, options), (other, fast)])
    assert by_area.feature_set == alone != both.feature_set
    for video_id, features in all_features(again, alone).items():
        np.testing.assert_array_equal(features, expected[video_id])
    for video_id, features in all_features(again, both.feature_set).items():
        assert 0 < np.abs(features - expected[video_id]).mean() < 3, "levels"
    spec = again.spec(both.feature_set)
    assert spec.resize_method == "swscale"
    assert differences({"a": spec, "b": again.spec(alone)}) == {"a": "resized by swscale", "b": "resized by area"}


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        ({}, {"decoder": "decord"}, "resize_method=swscale takes frames of PyAV, not of decord"),
        ({"stream": "flow"}, {}, "swscale is for rgb"),
        ({"resize": "short60-person32x32"}, {}, "stretched or cropped"),
        ({"resize": "fit-32x32"}, {}, "stretched or cropped"),
    ],
)
def test_what_swscale_does_not_scale_is_refused(net: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises((ExtractionError, UsageError), match=message):
        feature_spec(pixel_extractor(**net), ExtractOptions(resize_method="swscale", **options))


def test_speed_options_do_not_change_the_spec() -> None:
    plain = feature_spec(pixel_extractor(), ExtractOptions())
    fast = feature_spec(pixel_extractor(), ExtractOptions(workers=4, batch_size=3, decoder="pyav", shard=(1, 2)))
    assert plain == fast
    assert plain.name != feature_spec(pixel_extractor(), ExtractOptions(fps=5.0)).name


def test_decoders_with_other_pixels_do_not_share_a_feature_set(tmp_path: Path, store: FeatureStore) -> None:
    nets = [(pixel_extractor(), ExtractOptions(decoder=one)) for one in ("auto", "decord", "torchcodec", "nvdec")]
    assert [feature_spec(*net).decoder for net in nets] == ["pyav", "decord", "torchcodec", "nvdec"]
    with pytest.raises(ExtractionError, match="feature sets made in one pass have one decoder"):
        extract_many(videos(tmp_path, 1), store, nets[:2])
    assert store.feature_sets() == []


def _command(manifest: Path, store: Path) -> list[str]:
    options = ["--num-clips", "6", "--batch-size", "4", "--device", "cpu", "--weights", "random", "--json"]
    return ["extract", str(manifest), str(store), *options]


@pytest.mark.slow
@pytest.mark.exhaustive  # `test_faults.py` has a kill of each command
def test_killed_at_random_moments_nothing_is_lost_or_wrong(tmp_path: Path) -> None:
    """kill -9 twenty times, at least fifteen between the first and the last commit; the store then equals an
    uninterrupted one bit for bit."""
    records = videos(tmp_path / "videos", 60, frames=12)
    manifest = tmp_path / "manifest.csv"
    write_manifest(manifest, records)
    with load("copies", BENCHMARKS).started_copies(tmp_path / "out") as copies:
        reference = copies.start(*_command(manifest, tmp_path / "whole.zarr"))
        assert reference.wait() == 0
        name = json.loads(reference.out.read_text())["feature_set"]
        whole = all_features(FeatureStore(tmp_path / "whole.zarr"), name)
        path = tmp_path / "killed.zarr"
        rng = random.Random(0)
        committed_at_kill: list[int] = []
        while len(committed_at_kill) < 20:
            before = len(list((path / name).glob("v*"))) if path.exists() else 0
            process = copies.start(*_command(manifest, path))
            # Wait for progress, so that the twenty kills spread over the job, then kill at a random moment.
            deadline = time.monotonic() + 600
            wanted = before + 1 if committed_at_kill else 0
            while time.monotonic() < deadline and process.code() is None:
                if path.exists() and len(list((path / name).glob("v*"))) >= wanted:
                    break
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            committed_at_kill.append(len(list((path / name).glob("v*"))) if path.exists() else 0)
        print("videos committed at each kill:", committed_at_kill)
        assert sum(0 < count < len(records) for count in committed_at_kill) >= 15
        store = FeatureStore(path)
        assert all(damage is None for damage in store.verify(name))
        assert copies.start(*_command(manifest, path)).wait() == 0
    resumed = all_features(store, name)
    assert resumed.keys() == whole.keys()
    for video_id, features in whole.items():
        np.testing.assert_array_equal(features, resumed[video_id])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_extract_one_manifest_into_one_store(tmp_path: Path) -> None:
    records = videos(tmp_path / "videos", 12, frames=10)
    manifest = tmp_path / "manifest.csv"
    write_manifest(manifest, records)
    path = tmp_path / "store.zarr"
    with load("copies", BENCHMARKS).started_copies(tmp_path / "out") as copies:
        both = [copies.start(*_command(manifest, path)) for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0]
    name = json.loads(both[0].out.read_text())["feature_set"]
    store = FeatureStore(path)
    assert store.video_ids(name) == [record.video_id for record in records]
    assert all(damage is None for damage in store.verify(name))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path: Path) -> None:
    """Peak memory of a dense extraction of 3,000 frames is within 40 MB of that of 300 frames."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\n"
        "from test_extract import *\n"
        "record = VideoRecord(video_id='v', label='a', path=Path(sys.argv[2]))\n"
        "store = FeatureStore(Path(sys.argv[2] + '.zarr'), create=True)\n"
        "options = ExtractOptions(clips=ClipSpec(sampling='dense', num_clips=None), workers=1)\n"
        "assert extract([record], store, pixel_extractor(), options).done == 1\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,"
        " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)\n"
    )
    peaks = []
    for frames in (300, 3000):
        path = make_video(tmp_path / f"{frames}.avi", frames)
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent), str(path)],
            capture_output=True,
            text=True,
            check=True,
            env=python_path(),
        )
        peaks.append([int(value) for value in done.stdout.split()])
    print("peak MB of the main process and the worker:", peaks)
    assert all(long - short <= 40 for short, long in zip(*peaks, strict=True))


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # A GPU's convolutions multiply in full float32, as the CPU's, only without TF32.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    records = videos(tmp_path, 3)
    results = []
    for device in ("cpu", "cuda"):
        own = FeatureStore(tmp_path / f"{device}.zarr", create=True)
        extractor = build_extractor("efficientnet_lite0", device=device, precision="fp32")
        summary = extract(records, own, extractor, ExtractOptions(dtype="float32"))
        results.append(all_features(own, summary.feature_set))
    for video_id, features in results[0].items():
        difference = np.linalg.norm(features - results[1][video_id]) / np.linalg.norm(features)
        assert difference <= 2e-3


def test_videos_without_labels_and_with_names_in_any_script(tmp_path: Path, store: FeatureStore) -> None:
    folder = tmp_path / "videos"
    for number, name in enumerate(("跑步 1.avi", "Z\u0075\u0308rich.MP4", "नमस्ते.mkv")):
        make_video(folder / name, 8, seed=number, codec="mpeg4")
    records = build_manifest("folder", folder)
    assert [record.label for record in records] == ["", "", ""]
    write_manifest(tmp_path / "m.csv", records)
    assert read_manifest(tmp_path / "m.csv") == records
    summary = extract(records, store, pixel_extractor(), ExtractOptions(workers=1))
    assert (summary.done, summary.failed) == (3, {})
    stored = FeatureStore(store.path)
    assert stored.video_ids(summary.feature_set) == sorted(["跑步-x201", "Z\u00fcrich", "नमस्ते"])
    assert all(damage is None for damage in stored.verify(summary.feature_set))
    again = extract(records, stored, pixel_extractor(), ExtractOptions(workers=1))
    assert (again.done, again.already) == (0, 3)
    pack_features(stored, summary.feature_set, tmp_path / "s.pack")
    assert PackedStore(tmp_path / "s.pack").video_ids(summary.feature_set) == stored.video_ids(summary.feature_set)
