from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from depth_files import HEIGHT, WIDTH, moving_body, write_ffv1, write_folder, write_mat
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat
from video_files import damage_packets, make_video

from har_pipeline.core.errors import VideoError
from har_pipeline.core.records import Aspect
from har_pipeline.video.depth import (
    Box,
    CausalDepth,
    DepthRange,
    crop_and_scale,
    depth_range,
    depth_to_brightness,
    movement_box,
    prepare_depth,
    read_depth,
)


def test_a_folder_of_pngs_is_read_as_written(tmp_path: Path) -> None:
    frames = moving_body()
    video = read_depth(write_folder(tmp_path / "f", frames))
    assert video.frames.dtype == np.uint16
    assert np.array_equal(video.frames, frames)
    assert video.numbers.tolist() == list(range(12))
    assert (video.fps, video.notes) == (30.0, ())
    part = read_depth(tmp_path / "f", start=3, stop=7, fps=25.0)
    assert np.array_equal(part.frames, frames[3:7])
    assert part.numbers.tolist() == [3, 4, 5, 6]
    assert part.fps == 25.0


def test_numbering_may_begin_at_0_and_other_files_are_no_frames(tmp_path: Path) -> None:
    frames = moving_body()
    folder = write_folder(tmp_path / "f", frames, first=0)
    (folder / "readme.txt").write_text("x")
    video = read_depth(folder)
    assert np.array_equal(video.frames, frames)
    assert video.numbers.tolist() == list(range(12))


def test_a_mat_array_and_a_video_file_are_read_as_written(tmp_path: Path) -> None:
    frames = moving_body()
    mat = read_depth(write_mat(tmp_path / "a.mat", frames))
    assert np.array_equal(mat.frames, frames)
    assert mat.frames.flags["C_CONTIGUOUS"]
    savemat(tmp_path / "b.mat", {"d_depth": np.moveaxis(frames, 0, 2)})  # of class uint16
    assert np.array_equal(read_depth(tmp_path / "b.mat").frames, frames)
    file = read_depth(write_ffv1(tmp_path / "a.mkv", frames, fps=20))
    assert np.array_equal(file.frames, frames)
    assert (file.fps, file.notes) == (20.0, ())
    for path in (tmp_path / "a.mat", tmp_path / "a.mkv"):
        part = read_depth(path, start=2, stop=5)
        assert np.array_equal(part.frames, frames[2:5])
        assert part.numbers.tolist() == [2, 3, 4]


def png_with_broken_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def test_missing_and_damaged_pngs_are_left_out_with_a_note(tmp_path: Path) -> None:
    frames = moving_body()
    folder = write_folder(tmp_path / "f", frames)
    (folder / "MDepth-00000001.png").unlink()
    (folder / "MDepth-00000005.png").unlink()
    png_with_broken_checksum(folder / "MDepth-00000007.png")
    cut = folder / "MDepth-00000009.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (folder / "MDepth-00000010.png").write_bytes(b"")
    video = read_depth(folder)
    kept = [1, 2, 3, 5, 7, 10, 11]
    assert video.numbers.tolist() == kept
    assert np.array_equal(video.frames, frames[kept])
    assert video.notes == (
        "2 PNGs are missing in the numbering, the first MDepth-00000001.png",
        "3 PNGs cannot be decoded, the first MDepth-00000007.png is damaged (checksum)",
    )


def test_one_damaged_png_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", moving_body())
    cut = folder / "MDepth-00000009.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    assert read_depth(folder).notes == ("a PNG cannot be decoded: MDepth-00000009.png is cut off",)
    cut.write_text("hello")
    assert read_depth(folder).notes == ("a PNG cannot be decoded: MDepth-00000009.png is not a PNG file",)
    cut.unlink()
    assert read_depth(folder).notes == ("a PNG is missing in the numbering: MDepth-00000009.png",)


