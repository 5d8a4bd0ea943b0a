from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from har_pipeline.evaluation import plots
from har_pipeline.evaluation.plots import (
    BEST,
    RIGHT,
    WRONG,
    Example,
    draw_topk,
    length_counts,
    save_class_gains,
    save_confusion_difference,
    save_confusion_matrix,
    save_depth_crop,
    save_length_histogram,
    save_lengths,
    save_sweep_curves,
    save_topk_bars,
    save_training_curves,
)

pytestmark = pytest.mark.usefixtures("pictures_drawn")


def picture(path: Path) -> np.ndarray:
    """Return the saved picture; anything but a PNG with some drawing on it fails here."""
    assert path.read_bytes().startswith(b"\x89PNG")
    image = cv2.imread(str(path))
    assert image.std() > 5
    return image


@pytest.mark.parametrize("count", [2, 6, 20, 21, 51, 101])
def test_confusion_matrix(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 3, (count, count)) + 10 * np.eye(count, dtype=np.int64)
    matrix[0] = 0
    save_confusion_matrix(tmp_path / "a/confusion.png", matrix, [f"WritingOnBoard{i}" for i in range(count)])
    height, width, _ = picture(tmp_path / "a/confusion.png").shape
    assert 400 < height < 2600
    assert width > height


def test_confusion_cells_are_darker_where_more_videos_fall(tmp_path: Path) -> None:
    save_confusion_matrix(tmp_path / "diagonal.png", np.eye(30, dtype=np.int64), [str(i) for i in range(30)])
    save_confusion_matrix(tmp_path / "even.png", np.ones((30, 30), np.int64), [str(i) for i in range(30)])
    diagonal, even = picture(tmp_path / "diagonal.png"), picture(tmp_path / "even.png")
    assert (diagonal[:, :1000] < 60).all(axis=2).mean() < 0.2
    assert not np.array_equal(diagonal, even)


