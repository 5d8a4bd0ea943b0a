"""Pictures of results. Figures are built as objects, never through pyplot's global state.

matplotlib is imported where a figure is made, so that reading results does not wait for it.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from har_pipeline.core.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

CELL_TEXT_CLASSES = 20
DPI = 120
BEST, OTHER, FAINT, LOSS, INK = "#1f5fa8", "#a9c4e4", "#e4e8ee", "#c8501e", "#222222"
RIGHT, WRONG = "#2e8b57", "#c0392b"
LONGEST_TEXT = 90
MARKERS = "osD^vPX*<>"
GREY = "#d9d9d9"
# Steps of a sequence that a picture of usual size can show; classes that a reader can tell apart.
LONGEST_SEQUENCE, CLASSES_TOLD_APART = 400, 20
# Of the classes of a timeline, in the order in which they come; more classes begin again.
SEGMENT_COLOURS = (
    "#1f5fa8",
    "#e08214",
    "#2e8b57",
    "#c0392b",
    "#7b5ea7",
    "#8c6d4f",
    "#d76aa3",
    "#7f7f7f",
    "#b5a52a",
    "#28a5b8",
)

# A name and its points: (value on the axis, mean, deviation or None).
Line = tuple[str, Sequence[tuple[int | float | str | bool | None, float, float | None]]]


class Example(NamedTuple):
    """A video of `save_topk_bars`."""

    frames: np.ndarray  # (n, H, W, 3) uint8
    best: Sequence[tuple[str, float]]  # (class, probability), best first
    title: str
    truth: str | None = None  # its true class, if that is to be shown


class TimelineRow(NamedTuple):
    """A video of `save_timelines`."""

    title: str
    edges_s: np.ndarray  # (M + 1,) where its stretches begin and end
    probabilities: np.ndarray  # (M, K); NaN where nothing is known
    segments: Sequence[tuple[float, float, str]]  # (start in s, end, class)


def _figure(width: float, height: float) -> Figure:
    # It warns where its cache folder cannot be written, and then does without.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Characters that matplotlib's font lacks are drawn as boxes, each with a warning.
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        # Texts that are longer than the axes are wide: they are drawn all the same, the picture grows.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        # Tight, because the constrained layout alone cuts labels beside axes of a fixed aspect.
        figure.savefig(path, bbox_inches="tight")


def _plain(text: str) -> str:
    """Return a text of the user's for a picture: no mathematics, no control characters, not too long to be drawn."""
    text = printable(text)
    if len(text) > LONGEST_TEXT:
        text = f"{text[: 2 * LONGEST_TEXT // 3]}…{text[-(LONGEST_TEXT // 3) :]}"
    return text.replace("$", r"\$")


