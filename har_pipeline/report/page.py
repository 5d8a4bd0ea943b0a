"""The page as HTML: one file, or a folder with the pictures beside it. It reads nothing from the network.

The template, its style and its script are files of the package (`assets/`); the charts are drawn in the page by Vega-Lite,
whose script vl-convert-python carries.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import new_folder, write_text
from har_pipeline.core.text import printable
from har_pipeline.evaluation.compare import Comparison
from har_pipeline.evaluation.statistics import Interval, PairedTest
from har_pipeline.report import charts
from har_pipeline.report.data import Extraction, Figure, FusionResult, Report, Result, Sweep, best_result
from har_pipeline.report.gallery import Shown
from har_pipeline.training.sweep_table import WORDS, curves

INDEX, ASSETS = "index.html", "assets"
# By this a folder is known to be a report, which may be replaced.
MARK = '<meta name="generator" content="har report">'
# Tables of more rows can be searched.
SEARCHED_ROWS = 12

NO_BREAK = "\u00a0"  # a blank at which no line ends

Cell = str | tuple[str, float | None]  # its text, and what it is sorted by
Media = Callable[[bytes, str], str]  # content and media type -> address


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that can be sorted and, if it is long, searched."""

    name: str
    columns: Sequence[tuple[str, bool]]  # title, and whether it holds numbers
    rows: Sequence[Sequence[Cell]]
    tones: Sequence[str] = ()  # a class of report.css for each row

    @property
    def searched(self) -> bool:
        """Whether it has a field to search it with."""
        return len(self.rows) > SEARCHED_ROWS


def write_report(report: Report, out: Path, *, single_file: bool = False) -> Path:
    """Write the page and return its path: `out` itself, or index.html in the folder `out`, with its pictures in assets/.

    A file, or a folder with an older report, is replaced. Raises: RunError if a folder holds something else.
    """
    if single_file:
        if out.is_dir():
            raise RunError(f"{out} is a folder: name a file, such as {out}.html")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, render(report, data_address))
        return out
    if out.is_file():
        raise RunError(f"{out} is a file: name a folder, or give --single-file")
    if out.is_dir() and any(out.iterdir()) and not _is_report(out):
        raise RunError(f"{out} holds something else than a report: name another folder, or empty it")
    with new_folder(out.absolute()) as partial:

        def beside(content: bytes, kind: str) -> str:
            name = f"{hashlib.sha256(content).hexdigest()[:16]}.{kind.rpartition('/')[2]}"
            (partial / ASSETS).mkdir(exist_ok=True)
            (partial / ASSETS / name).write_bytes(content)
            return f"{ASSETS}/{name}"

        (partial / INDEX).write_text(render(report, beside), encoding="utf-8")
    return out / INDEX


def _is_report(folder: Path) -> bool:
    index = folder / INDEX
    return index.is_file() and MARK in index.read_text(encoding="utf-8", errors="replace")[:4000]


def data_address(content: bytes, kind: str) -> str:
    """Return an address that holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render(report: Report, media: Media = data_address) -> str:
    """Return the page's HTML. media: keeps a picture or clip and returns its address."""
    specs: dict[str, Any] = {}

    def chart(name: str, spec: dict[str, Any]) -> str:
        specs[name] = spec
        return name

    best = best_result(report) if report.results else None
    return render_template(
        "report.html",
        report=report,
        best=best,
        overview=_overview(report, chart) if len(report.results) > 1 else None,
        pairs=[_pair(number, one, chart) for number, one in enumerate(report.comparisons)],
        paired=_paired_table(report.comparisons),
        fusions=[_fusion(one) for one in report.fusions],
        sweeps=[_sweep(number, one, chart) for number, one in enumerate(report.sweeps)],
        results=[_result(number, one, chart, media, one is best) for number, one in enumerate(report.results)],
        library=Markup(chart_library()),
        # Called after all charts were named.
        specs=lambda: Markup(script_json(specs)),
    )


def render_template(name: str, **values: Any) -> str:
    """Return a template of the package filled: all text is escaped, its control characters are shown."""

    class Assets(BaseLoader):
        def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, Callable[[], bool]]:
            return _asset(template), None, lambda: True

    def plain(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=Assets(),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=plain,
    )
    same = {"mark": Markup(MARK), "style": Markup(_asset("report.css")), "script": Markup(_asset("report.js"))}
    return environment.get_template(name).render(**same, **values)