def test_fewer_than_half_of_the_pngs_are_a_failure(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", moving_body())
    for number in range(1, 7):
        (folder / f"MDepth-{number:08d}.png").unlink()
    assert len(read_depth(folder).frames) == 6
    png_with_broken_checksum(folder / "MDepth-00000012.png")
    with pytest.raises(VideoError, match=r"f: only 5 of 12 frames can be read: 6 PNGs are missing .*MDepth-00000012"):
        read_depth(folder)


def test_a_png_whose_pixels_do_not_decompress_is_damaged(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", moving_body())
    png = folder / "MDepth-00000003.png"
    data = png.read_bytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    png.write_bytes(data[:33] + chunk(b"IDAT", b"no zlib stream") + chunk(b"IEND", b""))
    assert read_depth(folder).notes == ("a PNG cannot be decoded: MDepth-00000003.png cannot be decoded",)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), "8 bits, gray"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "8 bits, RGB"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint16), "16 bits, RGB"),
    ],
)
def test_pngs_of_another_depth_are_refused_by_name(tmp_path: Path, image: np.ndarray, kind: str) -> None:
    folder = write_folder(tmp_path / "f", moving_body())
    cv2.imwrite(str(folder / "MDepth-00000004.png"), image)
    with pytest.raises(VideoError, match=rf"MDepth-00000004\.png: is a PNG of {kind}; depth is 16 bits, gray"):
        read_depth(folder)


def test_frames_of_another_size_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", moving_body())
    write_folder(folder, np.zeros((1, 20, 30), np.uint16), first=6)
    (folder / "MDepth-00000001.png").unlink()
    sizes = "frames differ in size (height, width): MDepth-00000002.png has (48, 64), MDepth-00000006.png (20, 30)"
    with pytest.raises(VideoError, match=f"^{re.escape(f'{folder}: {sizes}')}$"):
        read_depth(folder)


