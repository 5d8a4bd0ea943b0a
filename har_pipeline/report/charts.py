"""The charts of the page, as specs of Vega-Lite: plain dicts that the page draws.

Colours are the variables of report.css, so that a chart follows the page into the dark and onto paper.
Texts of users stand in `values` only, never in an expression. Accuracies are in [0, 1].
Source: Satyanarayan et al. 2017 for the grammar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from har_pipeline.evaluation.calibration import Reliability
from har_pipeline.evaluation.compare import Comparison
from har_pipeline.evaluation.metrics import ClassResult
from har_pipeline.evaluation.plots import Line
from har_pipeline.report.data import CurvePoint, LengthBin, Result

Spec = dict[str, Any]

CELL_TEXT_CLASSES = 30
ROW_PX = 20
# An axis of shares, with a blank before the sign as in the text.
PERCENT = {"labelExpr": "format(100 * datum.value, '.0f') + ' %'"}


def _value(field: str, title: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **more}


def _text(field: str, title: str | None, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", "title": title, **more}


def _chart(values: Sequence[Mapping[str, Any]], **more: Any) -> Spec:
    return {"width": "container", "data": {"values": [dict(row) for row in values]}, **more}


def training_curves(points: Sequence[CurvePoint]) -> Spec:
    """Return loss, accuracy and learning rate against epochs; a band is the range over the runs of a job."""
    rows = [
        {
            "epoch": p.epoch,
            "part": p.part,
            "measure": p.measure,
            "mean": round(p.mean, 6),
            "low": round(p.low, 6),
            "high": round(p.high, 6),
        }
        for p in points
    ]
    bands = any(p.low != p.high for p in points)
    parts = list(dict.fromkeys(p.part for p in points))
    colour: Spec = {
        "field": "part",
        "type": "nominal",
        "title": None,
        "scale": {"domain": parts, "range": ["var(--accent)", "var(--second)"][: len(parts)]},
        "legend": {"orient": "top", "symbolType": "stroke"} if len(parts) > 1 else None,
    }

    def panel(measure: str, title: str, height: int, **scale: Any) -> Spec:
        formats = {"accuracy": PERCENT, "learning rate": {"format": "~g"}}.get(measure, {})
        y: Spec = {
            "field": "mean",
            "type": "quantitative",
            "title": title,
            "scale": scale,
            "axis": {"tickCount": 2 if measure == "learning rate" else 4, **formats},
        }
        x = _value("epoch", "epoch", axis={"tickMinStep": 1}, scale={"nice": False})
        line: Spec = {
            "mark": {"type": "line", "strokeWidth": 2, "interpolate": "linear"},
            "encoding": {"x": x, "y": y, "color": colour},
        }
        if measure == "learning rate":
            line["mark"]["interpolate"] = "step-after"
            line["encoding"]["color"] = {"value": "var(--muted)"}
        tips = [_value("epoch", "epoch"), _text("part", "videos"), _value("mean", title, format=".4~g")]
        point = {
            "mark": {"type": "point", "opacity": 0, "size": 120},
            "encoding": {"x": x, "y": y, "tooltip": tips},
        }
        band = {
            "mark": {"type": "area", "opacity": 0.16},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        }
        layers = [*([band] if bands and measure != "learning rate" else []), line, point]
        return {
            "width": "container",
            "height": height,
            "transform": [{"filter": {"field": "measure", "equal": measure}}],
            "layer": layers,
        }

    panels = [
        panel("loss", "loss / nats", 150, zero=True),
        panel("accuracy", "video accuracy", 150, domain=[0, 1]),
        panel("learning rate", "learning rate", 70, zero=True),
    ]
    # A container's width is for single charts only: the page draws each panel by itself.
    return {"panels": [{"data": {"values": rows}, **one} for one in panels]}


def confusion(result: Result) -> Spec:
    """Return the matrix: rows true classes, columns predicted ones; what is right in blue, each mistake in red.

    The page sets the parameter `shown` to `counts` or `shares`, and the step of a cell.
    """
    names, matrix = list(result.classes), result.confusion
    totals = matrix.sum(axis=1)
    rows = [
        {
            "true": names[t],
            "said": names[s],
            "count": int(matrix[t, s]),
            "share": float(matrix[t, s] / totals[t]),
            "right": t == s,
        }
        for t, s in np.argwhere(matrix > 0).tolist()
    ]
    few = len(names) <= CELL_TEXT_CLASSES
    labels = {"labelLimit": 150, "labelOverlap": False, "domain": False, "ticks": False, "grid": False}
    x = {
        **_text("said", "predicted class", sort=None, scale={"domain": names, "paddingInner": 0.04}),
        "axis": {**labels, "orient": "top", "labelAngle": -50, "labelAlign": "left"},
    }
    y = {**_text("true", "true class", sort=None, scale={"domain": names, "paddingInner": 0.04}), "axis": labels}
    top = int(matrix.max()) or 1
    shade = {
        "field": "shade",
        "type": "quantitative",
        "legend": None,
        "scale": {"type": "sqrt", "domain": [0, 1], "range": [0.0, 1]},
    }
    tips = [
        _text("true", "true class"),
        _text("said", "predicted"),
        _value("count", "videos"),
        _value("share", "of the true class", format=".1%"),
    ]
    cells = {
        "mark": {"type": "rect", "cornerRadius": 2},
        "encoding": {
            "x": x,
            "y": y,
            "fillOpacity": shade,
            "fill": {
                "field": "right",
                "type": "nominal",
                "legend": None,
                "scale": {"domain": [True, False], "range": ["var(--accent)", "var(--wrong)"]},
            },
            "tooltip": tips,
        },
    }
    layers: list[Spec] = [cells]
    if few:
        layers.append(
            {
                "mark": {"type": "text", "fontSize": 12},
                "encoding": {
                    "x": x,
                    "y": y,
                    "text": _text("text", ""),
                    "tooltip": tips,
                    "color": {
                        "condition": {"test": "datum.shade > 0.4", "value": "var(--onfill)"},
                        "value": "var(--ink)",
                    },
                },
            }
        )
    for group, first, end in result.spans:
        span = {
            "data": {"values": [{"true": names[first], "said": names[first], "end": names[end - 1], "group": group}]}
        }
        if first:
            line: Spec = {"type": "rule", "color": "var(--muted)", "strokeWidth": 1}
            layers.append({**span, "mark": line, "encoding": {"y": {**y, "bandPosition": 0}}})
            layers.append({**span, "mark": line, "encoding": {"x": {**x, "bandPosition": 0}}})
    return {
        "data": {"values": rows},
        "params": [{"name": "shown", "value": "counts" if few else "shares"}],
        "transform": [
            {"calculate": f"shown == 'counts' ? datum.count / {top} : datum.share", "as": "level"},
            # Low values are still to be seen.
            {"calculate": "0.12 + 0.88 * datum.level", "as": "shade"},
            {"calculate": "shown == 'counts' ? datum.count : format(100 * datum.share, '.0f')", "as": "text"},
        ],
        "width": {"step": 1},
        "height": {"step": 1},
        "view": {"fill": "var(--well)", "stroke": None},
        "layer": layers,
    }


def class_accuracy(results: Sequence[ClassResult]) -> Spec:
    """Return each class's accuracy with its interval, the worst on top."""
    rows = [
        {
            "label": one.label,
            "accuracy": one.accuracy.value,
            "low": one.accuracy.low,
            "high": one.accuracy.high,
            "videos": one.videos,
            "confused": f"{one.confused_with} ({one.confused_videos})" if one.confused_with else "",
        }
        for one in results
        if one.accuracy is not None
    ]
    rows.sort(key=lambda row: (row["accuracy"], row["label"]))
    tips = [
        _text("label", "class"),
        _value("accuracy", "accuracy", format=".1%"),
        _value("low", "95 % from", format=".1%"),
        _value("high", "to", format=".1%"),
        _value("videos", "videos"),
        _text("confused", "most often taken for"),
    ]
    y = _text("label", None, sort=None, scale={"domain": [row["label"] for row in rows]}, axis=_label_axis())
    # A long chart is scrolled: its axis is where it begins.
    axis = {**PERCENT, "tickCount": 5, "orient": "top" if len(rows) > CELL_TEXT_CLASSES else "bottom"}
    x = _value("accuracy", "accuracy, with 95 % interval", scale={"domain": [0, 1]}, axis=axis)
    return _chart(
        rows,
        height=ROW_PX * max(2, len(rows)),
        encoding={"y": y, "tooltip": tips},
        layer=[
            {
                "mark": {"type": "bar", "color": "var(--accent)", "cornerRadiusEnd": 2, "height": {"band": 0.62}},
                "encoding": {"x": x},
            },
            {
                "mark": {"type": "rule", "color": "var(--ink)", "strokeWidth": 1.3},
                "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
        ],
    )


def _label_axis() -> Spec:
    return {"labelLimit": 130, "domain": False, "ticks": False, "labelPadding": 6, "grid": False}


def lengths(bins: Sequence[LengthBin]) -> Spec:
    """Return accuracy with its interval against the frames of the videos."""
    rows = [
        {
            "name": f"{one.low:,}" if one.low == one.high else f"{one.low:,} to {one.high:,}",
            "accuracy": one.accuracy.value,
            "low": one.accuracy.low,
            "high": one.accuracy.high,
            "videos": one.videos,
        }
        for one in bins
    ]
    tips = [
        _text("name", "frames"),
        _value("videos", "videos"),
        _value("accuracy", "accuracy", format=".1%"),
        _value("low", "95 % from", format=".1%"),
        _value("high", "to", format=".1%"),
    ]
    y = _value("accuracy", "video accuracy", scale={"domain": [0, 1]}, axis={**PERCENT, "tickCount": 5})
    x = _text("name", "frames of the video", sort=None, axis={"labelAngle": -35, "labelLimit": 110, "grid": False})
    return _chart(
        rows,
        height=220,
        encoding={"x": x, "tooltip": tips},
        layer=[
            {
                "mark": {"type": "rule", "color": "var(--accent)", "strokeWidth": 2},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {"mark": {"type": "point", "filled": True, "size": 80, "color": "var(--accent)"}, "encoding": {"y": y}},
        ],
    )


def calibration(found: Reliability) -> Spec:
    """Return accuracy against confidence, with the diagonal of perfect calibration."""
    rows = [
        {
            "confidence": one.confidence,
            "accuracy": one.accuracy.value,
            "low": one.accuracy.low,
            "high": one.accuracy.high,
            "rows": one.rows,
        }
        for one in found.bins
    ]
    unit = {"domain": [0, 1]}
    axis = {**PERCENT, "tickCount": 5}
    x = _value("confidence", "probability of the predicted class", scale=unit, axis=axis)
    y = _value("accuracy", "share that is right", scale=unit, axis=axis)
    tips = [
        _value("rows", "videos"),
        _value("confidence", "mean probability", format=".1%"),
        _value("accuracy", "right", format=".1%"),
    ]
    return _chart(
        rows,
        height=220,
        layer=[
            {
                "data": {"values": [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]},
                "mark": {"type": "line", "strokeDash": [4, 4], "color": "var(--muted)", "strokeWidth": 1.5},
                "encoding": {"x": x, "y": y},
            },
            {
                "mark": {"type": "rule", "color": "var(--accent)", "strokeWidth": 1.5},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "tooltip": tips},
            },
            {
                "mark": {"type": "point", "filled": True, "color": "var(--accent)"},
                "encoding": {
                    "x": x,
                    "y": y,
                    "size": _value("rows", "videos", legend=None, scale={"range": [40, 260]}),
                    "tooltip": tips,
                },
            },
        ],
    )


def side_by_side(results: Sequence[Result]) -> Spec:
    """Return the video accuracy of each result with its interval."""
    rows = []
    for one in results:
        interval = one.headline[0].interval
        rows.append(
            {
                "name": one.name,
                "accuracy": one.top1,
                "low": interval.low if interval else one.top1,
                "high": interval.high if interval else one.top1,
            }
        )
    tips = [
        _text("name", "run"),
        _value("accuracy", "video accuracy", format=".1%"),
        _value("low", "95 % from", format=".1%"),
        _value("high", "to", format=".1%"),
    ]
    x = _value(
        "accuracy", "video accuracy, with 95 % interval", scale={"zero": False}, axis={**PERCENT, "tickCount": 5}
    )
    y = _text("name", None, sort=None, scale={"domain": [row["name"] for row in rows]}, axis=_label_axis())
    return _chart(
        rows,
        height=30 * len(rows),
        encoding={"y": y, "tooltip": tips},
        layer=[
            {
                "mark": {"type": "rule", "color": "var(--accent)", "strokeWidth": 2},
                "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 100, "color": "var(--accent)", "opacity": 1},
                "encoding": {"x": x},
            },
        ],
    )


def class_gains(comparison: Comparison) -> Spec:
    """Return the change of each class's accuracy from the first run to the second, largest gain on top."""
    rows = [
        {"label": one.label, "gain": 100 * one.gain, "first": one.first, "second": one.second, "videos": one.videos}
        for one in comparison.per_class
        if one.gain
    ]
    rows.sort(key=lambda row: (-row["gain"], row["label"]))  # type: ignore[operator]
    tips = [
        _text("label", "class"),
        _value("gain", "points", format="+.1f"),
        _value("first", "first run", format=".1%"),
        _value("second", "second run", format=".1%"),
        _value("videos", "videos"),
    ]
    y = _text("label", None, sort=None, scale={"domain": [row["label"] for row in rows]}, axis=_label_axis())
    return _chart(
        rows,
        height=ROW_PX * max(2, len(rows)),
        mark={"type": "bar", "cornerRadiusEnd": 2, "height": {"band": 0.66}},
        encoding={
            "y": y,
            "x": _value("gain", "change of class accuracy / points", axis={"format": "+d", "tickCount": 6}),
            "color": {"condition": {"test": "datum.gain > 0", "value": "var(--right)"}, "value": "var(--wrong)"},
            "tooltip": tips,
        },
    )


def sweep(x_name: str, lines: Sequence[Line]) -> Spec:
    """Return mean accuracies against a swept value, one line for each combination of the others; rules: +- one deviation."""
    every = [value for _, points in lines for value, _, _ in points]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in every)
    rows = [
        {
            "line": name or "accuracy",
            "x": value if numbers else "none" if value is None else str(value),
            "mean": mean,
            "low": max(0.0, mean - (sd or 0)),
            "high": min(1.0, mean + (sd or 0)),
        }
        for name, points in lines
        for value, mean, sd in points
    ]
    x: Spec = {"field": "x", "type": "quantitative" if numbers else "ordinal", "title": x_name, "sort": None}
    if numbers:
        ticks: Spec = {"values": sorted(set(every))} if len(set(every)) <= 12 else {}
        x |= {"scale": {"zero": False}, "axis": {"format": "~g", "labelOverlap": True, **ticks}}
    else:
        x |= {"axis": {"labelAngle": 0, "labelLimit": 110, "grid": False}}
    y = _value("mean", "video accuracy", scale={"zero": False}, axis={**PERCENT, "tickCount": 5})
    colour = {
        "field": "line",
        "type": "nominal",
        "sort": None,
        "title": None,
        "legend": {"orient": "top", "columns": 2, "labelLimit": 220} if len(lines) > 1 else None,
    }
    tips = [_text("line", "others"), {**x, "title": x_name}, _value("mean", "mean accuracy", format=".1%")]
    return _chart(
        rows,
        height=260,
        encoding={"x": x, "color": colour},
        layer=[
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"y": y}},
            {
                "mark": {"type": "rule", "opacity": 0.5},
                "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": {"y": y, "tooltip": tips}},
        ],
    )