def _asset(name: str) -> str:
    return (files("har_pipeline.report") / ASSETS / name).read_text(encoding="utf-8")


@functools.lru_cache(1)
def chart_library() -> str:
    """Return the script that defines `vegaEmbed`: Vega, Vega-Lite and Vega-Embed, 0.9 MB, as vl-convert-python carries them."""
    import vl_convert

    library: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # In a string of the library it would end the script.
    return library.replace("</script", "<\\/script")


def script_json(values: Any) -> str:
    """Return JSON that may stand in a <script>: no tag begins in it, and control characters of texts are shown."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [shown(one) for one in value]
        return printable(value) if isinstance(value, str) else value

    text = json.dumps(shown(values), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as percentage; empty of None."""
    return "" if value is None else f"{100 * value:.{digits}f}{NO_BREAK}%"


def _share(value: float | None) -> Cell:
    return percent(value), value


def _between(interval: Interval | None) -> Cell:
    return (f"{100 * interval.low:.1f} to {100 * interval.high:.1f}", interval.low) if interval else ("", None)


def _number(value: int | None) -> Cell:
    return ("" if value is None else f"{value:,}", value)


def _p_value(test: PairedTest) -> Cell:
    return test.describe_p().removeprefix("p ").removeprefix("= "), test.p_value


def _card(figure: Figure) -> dict[str, str]:
    between = f"95{NO_BREAK}% interval: {_between(figure.interval)[0]}{NO_BREAK}%" if figure.interval else ""
    return {
        "name": figure.name,
        "value": percent(figure.value),
        "said": ". ".join(text for text in (between, figure.said) if text),
    }


def _overview(report: Report, chart: Callable[..., str]) -> dict[str, Any]:
    rows: list[list[Cell]] = []
    for one in report.results:
        first = one.headline[0]
        mean_class = next((figure for figure in one.headline if figure.name == "Mean class accuracy"), None)
        rows.append(
            [
                one.name,
                one.kind,
                _number(one.videos),
                _share(one.top1),
                _between(first.interval),
                _share(mean_class.value if mean_class else None),
                _share(one.reliability.expected_error),
            ]
        )
    columns = [
        ("run", False),
        ("kind", False),
        ("test videos", True),
        ("video accuracy", True),
        ("95 % interval", True),
        ("mean class accuracy", True),
        ("calibration error", True),
    ]
    return {
        "chart": chart("overview", charts.side_by_side(report.results)),
        "table": Table(name="Side by side", columns=columns, rows=rows),
    }


def _paired_table(comparisons: Sequence[Comparison]) -> Table | None:
    if not comparisons:
        return None
    columns = [
        ("first run", False),
        ("second run", False),
        ("videos", True),
        ("only first right", True),
        ("only second right", True),
        ("difference / points", True),
        ("p", True),
    ]
    rows: list[list[Cell]] = []
    for one in comparisons:
        difference = 100 * (one.second_top1.value - one.first_top1.value)
        rows.append(
            [
                *one.runs,
                _number(one.num_videos),
                _number(one.test.first_only),
                _number(one.test.second_only),
                (f"{difference:+.1f}", difference),
                _p_value(one.test),
            ]
        )
    return Table(name="Paired tests", columns=columns, rows=rows)


def _pair(number: int, one: Comparison, chart: Callable[..., str]) -> dict[str, Any]:
    first, second = one.runs
    rows: list[list[Cell]] = [
        [
            row.label,
            _number(row.videos),
            _share(row.first),
            _share(row.second),
            (f"{100 * row.gain:+.1f}", row.gain),
        ]
        for row in sorted((*one.per_class, *one.per_group), key=lambda row: -row.gain)
        if row.gain
    ]
    columns = [("class or group", False), ("videos", True), (first, True), (second, True), ("gain / points", True)]
    return {
        "title": f"{second} less {first}",
        "chart": chart(f"gains-{number}", charts.class_gains(one)) if any(row.gain for row in one.per_class) else "",
        "table": Table(name=f"Gains and losses of {second} against {first}", columns=columns, rows=rows),
        "same": sum(not row.gain for row in one.per_class),
    }