def test_folders_and_files_with_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="empty: the folder holds no depth frames"):
        read_depth(tmp_path / "empty")
    with pytest.raises(VideoError, match=r"gone\.mkv: does not exist"):
        read_depth(tmp_path / "gone.mkv")
    (tmp_path / "zero.mkv").touch()
    with pytest.raises(VideoError, match=r"zero\.mkv: the file is empty"):
        read_depth(tmp_path / "zero.mkv")
    (tmp_path / "zero.mat").touch()
    with pytest.raises(VideoError, match=r"zero\.mat: the file is empty"):
        read_depth(tmp_path / "zero.mat")
    write_folder(tmp_path / "f", moving_body())
    with pytest.raises(VideoError, match=r"f: the row starts at frame 12, the folder ends before it, at 11"):
        read_depth(tmp_path / "f", start=12)
    write_mat(tmp_path / "a.mat", moving_body())
    with pytest.raises(VideoError, match=r"a\.mat: has no frame in \[12, end\)"):
        read_depth(tmp_path / "a.mat", start=12)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"depth": np.zeros((4, 4, 2), np.uint16)}, "has no array d_depth"),
        ({"d_depth": np.zeros((4, 4, 2))}, r"d_depth is float64 \(4, 4, 2\), not uint16"),
        ({"d_depth": np.zeros((4, 4, 2), np.uint8)}, r"d_depth is uint8 \(4, 4, 2\), not uint16"),
        ({"d_depth": np.zeros((4, 4), np.uint16)}, r"d_depth is uint16 \(4, 4\), not uint16 \(height, width, frames\)"),
        ({"d_depth": np.zeros((4, 4, 0), np.uint16)}, "not uint16|holds no frame"),
    ],
)
def test_mat_files_that_hold_no_depth(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    savemat(tmp_path / "a.mat", arrays)
    with pytest.raises(VideoError, match=rf"a\.mat: {message}"):
        read_depth(tmp_path / "a.mat")


def test_mat_files_that_are_damaged(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat", moving_body())
    data = path.read_bytes()
    for kept in (10, 100, 130, 150, len(data) // 2, len(data) - 5):
        path.write_bytes(data[:kept])
        with pytest.raises(VideoError, match=r"a\.mat: "):
            read_depth(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(512))
    with pytest.raises(VideoError, match=r"a\.mat: "):
        read_depth(path)


def test_videos_of_another_depth_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"a\.mkv: the frames are gray; depth must be 16-bit gray"):
        read_depth(write_ffv1(tmp_path / "a.mkv", moving_body(), "gray"))
    with pytest.raises(VideoError, match=r"b\.avi: the frames are yuv420p"):
        read_depth(make_video(tmp_path / "b.avi"))
    (tmp_path / "c.mkv").write_text("no video")
    with pytest.raises(VideoError, match=r"c\.mkv: is not a readable video"):
        read_depth(tmp_path / "c.mkv")


def test_a_damaged_frame_of_a_video_gets_a_note(tmp_path: Path) -> None:
    frames = moving_body()
    source = write_ffv1(tmp_path / "a.avi", frames, key_interval=1)
    assert np.array_equal(read_depth(source).frames, frames)
    video = read_depth(damage_packets(source, tmp_path / "b.avi", [5]))
    assert np.array_equal(video.frames, np.delete(frames, 5, axis=0))
    assert "1 packet could not be decoded, the first near frame 5" in video.notes[0]


def test_pixels_that_fail_the_checksum_of_their_frame_get_a_note(tmp_path: Path) -> None:
    frames = moving_body(seed=5)
    source = write_ffv1(tmp_path / "a.mkv", frames, key_interval=1)
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "b.mkv").write_bytes(bytes(data))
    video = read_depth(tmp_path / "b.mkv")
    assert video.frames.shape == frames.shape
    (wrong,) = np.flatnonzero((video.frames != frames).any(axis=(1, 2)))
    (note,) = video.notes
    assert note.startswith(f"frames near which the decoder reported errors: {wrong} (slice CRC mismatch")
    assert read_depth(source).notes == ()


def test_a_video_of_which_most_is_damaged_fails(tmp_path: Path) -> None:
    source = write_ffv1(tmp_path / "a.avi", moving_body(), key_interval=1)
    with pytest.raises(VideoError, match=r"b\.avi: 12 frames are announced, 4 could be decoded"):
        read_depth(damage_packets(source, tmp_path / "b.avi", list(range(2, 10))))


def test_the_box_holds_the_movement_of_all_frames() -> None:
    frames = moving_body()
    assert movement_box(frames) == Box(14, 34, 10, 10 + 2 * 11 + 8)
    assert movement_box(frames[3:5]) == Box(14, 34, 16, 26)
    assert movement_box(np.zeros((3, 8, 8), np.uint16)) is None


def test_specks_do_not_widen_the_box_and_limbs_and_other_people_do() -> None:
    frames = moving_body()
    box = movement_box(frames)
    frames[5, 2, 60] = 2500
    assert movement_box(frames) == box
    frames[6, 33, 30:63] = 2500  # a limb that is joined to the body
    assert movement_box(frames) == Box(14, 34, 10, 63)
    frames[7, 40:45, 2:6] = 2500  # someone else, 20 of 180 px
    assert movement_box(frames) == Box(14, 45, 2, 63)


def test_stretch_and_keep_by_hand() -> None:
    frames = np.zeros((1, 6, 9), np.uint16)
    frames[0, 1:3, 2:6] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    box = Box(1, 3, 2, 6)
    stretched = crop_and_scale(frames, box, 4, "stretch")[0]
    assert stretched.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8], [5, 6, 7, 8]]
    kept = crop_and_scale(frames, box, 4, "keep")[0]
    assert kept.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]]
    assert crop_and_scale(frames, box, 2, "stretch")[0].tolist() == [[2, 4], [6, 8]]
    assert crop_and_scale(frames.swapaxes(1, 2), Box(2, 6, 1, 3), 4, "keep")[0].tolist() == kept.T.tolist()


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.sampled_from(get_args(Aspect)))
def test_scaling_invents_no_value_and_keep_has_one_factor(height: int, width: int, size: int, aspect: Aspect) -> None:
    frames = np.arange(1, 2 * 32 * 32 + 1, dtype=np.uint16).reshape(2, 32, 32)
    box = Box(1, 1 + height, 2, 2 + width)
    scaled = crop_and_scale(frames, box, size, aspect)
    assert scaled.shape == (2, size, size)
    inside = frames[:, box.top : box.bottom, box.left : box.right]
    for frame, source in zip(scaled, inside, strict=True):
        assert set(np.unique(frame)) <= {0, *np.unique(source)}
    seen = scaled[0] > 0
    if aspect == "stretch":
        assert seen.all()
    elif seen.any():
        factor = size / max(height, width)
        assert abs(seen.any(axis=1).sum() - height * factor) <= 1
        assert abs(seen.any(axis=0).sum() - width * factor) <= 1