def _percent(axis: Axis, decimals: int | None = None) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def save_confusion_matrix(
    path: Path, matrix: np.ndarray, classes: Sequence[str], spans: Sequence[tuple[str, int, int]] = ()
) -> None:
    """Save (K, K) counts as an image: rows true classes, columns predicted, shade = share of the true class's videos.

    Cells show their count with up to 20 classes. spans: (group, first class, end) of adjacent classes, separated by lines
    and named on the right. Source: Lakhal 2018, figure 5, for the groups.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    texts = {(true, said): str(int(matrix[true, said])) for true, said in np.argwhere(matrix > 0).tolist()}
    _save_matrix(path, shares, texts, classes, spans, "share of the true class's videos", "Blues", (0, 1), 0.55)


def save_confusion_difference(
    path: Path,
    difference: np.ndarray,
    classes: Sequence[str],
    spans: Sequence[tuple[str, int, int]] = (),
    *,
    label: str = "change of the share",
) -> None:
    """Save a (K, K) difference of two confusion matrices' shares, in [-1, 1], blue = more, red = less.

    On the diagonal blue is a gain, elsewhere red is. spans: as in `save_confusion_matrix`. The colour scale ends at the
    largest change. Source: Lakhal 2018, figure 6b.
    """
    limit = max(float(np.abs(difference).max()), 0.01)
    changed = np.argwhere(np.abs(difference) >= 0.005).tolist()
    texts = {(true, said): f"{100 * difference[true, said]:+.0f}" for true, said in changed}
    _save_matrix(path, difference, texts, classes, spans, label, "RdBu", (-limit, limit), 0.6 * limit)


def save_class_gains(
    path: Path, classes: Sequence[str], gains: Sequence[float], *, label: str = "change of class accuracy / points"
) -> None:
    """Save the change of each class's accuracy, in [-1, 1], as bars, largest gain on top. Source: Lakhal 2018, figure 6c."""
    order = sorted(range(len(classes)), key=lambda k: -gains[k])
    figure = _figure(7.5, 1.4 + 0.19 * len(classes))
    axes = figure.add_subplot()
    values = [100 * gains[k] for k in order]
    axes.barh(range(len(order)), values, height=0.7, color=[BEST if value >= 0 else LOSS for value in values])
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:+.1f}" if value else "0",
            (value, place),
            xytext=(3 if value >= 0 else -3, 0),
            textcoords="offset points",
            ha="left" if value >= 0 else "right",
            va="center",
            fontsize=7,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(order)), [_plain(classes[k]) for k in order], fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_xlabel(_plain(label))
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save_matrix(
    path: Path,
    values: np.ndarray,
    texts: Mapping[tuple[int, int], str],
    classes: Sequence[str],
    spans: Sequence[tuple[str, int, int]],
    label: str,
    colours: str,
    limits: tuple[float, float],
    dark: float,
) -> None:
    """Save a (K, K) matrix with the texts of its cells. label, colours, limits: of the colour bar; dark: needs white text."""
    classes = [_plain(label) for label in classes]
    count = len(classes)
    few = count <= CELL_TEXT_CLASSES
    side = float(np.clip(2.5 + 0.55 * count, 4.5, 11)) if few else 6 + 0.12 * count
    size = 9 if few else 7
    figure = _figure(side + (0.8 if not spans else 2.6), side)
    axes = figure.add_subplot()
    axes.set_xticks(range(count), classes, rotation=90 if count > 8 else 45, ha="center" if count > 8 else "right")
    if count <= 8:
        for tick in axes.get_xticklabels():
            tick.set_rotation_mode("anchor")
    axes.set_yticks(range(count), classes)
    axes.tick_params(labelsize=size, length=2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for _, first, _ in spans[1:]:
        axes.axhline(first - 0.5, color=INK, linewidth=0.8)
        axes.axvline(first - 0.5, color=INK, linewidth=0.8)
    if spans:
        right = axes.secondary_yaxis("right")
        right.set_yticks([(first + end - 1) / 2 for _, first, end in spans], [_plain(name) for name, _, _ in spans])
        right.tick_params(labelsize=9 if few else 11, length=0)
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    for (true, said), text in texts.items() if few else ():
        colour = "white" if abs(values[true, said]) > dark else INK
        axes.text(said, true, text, ha="center", va="center", color=colour, fontsize=size)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.set_label(_plain(label))
    _percent(bar.ax.yaxis)
    _save(figure, path)


def save_topk_bars(path: Path, examples: Sequence[Example]) -> None:
    """Save, side by side for each video, example frames above and its best classes as bars below; a row of four.

    Source: Orozco 2020, figure 7; with the true classes Lakhal 2018, figure 4.
    """
    columns = min(4, len(examples))
    rows = -(-len(examples) // columns)
    figure = _figure(4.2 * columns, 3.9 * rows)
    cells = figure.subfigures(rows, columns, squeeze=False).ravel()
    for cell, one in zip(cells, examples, strict=False):
        title = one.title
        cell.suptitle(_plain(title if len(title) <= 44 else f"{title[:28]}…{title[-15:]}"), fontsize=10)
        grid = cell.add_gridspec(2, 1, height_ratios=(1.15, 1))
        _draw_frames(cell.add_subplot(grid[0]), one.frames)
        draw_topk(cell.add_subplot(grid[1]), one.best, one.truth)
    _save(figure, path)


def _draw_frames(axes: Axes, frames: np.ndarray) -> None:
    chosen = frames[np.linspace(0, len(frames) - 1, min(4, len(frames))).round().astype(int)]
    columns = min(2, len(chosen))
    gap = max(2, chosen.shape[2] // 60)
    height, width = chosen.shape[1:3]
    rows = -(-len(chosen) // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, frame in enumerate(chosen):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        canvas[top : top + height, left : left + width] = frame
    axes.imshow(canvas)
    axes.set_axis_off()


def draw_topk(axes: Axes, best: Sequence[tuple[str, float]], truth: str | None = None) -> None:
    """Draw horizontal bars of (class, probability), best on top, each with its percentage.

    truth: the true class, as a blue bar of full length above them; theirs are then green where they are it, else red.
    """
    colours, first = [BEST, *[OTHER] * (len(best) - 1)], 0
    labels = [label for label, _ in best]
    if truth is not None:
        axes.barh([0], [1], height=0.62, color=[BEST])
        axes.text(0.5, 0, "true class", ha="center", va="center", fontsize=9, color="white")
        colours, first = [RIGHT if label == truth else WRONG for label in labels], 1
        labels = [truth, *labels]
    places = np.arange(first, first + len(best))
    axes.barh(places, [value for _, value in best], height=0.62, color=colours)
    axes.set_yticks(range(len(labels)), [_plain(label) for label in labels], fontsize=9)
    axes.invert_yaxis()
    # Room to the right of a bar of 100 % for its text.
    axes.set_xlim(0, 1.16)
    axes.set_xticks([0, 0.5, 1])
    _percent(axes.xaxis, 0)
    axes.tick_params(axis="x", labelsize=8)
    for place, (_, value) in zip(places.tolist(), best, strict=True):
        axes.text(value + 0.015, place, f"{value:.0%}" if value >= 0.005 else "<1%", va="center", fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)


def save_sweep_curves(
    path: Path, lines: Sequence[Line], *, x_label: str, y_label: str = "video accuracy", title: str = ""
) -> None:
    """Save accuracies in [0, 1] against a swept value, one line per entry of `lines`: (name, [(value, mean, deviation)]).

    Deviations that are not None become error bars of that length in both directions. Values that are not all numbers, or
    differ by factors above 20, are spaced evenly in the given order. No point is marked as the best: these are test
    accuracies. The axis ends at 0 and 100 %, error bars beyond are cut off. The papers call such pictures ROC curves,
    which they are not. Source: Orozco 2020, figures 4 to 6; Lakhal 2018, figure 3.
    """
    values = list(dict.fromkeys(value for _, points in lines for value, _, _ in points))
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    positive = [number for number in numbers if number > 0] or [1.0]
    to_scale = len(numbers) == len(values) and max(positive) <= 20 * min(positive)
    place = dict(zip(values, numbers if to_scale else map(float, range(len(values))), strict=True))
    figure = _figure(9.2 if len(lines) > 1 else 6.8, 4.3)
    axes = figure.add_subplot()
    # Bars of several lines would hide each other.
    apart = 0.012 * (max(place.values()) - min(place.values()))
    for number, (name, points) in enumerate(lines):
        shift = apart * (number - (len(lines) - 1) / 2)
        axes.errorbar(
            [place[value] + shift for value, _, _ in points],
            [mean for _, mean, _ in points],
            yerr=[np.nan if deviation is None else deviation for _, _, deviation in points],
            marker=MARKERS[number % len(MARKERS)],
            color=BEST if len(lines) == 1 else f"C{number % 10}",
            linestyle="-" if number < 10 else "--",
            capsize=3,
            markersize=5,
            linewidth=1.4,
            # The blank, because a legend leaves out names that begin with an underscore.
            label=" " * name.startswith("_") + _plain(name),
        )
    axes.set_xticks(list(place.values()), [_plain(str(value)) for value in values])
    if any(len(str(value)) > 8 for value in values):
        axes.tick_params(axis="x", labelrotation=25)
    axes.margins(x=0.06, y=0.12)
    low, high = axes.get_ylim()
    # A little margin, or the marker of an accuracy of 100 % would be cut in half.
    axes.set_ylim(max(low, -0.02 * (high - low)), min(high, 1 + 0.02 * (high - low)))
    axes.set_xlabel(_plain(x_label))
    has_bars = any(deviation is not None for _, points in lines for _, _, deviation in points)
    y_label = _plain(y_label)
    axes.set_ylabel(f"{y_label}, mean ± sd over runs" if has_bars else y_label)
    _percent(axes.yaxis, 1)
    axes.grid(alpha=0.3)
    axes.set_title(_plain(title), fontsize=11)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    _save(figure, path)


def save_training_curves(path: Path, history: Mapping[str, Sequence[float | None]]) -> None:
    """Save loss and video accuracy against epochs; `history` holds the columns of history.csv.

    A learning rate that changes gets a third panel. Source: Sanchez-Caballero 2020, figures 6, 7, 10 and 11.
    """
    from matplotlib.ticker import MaxNLocator

    rates = [rate for rate in history.get("learning_rate", ()) if rate is not None]
    scheduled = len(set(rates)) > 1
    figure = _figure(13 if scheduled else 9, 3.6)
    panels = figure.subplots(1, 3 if scheduled else 2)
    names = (("loss", "cross-entropy / nats"), ("accuracy", "video accuracy"))
    for axes, (name, label) in zip(panels[:2], names, strict=True):
        for part, colour, text in (("train", OTHER, "training"), ("val", BEST, "validation")):
            values = history[f"{part}_{name}"]
            if any(value is not None for value in values):
                numbers = [np.nan if value is None else value for value in values]
                axes.plot(history["epoch"], numbers, color=colour, label=text)
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    if scheduled:
        panels[2].step(history["epoch"], rates, where="mid", color=LOSS)
        panels[2].set_yscale("log")
        panels[2].set_ylabel("learning rate at the epoch's start")
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    # From 0, or a loss that hardly changes would fill the panel with noise.
    panels[0].set_ylim(0, 1.05 * panels[0].get_ylim()[1])
    _percent(panels[1].yaxis)
    _save(figure, path)


def save_lr_range(
    path: Path, rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, bounds: tuple[float, float] | None
) -> None:
    """Save the loss of a range test against the learning rate, on a log axis, with the suggested bounds.

    Source: Sanchez-Caballero 2020, figure 5.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=OTHER, linewidth=0.8, label="each batch")
    axes.plot(rates, smoothed, color=BEST, label="smoothed")
    if bounds is not None:
        axes.axvspan(
            *bounds, color=LOSS, alpha=0.12, linewidth=0, label=f"suggested: {bounds[0]:.1e} to {bounds[1]:.1e}"
        )
    axes.set_xscale("log")
    # A loss that diverges at the end would flatten the rest.
    axes.set_ylim(0, 1.6 * float(smoothed[: max(1, len(smoothed) // 2)].max()))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("cross-entropy / nats")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def save_depth_crop(path: Path, frame: np.ndarray, box: tuple[int, int, int, int], crop: np.ndarray) -> None:
    """Save a depth frame (H, W) uint16 mm, 0 = background, with the box of its crop, beside the crop (S, S) uint8.

    box: rows `[top, bottom)` and columns `[left, right)`, as top, bottom, left, right. Source: Sanchez-Caballero 2020,
    figure 3.
    """
    from matplotlib.patches import Rectangle

    figure = _figure(9.6, 3.9)
    whole, seen = figure.subplots(1, 2, width_ratios=(1.7, 1))
    image = whole.imshow(np.ma.masked_equal(frame, 0), cmap="viridis_r", interpolation="nearest")
    figure.colorbar(image, ax=whole, fraction=0.045, pad=0.02).set_label("depth / mm")
    top, bottom, left, right = box
    corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
    whole.add_patch(Rectangle(corner, *size, fill=False, edgecolor=LOSS, linewidth=1.5))
    whole.set_title(f"frame, {frame.shape[1]}x{frame.shape[0]} px", fontsize=10)
    seen.imshow(crop, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    seen.set_title(f"crop, {crop.shape[1]}x{crop.shape[0]} px", fontsize=10)
    for axes in (whole, seen):
        axes.set_xticks([])
        axes.set_yticks([])
    _save(figure, path)


def save_maps(path: Path, frames: Sequence[np.ndarray], maps: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Save columns of a frame (H, W) uint8 and, below it, its maps (M, H', W') float, each map in one scale in all columns."""
    rows = 1 + len(maps[0])
    figure = _figure(1.3 * len(frames), 1.9 * rows)
    grid = figure.subplots(rows, len(frames), squeeze=False)
    largest = np.abs(np.stack(maps)).max(axis=(0, 2, 3))
    for column, (frame, own, title) in enumerate(zip(frames, maps, titles, strict=True)):
        grid[0, column].imshow(frame, cmap="gray", vmin=0, vmax=255)
        grid[0, column].set_title(_plain(title), fontsize=9)
        for axes, values, limit in zip(grid[1:, column], own, largest, strict=True):
            axes.imshow(values, cmap="gray", vmin=-limit, vmax=limit)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    _save(figure, path)


def save_lengths(path: Path, lengths: Sequence[int], edges: Sequence[int]) -> None:
    """Save a histogram of the frames of videos, in bins of 8 frames, with a line at each of `edges`.

    Source: Sanchez-Caballero 2020, figure 8; its bins are not in the text, 8 is a window of its stateful network.
    """
    figure = _figure(8.4, 3.4)
    axes = figure.add_subplot()
    axes.hist(lengths, bins=np.arange(min(lengths) // 8 * 8, max(lengths) + 9, 8).tolist(), color=OTHER)
    for edge in edges:
        axes.axvline(edge, color=LOSS, linewidth=0.8, alpha=0.6)
    axes.set_xlabel("frames")
    axes.set_ylabel("videos")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def save_length_histogram(path: Path, lengths: Mapping[str, Sequence[int]], edges: Sequence[int]) -> None:
    """Save a histogram of video lengths: classes in rows, frames in columns, the sum over the classes above.

    lengths: class -> frames of each of its videos. A column counts the videos of `[edge, next edge)` frames, the last one
    also those of exactly the last edge; columns for shorter and longer videos exist only if there are any.
    Source: Sanchez-Caballero 2020, figure 9.
    """
    names, counts = length_counts(lengths, edges)
    classes = [_plain(label) for label in lengths]
    figure = _figure(2.4 + 0.62 * len(names), 2.6 + 0.19 * len(classes))
    above, axes = figure.subplots(2, 1, height_ratios=(1.1, 0.6 + 0.19 * len(classes)), sharex=True)
    total = counts.sum(axis=0)
    above.bar(range(len(names)), total, color=OTHER)
    for place, value in enumerate(total.tolist()):
        above.annotate(f"{value:,}", (place, value), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7)
    above.margins(y=0.2)
    above.set_ylabel("videos")
    above.spines[["top", "right"]].set_visible(False)
    image = axes.imshow(counts, cmap="Blues", aspect="auto", vmin=0)
    for row, column in np.argwhere(counts > 0).tolist():
        colour = "white" if counts[row, column] > 0.6 * counts.max() else INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=6)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set_xlabel("frames")
    figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02).set_label("videos")
    _save(figure, path)


def length_counts(lengths: Mapping[str, Sequence[int]], edges: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Return the names of the B columns of `save_length_histogram`, and the (K, B) int64 counts of each class."""
    shorter, longer = f"< {edges[0]}", f"> {edges[-1]}"
    inner = [f"{low} to {high - 1}" for low, high in itertools.pairwise(edges)]
    inner[-1] = f"{edges[-2]} to {edges[-1]}"
    bounds = [0, *edges[:-1], edges[-1] + 1]
    counts = np.array(
        [np.bincount(np.digitize(frames, bounds) - 1, minlength=len(bounds)) for frames in lengths.values()], np.int64
    )
    names = [shorter, *inner, longer]
    kept = [k for k in range(len(names)) if 0 < k < len(names) - 1 or counts[:, k].any()]
    return [names[k] for k in kept], counts[:, kept]


def save_feature_sequence(
    path: Path, features: np.ndarray, times_s: np.ndarray, *, title: str, length_s: float | None = None
) -> None:
    """Save a video's features (N, D): the values, their norm over time, and the cosine similarity of every two steps.

    times_s: (N, 2) start and end of each step, s from the start of the file; where one is not finite, steps are numbered.
    length_s: of the file.
    The colours of the values end at their 1st and 99th percentiles. Of more than 400 steps evenly spaced ones are drawn.
    """
    count, dim = features.shape
    shown = np.unique(np.linspace(0, count - 1, min(count, LONGEST_SEQUENCE)).round().astype(int))
    values = features[shown].astype(np.float32)
    norms = np.linalg.norm(values, axis=1)
    similarity = _cosine(values, norms)
    timed = bool(np.isfinite(times_s).all())
    some = "" if len(shown) == count else f" ({len(shown)} of them drawn)"
    whole = f"{length_s:.1f} s" if length_s else "the file"
    seen = f", {times_s.min():.1f} to {times_s.max():.1f} s of {whole}" if timed else ""
    figure = _figure(10.5, 5.4)
    figure.suptitle(
        f"{_plain(title)}\n{count} {'step' if count == 1 else 'steps'} x {dim} values{some}{seen}", fontsize=10
    )
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1)).ravel()
    heat, line = left.subplots(2, 1, height_ratios=(2.4, 1), sharex=True)
    edges = (-0.5, len(shown) - 0.5)
    low, high = np.percentile(values, (1, 99))
    image = heat.imshow(
        values.T, aspect="auto", cmap="viridis", vmin=low, vmax=max(high, low + 1e-12), extent=(*edges, dim, 0),
        interpolation="nearest",
    )  # fmt: skip
    heat.set_ylabel("dimension")
    heat.set_title("values", fontsize=10)
    left.colorbar(image, ax=heat, fraction=0.05, pad=0.02)
    line.plot(norms, color=BEST, marker="o" if len(shown) <= 60 else None, markersize=3, linewidth=1.2)
    line.set_ylabel("norm")
    line.set_ylim(0, 1.08 * float(norms.max()) or 1)
    line.grid(alpha=0.3)
    axes = right.add_subplot()
    alike = axes.imshow(
        similarity, cmap="magma", vmin=min(0.0, float(similarity.min())), vmax=1, interpolation="nearest"
    )
    axes.set_title("cosine similarity of the steps", fontsize=10)
    right.colorbar(alike, ax=axes, fraction=0.045, pad=0.02)
    places = np.unique(np.linspace(0, len(shown) - 1, min(6, len(shown))).round().astype(int))
    names = [f"{times_s[shown[k], 0]:.1f}" if timed else str(shown[k]) for k in places]
    what = "start of the step / s" if timed else "step"
    for one in (line, axes):
        one.set_xticks(places, names)
        one.set_xlabel(what)
    line.set_xlim(edges)
    axes.set_yticks(places, names)
    axes.set_ylabel(what)
    _save(figure, path)


def _cosine(values: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return (N, N) cosine similarities of the rows of (N, D); 0 of a row of zeros."""
    unit = np.divide(values, norms[:, None], out=np.zeros_like(values), where=norms[:, None] > 0)
    return unit @ unit.T


def save_projection(
    path: Path, points: np.ndarray, labels: Sequence[str], *, axes_names: tuple[str, str], title: str
) -> None:
    """Save (V, 2) points coloured by class, with a legend that counts each class's points.

    At most 20 classes can be told apart, by ten colours and two markers: of more, the 20 with the most points are, and the
    others are grey.
    """
    counts = Counter(labels)
    ordered = sorted(counts, key=lambda label: (-counts[label], label))
    named, others = sorted(ordered[:CLASSES_TOLD_APART]), ordered[CLASSES_TOLD_APART:]
    figure = _figure(8.6, 5.6)
    axes = figure.add_subplot()
    own = np.array(labels)
    size = 26 if len(points) <= 500 else 12
    for number, label in enumerate(named):
        chosen = points[own == label]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=size,
            color=f"C{number % 10}",
            marker="o" if number < 10 else "^",
            linewidth=0,
            alpha=0.85,
            # The blank, because a legend leaves out names that begin with an underscore.
            label=" " * label.startswith("_") + f"{_plain(label) or 'no class'} ({counts[label]})",
        )
    if others:  # below the others, and last in the legend
        rest = np.isin(own, others)
        text = f"{len(others)} other classes ({int(rest.sum())})"
        axes.scatter(points[rest, 0], points[rest, 1], s=size, color=GREY, linewidth=0, zorder=0.9, label=text)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.set_title("\n".join(_plain(line) for line in title.splitlines()), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), title="class (videos)")
    _save(figure, path)


def segment_colours(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour for each class that occurs, in the order in which they come."""
    return {label: SEGMENT_COLOURS[k % len(SEGMENT_COLOURS)] for k, label in enumerate(dict.fromkeys(labels))}


def save_timelines(path: Path, rows: Sequence[TimelineRow], classes: Sequence[str]) -> None:
    """Save for each video the probabilities over its time of the classes that are anywhere the best, and its segments above."""
    colours = segment_colours([label for row in rows for _, _, label in row.segments])
    figure = _figure(10, 0.6 + 2.2 * len(rows))
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        for start, end, label in row.segments:
            axes.axvspan(start, end, ymin=0.93, color=colours[label], linewidth=0)
        for label in dict.fromkeys(label for _, _, label in row.segments):
            values = row.probabilities[:, list(classes).index(label)]
            axes.stairs(values, row.edges_s, baseline=None, color=colours[label], linewidth=1.5)
        axes.set_xlim(row.edges_s[0], row.edges_s[-1])
        axes.set_ylim(0, 1.1)
        axes.set_yticks([0, 0.5, 1])
        _percent(axes.yaxis)
        axes.set_title(_plain(row.title), fontsize=9, loc="left")
        axes.set_xlabel("time / s")
        axes.spines[["top", "right"]].set_visible(False)
        # The blank, because a legend leaves out names that begin with an underscore.
        handles = [axes.plot([], [], color=colour, label=f" {_plain(label)}")[0] for label, colour in colours.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    _save(figure, path)


def caption_picture(best: Sequence[tuple[str, float]], width: int, height: int) -> np.ndarray:
    """Return (height, width, 3) uint8 with a line for each class and its probability, best first, as bars."""
    figure = _figure(width / DPI, height / DPI)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    size = 0.5 * height / max(1, len(best)) * 72 / DPI
    for place, (label, probability) in enumerate(best):
        axes.barh(place, probability, color=OTHER if place == 0 else FAINT, height=0.86)
        axes.text(0.01, place, f"{_plain(label)}  {probability:.0%}", va="center", color=INK, fontsize=size)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(1, len(best)) - 0.5, -0.5)
    axes.set_axis_off()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:height, :width, :3].copy()  # type: ignore[attr-defined]