def _fusion(one: FusionResult) -> dict[str, Any]:
    rows: list[list[Cell]] = []
    tones = []
    for row in one.rows:
        top1 = Interval(**row["top1"])
        test = PairedTest(**row["against_best"]) if row["against_best"] else None
        name = row["name"] + (" (best rule)" if row["name"] == one.best else "")
        rows.append(
            [
                name + (" (kept)" if row["name"] == one.chosen else ""),
                row["kind"],
                _share(top1.value),
                _between(top1),
                ("", None) if row["nll"] is None else (f"{row['nll']:.3f}", row["nll"]),
                _number(test.first_only if test else None),
                _number(test.second_only if test else None),
                _p_value(test) if test else ("", None),
            ]
        )
        tones.append("best" if row["name"] == one.best else "")
    columns = [
        ("what", False),
        ("kind", False),
        ("video accuracy", True),
        ("95 % interval", True),
        ("NLL / nats", True),
        ("only best rule right", True),
        ("only this right", True),
        ("p", True),
    ]
    return {"one": one, "table": Table(name=f"Fusion {one.name}", columns=columns, rows=rows, tones=tones)}


def _sweep(number: int, one: Sweep, chart: Callable[..., str]) -> dict[str, Any]:
    x, lines = curves(one.points)
    # Options with their values; those of numbers only are aligned as numbers.
    swept = {name: [dict(point.values)[name] for point in one.points] for name, _ in one.points[0].values}
    numbers = {name: all(type(value) in (int, float) for value in values) for name, values in swept.items()}
    columns = [
        *((WORDS.get(name, name.replace("_", " ")), numbers[name]) for name in swept),
        ("runs", True),
        ("validation accuracy", True),
        ("video accuracy", True),
        ("deviation / points", True),
        ("parameters", True),
        ("seconds a run", True),
    ]
    rows: list[list[Cell]] = [
        [
            *((str(value), float(str(value))) if numbers[name] else str(value) for name, value in point.values),
            _number(point.runs),
            _share(point.val_accuracy),
            _share(point.accuracy),
            ("", None) if point.sd is None else (f"{100 * point.sd:.1f}", point.sd),
            _number(point.parameters),
            (f"{point.seconds:.1f}", point.seconds),
        ]
        for point in one.points
    ]
    return {
        "name": one.name,
        "chosen": _chosen(one),
        "chart": chart(f"sweep-{number}", charts.sweep(WORDS.get(x, x.replace("_", " ")), lines)),
        "table": Table(name=f"Sweep {one.name}", columns=columns, rows=rows),
    }


def _chosen(one: Sweep) -> list[tuple[str, str]]:
    """Return what the validation videos chose, in words."""
    return [
        (
            f"Split {choice.split}",
            f"{', '.join(f'{name} {value}' for name, value in choice.values)}: {percent(choice.val_accuracy)} of the "
            f"validation videos, {percent(choice.accuracy)} of the test videos",
        )
        for choice in one.choices
    ]


def _result(number: int, one: Result, chart: Callable[..., str], media: Media, best: bool) -> dict[str, Any]:
    made: dict[str, str] = {
        "confusion": chart(f"confusion-{number}", charts.confusion(one)),
        "classes": chart(f"classes-{number}", charts.class_accuracy(one.per_class)),
        "calibration": chart(f"calibration-{number}", charts.calibration(one.reliability)),
    }
    if one.curves:
        made["curves"] = chart(f"curves-{number}", charts.training_curves(one.curves))
    if one.lengths:
        made["lengths"] = chart(f"lengths-{number}", charts.lengths(one.lengths))
    return {
        "id": f"run-{number}",
        "one": one,
        "best": best,
        "cards": [_card(figure) for figure in one.headline],
        "charts": made,
        "tables": _tables(one),
        "extraction": [_extraction(found) for found in one.extraction],
        "gallery": [_shown(shown, media, one) for shown in one.gallery],
    }