def test_the_range_is_that_of_numpys_percentiles() -> None:
    values = np.random.default_rng(0).integers(1, 5000, 3000)
    limits = depth_range(np.bincount(np.r_[np.zeros(500, int), values], minlength=2**16))
    low, high = np.percentile(values, [1, 99], method="inverted_cdf")
    assert limits == DepthRange(int(low), int(high))
    assert depth_range(np.bincount([0, 0, 0], minlength=2**16)) is None


def test_brightness_by_hand() -> None:
    depth = np.array([0, 1, 1000, 1500, 2000, 60000], np.uint16)
    assert depth_to_brightness(depth, DepthRange(1000, 2000)).tolist() == [0, 255, 255, 153, 51, 51]
    assert depth_to_brightness(depth[2:3], DepthRange(1000, 1000)).tolist() == [255]


def test_a_prepared_video() -> None:
    frames = moving_body()
    prepared = prepare_depth(frames, 20)
    assert prepared.shape == (12, 20, 20)
    assert prepared.dtype == np.uint8
    cropped = crop_and_scale(frames, Box(14, 34, 10, 40), 20, "stretch")
    assert np.array_equal(prepared == 0, cropped == 0)
    assert set(np.unique(prepared[prepared > 0])) <= set(range(51, 256))
    near, far = np.percentile(frames[frames > 0], [1, 99], method="inverted_cdf").astype(int)
    assert np.array_equal(prepared, depth_to_brightness(cropped, DepthRange(near, far)))
    with pytest.raises(VideoError, match="no frame has any foreground"):
        prepare_depth(np.zeros((3, 8, 8), np.uint16))


@pytest.mark.parametrize("choice", ["stretch", "keep"])
def test_causal_frames_do_not_depend_on_grouping_and_end_as_the_whole_video(choice: Aspect) -> None:
    frames = np.concatenate([np.zeros((2, HEIGHT, WIDTH), np.uint16), moving_body(), moving_body(seed=3)])
    whole = CausalDepth(16, choice).push(frames)
    single, grouped = CausalDepth(16, choice), CausalDepth(16, choice)
    assert np.array_equal(whole, np.concatenate([single.push(frame[None]) for frame in frames]))
    assert np.array_equal(whole, np.concatenate([grouped.push(part) for part in np.array_split(frames, [1, 4, 4, 11])]))
    assert not whole[:2].any()
    for end in (3, 9, len(frames)):
        assert np.array_equal(whole[end - 1], prepare_depth(frames[:end], 16, choice)[-1])


def test_causal_frames_never_see_the_future() -> None:
    frames = moving_body()
    changed = frames.copy()
    changed[7:] = np.random.default_rng(1).integers(500, 6000, changed[7:].shape)
    before, after = CausalDepth(16).push(frames), CausalDepth(16).push(changed)
    assert np.array_equal(before[:7], after[:7])
    assert not np.array_equal(before[7:], after[7:])


def test_causal_state_is_the_last_frames_only() -> None:
    frames = np.concatenate([moving_body(seed=seed) for seed in range(4)])
    causal = CausalDepth(16, memory=5)
    out = causal.push(frames)
    for end in (5, 6, 20, len(frames)):
        assert np.array_equal(out[end - 1], prepare_depth(frames[max(0, end - 5) : end], 16)[-1])
    assert len(causal._seen) == 5
    assert causal._histogram.sum() == 5 * 20 * 8
    causal.reset()
    assert np.array_equal(causal.push(frames[:4]), CausalDepth(16).push(frames[:4]))
    with pytest.raises(ValueError, match="at least 1"):
        CausalDepth(memory=0)


@pytest.mark.needs_real_data
def test_real_kinect_depth(real_data: Path) -> None:
    video = read_depth(real_data / "depth/utd_mhad/a12_s2_t1_depth.mat")
    assert video.frames.shape[1:] == (240, 320)
    # Specks at the edge of the body reach up to row 28, the head to row 75.
    assert np.flatnonzero((video.frames > 0).any(axis=(0, 2)))[0] == 28
    assert movement_box(video.frames) == Box(75, 228, 124, 194)
    prepared = prepare_depth(video.frames)
    assert prepared.shape == (len(video.frames), 64, 64)
    assert 0.2 < (prepared > 0).mean() < 0.8
    body = prepared[prepared > 0]
    assert body.min() == 51
    assert body.max() == 255
    live = CausalDepth().push(video.frames)
    assert np.array_equal(live[-1], prepared[-1])
