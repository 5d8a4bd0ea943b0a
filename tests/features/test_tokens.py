"""Token features: several rows for each clip, one for each position of a net's map, through everything that reads a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_sets import feature_store
from pixel_nets import pixel_extractor
from video_files import make_video

from har_pipeline.core.errors import FeatureMismatchError, StoreError, UsageError
from har_pipeline.core.records import ClipSpec, FeatureSpec, VideoRecord, VideoSource
from har_pipeline.features.extract import extract, feature_spec
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.features.words import differences
from har_pipeline.models.extractors import build_extractor
from har_pipeline.models.extractors.i3d import I3D
from har_pipeline.models.extractors.vgg16 import VGG16
from har_pipeline.video.decode import FrameReader
from har_pipeline.video.preprocess import parse_resize, resize_frame

M, D = 8, 3
CLIPS = ClipSpec(sampling="uniform", clip_len=4, num_clips=5)


def drawn(videos: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Tokens (N * M, D) of 1 to 4 clips each."""
    rng = np.random.default_rng(seed)
    return {f"v{i}": rng.standard_normal((int(rng.integers(1, 5)) * M, D)).astype(np.float32) for i in range(videos)}


def test_tokens_are_stored_as_rows_of_their_clips_in_order(tmp_path: Path) -> None:
    """Batches that end within a video, and a video shorter than its clips, whose last clip repeats."""
    net = pixel_extractor(tokens=True)
    records = [
        VideoRecord(video_id=f"v{i}", label="a", path=make_video(tmp_path / f"v{i}.avi", frames, seed=i))
        for i, frames in enumerate((20, 3))
    ]
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    first = ClipSpec(sampling="first", clip_len=4, num_clips=5, clip_stride=2)
    summary = extract(records, store, net, ExtractOptions(clips=first, batch_size=3, dtype="float32", workers=1))
    assert (summary.done, summary.clips) == (2, 10)
    assert store.spec(summary.feature_set).tokens == store.spec(summary.feature_set).rows_per_clip == M
    assert store.num_clips(summary.feature_set) == {"v0": 5, "v1": 5}
    for record in records:
        assert record.path is not None
        found = FeatureStore(store.path).read(summary.feature_set, record.video_id, check=True)
        frames = [resize_frame(frame, parse_resize("stretch-32")) for _, frame in FrameReader(record.path)]
        numbers = [[min(2 * clip + i, len(frames) - 1) for i in range(4)] for clip in range(5)]
        clips = torch.from_numpy(np.stack([[frames[number] for number in own] for own in numbers]))
        assert found.features.shape == (5 * M, D)
        np.testing.assert_allclose(found.features.reshape(5, M, D), net(clips).numpy(), rtol=1e-6)
        assert found.clip_starts.shape == found.clip_ends.shape == (5,)
        assert found.clip_times_s.shape == (5, 2)
    assert list(store.verify(summary.feature_set)) == [None, None]
    again = extract(records, store, net, ExtractOptions(clips=first, batch_size=3, dtype="float32", workers=1))
    assert (again.already, again.done) == (2, 0)


def test_a_set_without_tokens_is_called_what_it_was_called() -> None:
    spec = FeatureSpec(extractor="i3d", weights="sha256:" + "a" * 64, layer="Mixed_5c", feature_dim=1024)
    assert spec.name == "i3d-rgb-7ca0776168"
    assert "tokens" not in spec.to_dict()
    tokens = FeatureSpec.from_dict({**spec.to_dict(), "tokens": 49})
    assert (tokens.tokens, tokens.name != spec.name) == (49, True)
    assert FeatureSpec.from_dict(tokens.to_dict()) == tokens
    assert differences({"one": spec, "two": tokens}) == {"one": "one row a clip", "two": "49 tokens a clip"}
    for wrong in (-1, 2.0, True, "49"):
        with pytest.raises(ValueError, match="tokens must be"):
            FeatureSpec.from_dict({**spec.to_dict(), "tokens": wrong})


def test_rows_that_are_no_whole_clips_are_refused(tmp_path: Path) -> None:
    store, name = feature_store(tmp_path / "store.zarr", drawn(), tokens=M)
    one = np.zeros(1, np.int64)
    source = VideoSource(clip_starts=one, clip_ends=one + 1, num_frames=1, fps=25.0)
    with pytest.raises(FeatureMismatchError, match="D=3 and 8 rows a clip"):
        store.write(name, "v9", np.zeros((M + 1, D), np.float32), source)
    with pytest.raises(StoreError, match="1 clips are described, not 2"):
        store.write(name, "v9", np.zeros((2 * M, D), np.float32), source)
    assert "v9" not in store.video_ids(name)


def test_tokens_of_i3d_are_the_positions_whose_mean_is_its_feature() -> None:
    """At Mixed_5c for two steps of time, which the paper's window covers as a whole."""
    generator = torch.Generator().manual_seed(0)
    for layer, frames, size, tokens in (("Mixed_4f", 9, 48, 3 * 9), ("Mixed_5c", 9, 224, 2 * 49)):
        clips = torch.randn(1, 3, frames, size, size, generator=generator)
        pooled = I3D(layer).eval()
        whole = I3D(layer, tokens=True).eval()
        whole.load_state_dict(pooled.state_dict())
        with torch.inference_mode():
            found = whole(clips)
            assert found.shape[1] == tokens
            torch.testing.assert_close(found.mean(dim=1), pooled(clips))


def test_tokens_of_vgg16_are_the_positions_of_pool5() -> None:
    with torch.device("meta"):
        net, tokens = VGG16("pool5"), VGG16("pool5", tokens=True)
    small = net.features[:5]  # any convolutions do: the rest is reshaping
    small.to_empty(device="cpu")
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net.features = tokens.features = small
    frames = torch.randn(2, 3, 1, 8, 8)
    with torch.inference_mode():
        flat, found = net(frames), tokens(frames)
    assert found.shape == (2, 16, 64)
    assert torch.equal(found.transpose(1, 2).reshape(2, -1), flat)


@pytest.mark.parametrize("clip_len", [9, 17, 64])
def test_nets_say_how_many_tokens_they_give(clip_len: int) -> None:
    from har_pipeline.models.extractors import find_net

    tokens = find_net("i3d").tokens
    assert tokens is not None
    for layer, dim in tokens.layers.items():
        with torch.device("meta"):
            found = tokens.build(layer, "rgb").eval()(torch.empty(1, 3, clip_len, 224, 224))
        assert found.shape == (1, tokens.count(layer, clip_len), dim)


def test_what_has_no_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match=r"c3d has no tokens, .*: leave --tokens out"):
        build_extractor("c3d", weights="random", tokens=True)
    with pytest.raises(UsageError, match=r"vgg16 has no tokens at fc6: .* give --layer pool5"):
        build_extractor("vgg16", layer="fc6", weights="random", tokens=True)
    ten = ExtractOptions(resize="stretch-40x40-ten32")
    with pytest.raises(UsageError, match="several crops have no mean: leave --crops out"):
        feature_spec(pixel_extractor(tokens=True), ten)