def _tables(one: Result) -> dict[str, Table]:
    classes: list[list[Cell]] = [
        [
            row.label,
            _number(row.videos),
            _share(row.accuracy.value if row.accuracy else None),
            _between(row.accuracy),
            _share(row.precision),
            f"{row.confused_with} ({row.confused_videos})" if row.confused_with else "",
        ]
        for row in one.per_class
    ]
    tables = {
        "classes": Table(
            name="Classes",
            columns=[
                ("class", False),
                ("videos", True),
                ("accuracy", True),
                ("95 % interval", True),
                ("precision", True),
                ("most often taken for", False),
            ],
            rows=classes,
        ),
        "confused": Table(
            name="Most confused classes",
            columns=[("class", False), ("taken for", False), ("videos", True), ("of the class", True)],
            rows=[[row.label, row.said, _number(row.rows), _share(row.share)] for row in one.confused],
        ),
        "videos": Table(
            name="Test videos",
            columns=[
                ("video", False),
                ("class", False),
                ("taken for", False),
                ("probability", True),
                ("right", False),
                ("frames", True),
                ("fold", True),
            ],
            rows=[
                [
                    row.video_id,
                    row.label,
                    row.said,
                    _share(row.probability),
                    "right" if row.right else "wrong",
                    _number(row.frames),
                    _number(row.fold),
                ]
                for row in one.listed
            ],
            tones=["" if row.right else "mistake" for row in one.listed],
        ),
        "options": Table(
            name="Options",
            columns=[("option", False), ("value", False), ("default", False), ("meaning", False)],
            rows=[[row.name, row.value, row.default, row.meaning] for row in one.options],
            tones=["changed" if row.changed else "" for row in one.options],
        ),
    }
    if one.parts:
        columns = [("part", False), ("videos", True), ("video accuracy", True), ("95 % interval", True)]
        rows: list[list[Cell]] = [
            [part.name, _number(part.videos), _share(part.top1), _between(part.interval), _share(part.mean_class)]
            for part in one.parts
        ]
        tables["parts"] = Table(name="Folds and repeats", columns=[*columns, ("mean class accuracy", True)], rows=rows)
    if one.per_group:
        tables["groups"] = Table(
            name="Groups of classes",
            columns=[
                ("group", False),
                ("classes", True),
                ("videos", True),
                ("accuracy", True),
                ("95 % interval", True),
                ("of the right group", True),
            ],
            rows=[
                [
                    group.name,
                    _number(group.classes),
                    _number(group.videos),
                    _share(group.accuracy.value if group.accuracy else None),
                    _between(group.accuracy),
                    _share(group.in_group.value if group.in_group else None),
                ]
                for group in one.per_group
            ],
        )
    return tables


def _extraction(one: Extraction) -> dict[str, Any]:
    rows: list[list[Cell]] = [[video, "failed", reason] for video, reason in one.failed.items()]
    rows += [[video, "noted", "; ".join(texts)] for video, texts in one.notes.items()]
    columns = [("video", False), ("what", False), ("why", False)]
    tones = ["mistake" if row[1] == "failed" else "" for row in rows]
    return {
        "one": one,
        "table": Table(name="Videos that failed or had faults", columns=columns, rows=rows, tones=tones),
    }


def _shown(one: Shown, media: Media, result: Result) -> dict[str, Any]:
    return {
        "one": one,
        "moments": _moments(one, result),
        "strip": media(one.strip, "image/jpeg") if one.strip else "",
        "clip": media(one.clip, "video/mp4") if one.clip else "",
        "bars": [
            {
                "label": label,
                "width": f"{100 * value:.1f}",
                "value": percent(value, 0) if value >= 0.005 else f"<{NO_BREAK}1{NO_BREAK}%",
                "tone": "right" if label == one.label else "wrong",
            }
            for label, value in one.top
        ],
    }


def _moments(one: Shown, result: Result) -> dict[str, Any] | None:
    """Return the lines of the class probabilities over time, in a box of 100 x 30; the true class's comes last, on top."""
    found = result.moments.get(one.video_id)
    if found is None:
        return None
    timed = bool(np.isfinite(found.times_s).all())
    times = found.times_s if timed else np.arange(1.0, len(found.times_s) + 1)
    x = 100 * (times - times[0]) / max(times[-1] - times[0], 1e-9)
    names = [label for label, _ in one.top]
    lines = []
    for name in [*(own for own in reversed(names) if own != one.label), one.label]:
        y = 29 - 28 * found.probabilities[:, list(result.score_classes).index(name)]
        tone = "truth" if name == one.label else "wrong" if name == names[0] else "other"
        lines.append({"tone": tone, "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))})
    true = found.probabilities[:, list(result.score_classes).index(one.label)]
    ends = [f"{times[k]:.1f}{NO_BREAK}s" if timed else f"step {times[k]:.0f}" for k in (0, -1)]
    told = f"Probability of {one.label} from {ends[0]} to {ends[1]}: first {percent(true[0], 0)}, last {percent(true[-1], 0)}"
    return {"lines": lines, "first": ends[0], "last": ends[1], "told": told}