@pytest.mark.parametrize("count", [3, *(pytest.param(count, marks=pytest.mark.exhaustive) for count in (51, 101))])
def test_groups_and_differences_of_confusion_matrices(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    classes = [f"WritingOnBoard{i}" for i in range(count)]
    spans = [("playing musical instruments", 0, 2), ("sports", 2, count)]
    save_confusion_matrix(tmp_path / "plain.png", np.eye(count, dtype=np.int64), classes)
    save_confusion_matrix(tmp_path / "groups.png", np.eye(count, dtype=np.int64), classes, spans)
    difference = rng.uniform(-0.5, 0.5, (count, count))
    save_confusion_difference(tmp_path / "difference.png", difference, classes, spans)
    save_class_gains(tmp_path / "gains.png", classes, np.diag(difference).tolist())
    assert picture(tmp_path / "groups.png").shape[1] > picture(tmp_path / "plain.png").shape[1]
    assert picture(tmp_path / "gains.png").shape[0] > 19 * count
    picture(tmp_path / "difference.png")


def test_a_gain_is_blue_and_a_loss_is_red(tmp_path: Path) -> None:
    def colour(value: float) -> np.ndarray:
        save_confusion_difference(tmp_path / "d.png", np.array([[value, 0.0], [0.0, 1.0]]), ["a", "b"])
        image = picture(tmp_path / "d.png")
        # The cell of class a, off its text.
        return image[image.shape[0] // 8, image.shape[1] // 4].astype(int)

    blue, red = colour(1.0), colour(-1.0)
    assert blue[0] > blue[2] + 40
    assert red[2] > red[0] + 40
    save_confusion_difference(tmp_path / "none.png", np.zeros((2, 2)), ["a", "b"])
    picture(tmp_path / "none.png")


def test_topk_bars_show_class_and_percentage() -> None:
    axes = Figure().add_subplot()
    draw_topk(axes, [("boxing", 0.94), ("clapping", 0.05), ("waving", 0.004)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["boxing", "clapping", "waving"]
    assert [text.get_text() for text in axes.texts] == ["94%", "5%", "<1%"]
    assert [bar.get_width() for bar in axes.patches] == [0.94, 0.05, 0.004]  # type: ignore[attr-defined]
    assert axes.yaxis_inverted()


def test_the_true_class_is_blue_right_answers_green_and_wrong_ones_red() -> None:
    """Lakhal 2018, figure 4."""
    axes = Figure().add_subplot()
    draw_topk(axes, [("boxing", 0.6), ("clapping", 0.3), ("waving", 0.1)], "clapping")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clapping", "boxing", "clapping", "waving"]
    assert [bar.get_width() for bar in axes.patches] == [1, 0.6, 0.3, 0.1]  # type: ignore[attr-defined]
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours == [BEST, WRONG, RIGHT, WRONG]
    red, green, blue = (np.argmax(to_rgb(colour)) for colour in (WRONG, RIGHT, BEST))
    assert (red, green, blue) == (0, 1, 2)


@pytest.mark.parametrize("videos", [1, 3, 5])
def test_topk_picture_takes_frames_of_any_number_and_size(tmp_path: Path, videos: int) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(videos):
        frames = rng.integers(0, 255, (1 + number, 60 + 40 * number, 160, 3), dtype=np.uint8)
        truth = ("boxing", "running", None)[number % 3]
        rows.append(Example(frames, [("boxing", 0.9), ("running", 0.1)], f"video {number}", truth))
    save_topk_bars(tmp_path / "top.png", rows)
    picture(tmp_path / "top.png")


def test_sweep_curves(tmp_path: Path) -> None:
    one = [("", [(40, 0.7, None), (80, 0.8, None)])]
    save_sweep_curves(tmp_path / "one.png", one, x_label="recurrent units")
    bars = [("", [(40, 0.7, 0.1), (80, 0.8, None)])]
    save_sweep_curves(tmp_path / "bars.png", bars, x_label="recurrent units", title="KTH")
    assert not np.array_equal(picture(tmp_path / "one.png"), picture(tmp_path / "bars.png"))
    names = [(name, [(value, 0.5, 0.1) for value in ("rgb", None, True)]) for name in "ab"]
    save_sweep_curves(tmp_path / "names.png", names, x_label="feature set")
    assert picture(tmp_path / "names.png").shape[1] > picture(tmp_path / "one.png").shape[1]
    save_sweep_curves(tmp_path / "zero.png", [("", [(0.0, 0.5, None)])], x_label="dropout")


@pytest.mark.parametrize(
    ("points", "ends"),
    [
        ([(40, 1.0, 0.0), (80, 1.0, 0.0)], (0.9, 1.005)),
        ([(40, 0.95, 0.2), (80, 0.9, None)], (0.7, 1.01)),
        ([(40, 0.05, 0.1), (80, 0.5, None)], (-0.03, 0.6)),
    ],
)
def test_the_axis_of_a_sweep_ends_at_0_and_100_percent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    points: list[tuple[int, float, float | None]],
    ends: tuple[float, float],
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("har_pipeline.evaluation.plots._save", lambda figure, path: drawn.append(figure))
    save_sweep_curves(tmp_path / "x.png", [("", points)], x_label="x")
    low, high = drawn[-1].axes[0].get_ylim()
    assert ends[0] <= low < min(mean for _, mean, _ in points)
    assert max(mean for _, mean, _ in points) < high <= ends[1]


def test_values_far_apart_stand_at_equal_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def places(*values: float) -> list[float]:
        save_sweep_curves(tmp_path / "x.png", [("", [(value, 0.5, None) for value in values])], x_label="x")
        return [float(tick) for tick in drawn[-1].axes[0].get_xticks()]

    drawn: list[Figure] = []
    monkeypatch.setattr("har_pipeline.evaluation.plots._save", lambda figure, path: drawn.append(figure))
    assert places(0, 0.2, 0.5) == [0, 0.2, 0.5]
    assert places(40, 80, 400) == [40, 80, 400]
    assert places(1e-4, 1e-3, 1e-2) == [0, 1, 2]


def test_training_curves(tmp_path: Path) -> None:
    save_training_curves(
        tmp_path / "training.png",
        {
            "epoch": [1, 2],
            "train_loss": [1.0, 0.5],
            "train_accuracy": [0.5, 0.9],
            "val_loss": [None, None],
            "val_accuracy": [None, None],
        },
    )
    picture(tmp_path / "training.png")


@pytest.mark.parametrize(
    "odd",
    ["$x^2$", "$x^{2$ and \\frac$", "a$b", "_hidden", "<b>[red]", "\x1b[31m\n\x00\udcff", "开门 \u202e", "long " * 999],
)
def test_texts_of_users_are_drawn_as_texts(tmp_path: Path, odd: str) -> None:
    """matplotlib takes $...$ for mathematics, dies of what is none, and draws pictures as wide as their texts."""
    classes, matrix = [odd, f"{odd}2"], np.eye(2, dtype=np.int64)
    save_confusion_matrix(tmp_path / "confusion.png", matrix, classes, [(odd, 0, 2)])
    save_confusion_difference(tmp_path / "difference.png", matrix / 2, classes, label=odd)
    save_class_gains(tmp_path / "gains.png", classes, [0.1, -0.1], label=odd)
    save_sweep_curves(tmp_path / "sweep.png", [(odd, [(odd, 0.5, None)])] * 2, x_label=odd, y_label=odd, title=odd)
    save_topk_bars(tmp_path / "top.png", [Example(np.zeros((1, 8, 8, 3), np.uint8), [(odd, 0.9)], odd, odd)])
    save_length_histogram(tmp_path / "lengths.png", {odd: [3]}, (1, 2, 4))
    for path in tmp_path.iterdir():
        height, width, _ = picture(path).shape
        assert max(height, width) < 3000, path


def test_mathematics_is_drawn_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("har_pipeline.evaluation.plots._save", lambda figure, path: drawn.append(figure))
    save_class_gains(tmp_path / "x.png", ["$x^2$", "a$b"], [0.2, 0.1])
    for label in drawn[0].axes[0].get_yticklabels():
        shown, is_mathematics = label._preprocess_math(label.get_text())
        assert (shown in ("$x^2$", "a$b"), is_mathematics) == (True, False)


def test_plots_leave_no_global_figure(tmp_path: Path) -> None:
    save_sweep_curves(tmp_path / "one.png", [("", [(40, 0.7, None)])], x_label="recurrent units")
    assert matplotlib._pylab_helpers.Gcf.get_all_fig_managers() == []


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return a list that gets each figure that is saved."""
    figures: list[Figure] = []
    monkeypatch.setattr("har_pipeline.evaluation.plots._save", lambda figure, path: figures.append(figure))
    return figures


def test_a_frame_stands_beside_its_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, crop = np.zeros((40, 60), np.uint16), np.zeros((64, 64), np.uint8)
    frame[10:20, 30:36], crop[8:20] = 2000, 200
    save_depth_crop(tmp_path / "crop.png", frame, (10, 20, 30, 36), crop)
    height, width, _ = picture(tmp_path / "crop.png").shape
    assert width > 2 * height
    figures = drawn(monkeypatch)
    save_depth_crop(tmp_path / "crop.png", frame, (10, 20, 30, 36), crop)
    whole, seen, bar = figures[0].axes
    assert (whole.get_title(), seen.get_title()) == ("frame, 60x40 px", "crop, 64x64 px")
    assert bar.get_ylabel() == "depth / mm"
    (box,) = whole.patches
    assert isinstance(box, Rectangle)
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((29.5, 9.5), 6, 10)
    shown = whole.images[0].get_array()
    assert (np.ma.count(shown), shown.max()) == (60, 2000)  # the background is no depth
    assert np.array_equal(seen.images[0].get_array(), crop)


def test_every_length_is_in_a_bar_of_eight_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [26, 31, 32, 300, 47, 47, 48]
    save_lengths(tmp_path / "lengths.png", lengths, (24, 32, 300))
    assert picture(tmp_path / "lengths.png").shape[1] > 600
    figures = drawn(monkeypatch)
    for values in (lengths, [24], [31, 31]):
        save_lengths(tmp_path / "lengths.png", values, (24, 32, 300))
    bars = [
        {int(bar.get_x()): int(bar.get_height()) for bar in figure.axes[0].patches if isinstance(bar, Rectangle)}
        for figure in figures
    ]
    kept = [{left: height for left, height in one.items() if height} for one in bars]
    assert kept == [{24: 2, 32: 1, 40: 2, 48: 1, 296: 1}, {24: 1}, {24: 2}]
    assert sorted(line.get_xdata()[0] for line in figures[0].axes[0].lines) == [24, 32, 300]


def test_lengths_fall_into_the_published_bins(tmp_path: Path) -> None:
    edges = (24, 32, 40, 48, 64, 80, 96, 112, 136, 160, 208, 300)
    lengths = {"walking": [24, 31, 32, 46, 207], "boxing": [208, 300, 46, 46], "none": []}
    names, counts = length_counts(lengths, edges)
    assert len(names) == 11
    assert (names[0], names[2], names[-1]) == ("24 to 31", "40 to 47", "208 to 300")
    assert counts.tolist() == [[2, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2], [0] * 11]
    names, counts = length_counts({"a": [23, 301, 500, 1]}, edges)
    assert (names[0], names[-1], counts[0, 0], counts[0, -1], counts.sum()) == ("< 24", "> 300", 2, 2, 4)
    save_length_histogram(tmp_path / "lengths.png", lengths, edges)
    assert picture(tmp_path / "lengths.png").shape[1] > 600


def test_a_feature_sequence_of_any_length_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for count, dim in ((1, 1), (3, 8), (5000, 4)):
        times = np.stack([np.arange(count), np.arange(count) + 1], axis=1) / 25
        path = tmp_path / f"{count}.png"
        plots.save_feature_sequence(
            path, rng.normal(size=(count, dim)).astype(np.float16), times, title="v", length_s=3
        )
        assert path.read_bytes().startswith(b"\x89PNG")
    # A file without a frame rate has no times; features may be all zeros.
    plots.save_feature_sequence(tmp_path / "z.png", np.zeros((3, 8)), np.full((3, 2), np.nan), title=r"a$_\x1b")


@pytest.mark.parametrize(("classes", "named"), [(1, 1), (20, 20), (101, 20)])
def test_a_projection_tells_twenty_classes_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, named: int
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    labels = [f"_class {k:03}" for k in range(classes) for _ in range(3)] + ["_class 000"]
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    plots.save_projection(tmp_path / "p.png", points, labels, axes_names=("x", "y"), title="t")
    axes = drawn[0].axes[0]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0] == " _class 000 (4)"
    assert len(texts) == named + (classes > named)
    if classes > named:
        assert texts[-1] == "81 other classes (243)"
    assert sum(len(one.get_offsets()) for one in axes.collections) == len(labels)
    looks = {(tuple(one.get_facecolor()[0]), len(one.get_paths()[0])) for one in axes.collections}
    assert len(looks) == len(texts)
