"""Floor 4: the figures of a comparison as SVG, from results.json alone, ready to stand inside one HTML page.

Figures hold text as text, take the colour of the text around them, have a transparent background and scale with CSS.
Nothing is told by colour alone: each strategy has a marker and a line style too. matplotlib is used without pyplot, so
that there is no state between calls, no window, and no trace of the settings of a user.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.report.results import format_difference, format_value, in_points, is_fraction, metric_words, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

Results = Mapping[str, Any]
Row = Mapping[str, Any]

INK = "#010203"
"""Stands for the colour of the text around the figure until the SVG is written. Nothing else is drawn in it."""

FONT_SIZE = 9
"""Of all text, in units of the view box. A figure shown ``min_width_px`` wide has text of 9 px."""

_UNITS_PER_INCH = 72
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout on every machine; wider than most others
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.titleweight": "bold",
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "lines.markeredgewidth": 1.1,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "svg.fonttype": "none",
    "svg.hashsalt": "hf-transfer",
    "text.parse_math": False,
    "text.usetex": False,
}

# Colour, marker, line style. Colours of Okabe and Ito, Color Universal Design (2008), without their yellow, which
# cannot be seen on white. Strategies are drawn filled, controls hollow.
_LOOKS: dict[str, tuple[str, str, Any]] = {
    "probe": ("#0072B2", "o", "-"),
    "freeze": ("#E69F00", "s", "--"),
    "lora": ("#009E73", "^", "-."),
    "full": ("#D55E00", "D", ":"),
    "mixed": ("#0072B2", "P", (0, (6, 1.5))),
    "interpolated": ("#56B4E9", "X", (0, (3, 1, 1, 1, 1, 1))),
    "knn": ("#CC79A7", "*", (0, (1, 1))),
    "before": (INK, "o", "-"),
    "scratch": ("#CC79A7", "v", "--"),
    "tfidf": ("#56B4E9", "s", "-."),
    "majority": (INK, "x", ":"),
}
_JAGGED = ("P", "X", "*")
"""Markers that are a blob at the size of the others."""
_SPARE_LOOKS = tuple(
    (colour, marker, line)
    for (marker, line), colour in zip(
        itertools.product("<>ph", ("-", "--")), itertools.cycle(("#CC79A7", "#56B4E9", "#009E73", "#D55E00"))
    )
)
_ROLES = {"in_domain": "in-domain", "shifted": "shifted"}
_ROLE_LOOKS = {"in_domain": ("#0072B2", "o"), "shifted": ("#D55E00", "s")}

LONGEST_NAME = 22
"""Characters of a name that stay; the middle of a longer one becomes an ellipsis."""
MOST_CLASSES_IN_A_MATRIX = 20
MOST_PAIRS = 15
"""Bars in place of a confusion matrix with more classes."""
MOST_LABELLED_POINTS = 20
ENOUGH_FOR_A_LINE = 8
ENOUGH_KEPT = 0.8
"""Share of the largest in-domain gain that is marked beside the points of the ledger."""
_PERCENT_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    ``svg`` is one ``<svg>`` element without width and height. Its ids begin with ``name``, so that figures can stand
    in one page. Below ``min_width_px`` its text is smaller than 9 px: let it scroll instead. ``caption`` is plain
    text, not escaped; ``title`` too.
    """

    name: str
    title: str
    caption: str
    svg: str
    min_width_px: int


@dataclass(frozen=True)
class _Drawing:
    name: str
    title: str
    caption: str
    canvas: Canvas


def make_figures(results: Results) -> dict[str, Figure]:
    """Draw what ``results`` holds data for.

    Args:
        results: a comparison (or a single run in the same structure) as results.json has it. Sections may be missing
            or empty, numbers may be null: those are left out, and a section without any number gives no figure.

    Returns:
        Figures by name, in the order of a report: ``scores``, ``ledger``, ``trade_off``, ``matrix_<strategy>``,
        ``learning_curves``, ``robustness``, ``distance_drop``, ``reliability``, ``risk_coverage``, ``confusion``,
        ``training``. Equal results give equal bytes with one version of matplotlib.
    """
    builders: tuple[Callable[[Results], Iterator[_Drawing]], ...] = (
        _scores,
        _ledger,
        _trade_off,
        _matrices,
        _learning_curves,
        _robustness,
        _distance_drop,
        _reliability,
        _risk_coverage,
        _confusion,
        _training,
    )
    figures: dict[str, Figure] = {}
    with _settings():
        for builder in builders:
            for drawing in builder(results):
                figures[drawing.name] = _finish(drawing)
    return figures


@contextmanager
def _settings() -> Iterator[None]:
    """matplotlib as it comes with our style on top, whatever the settings of the user; those are back afterwards."""
    import matplotlib

    settings: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    settings.update(_STYLE)
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        # a glyph that the font of the layout lacks (Chinese, say) costs an exact width: the browser has the glyph
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


# ---- scores ----------------------------------------------------------------------------------------------------


def _scores(results: Results) -> Iterator[_Drawing]:
    """Points with intervals: a row per domain, or a row per training domain where there are several directions."""
    metric = results.get("metric", "accuracy")
    rows = [
        row
        for row in results.get("scores") or []
        if row["metric"] == metric
        and row.get("split", "test") == "test"
        and not row.get("target_examples")
        and row.get("with_source", True)
    ]
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    stages = _stages(results, (row["strategy"] for row in rows))
    if len(directions) > 1:
        yield from _means_by_direction(results, directions)
        return
    roles = {row["domain"]: row["role"] for row in rows}
    domains = sorted(roles, key=lambda domain: roles[domain] != "in_domain")  # stable: order of appearance stays
    found = {
        (stage, domain): _over_seeds([row for row in rows if (row["strategy"], row["domain"]) == (stage, domain)])
        for stage in stages
        for domain in domains
    }
    if not any(math.isfinite(value) for value, _, _ in found.values()):
        return
    step, gap = 0.115, 0.17  # inches
    height = len(stages) * step + gap
    canvas = _canvas(6.4, 1.0 + height * len(domains) + 0.022 * FONT_SIZE * len(set(roles.values())))
    axes = canvas.subplots()
    places, y, previous = [], 0.0, None
    for number, domain in enumerate(domains):
        if roles[domain] != previous:  # a heading for each role
            previous = roles[domain]
            text = {"in_domain": "in-domain", "shifted": "shifted (not trained on)"}.get(previous, str(previous))
            axes.axhline(y, color=INK, linewidth=0.6)
            axes.annotate(text, (1, y), (0, -3), xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", va="top", weight="bold")  # fmt: skip
            y += 0.02 * FONT_SIZE
        if number % 2:
            axes.axhspan(y, y + height, color=INK, alpha=0.05, linewidth=0)
        places.append(y + height / 2)
        for row, stage in enumerate(stages):
            _point(axes, stage, results, found[stage, domain], y + gap / 2 + (row + 0.5) * step)
        y += height
    axes.set_ylim(y, 0)
    axes.set_yticks(places, _short_names(domains), fontsize=FONT_SIZE)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    _number_axis(axes, "x", metric, ticks=8)
    axes.set_xlabel(_metric_label(metric))
    if height * len(domains) > 5:  # beyond a screen: the numbers at the top too
        axes.tick_params(axis="x", labeltop=True)
    _legend(canvas, [_handle(stage, results) for stage in stages], columns=4)
    level = (
        f"{_level(results)} intervals" if any(math.isfinite(low) for _, low, _ in found.values()) else "no intervals"
    )
    controls = "; filled markers are strategies, hollow ones controls" if results.get("controls") else ""
    missing = "" if all(math.isfinite(value) for value, _, _ in found.values()) else " Undefined scores are left out."
    better = "better" if results.get("higher_is_better", True) else "worse"
    yield _Drawing(
        "scores",
        f"{_heading(metric)} by domain",
        f"{_seeds(results.get('seeds') or [])} with {level}{controls}. Further right is {better}.{missing}",
        canvas,
    )


def _point(axes: Axes, stage: str, results: Results, score: tuple[float, float, float], y: float) -> None:
    colour, _, _ = _look(stage, results)
    value, low, high = score
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [y, y], color=colour, linewidth=1.1, solid_capstyle="butt")
    if math.isfinite(value):
        axes.plot([value], [y], **_marker(stage, results))


def _over_seeds(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Value and interval over all seeds; of a lone seed its own; of several without a row for all their bare mean."""
    chosen = [row for row in rows if row.get("seed") is None] or list(rows)
    if len(chosen) == 1:
        value, low, high = (_number(chosen[0].get(key)) for key in ("value", "low", "high"))
        return value, low, high
    return (_mean(row.get("value") for row in chosen), math.nan, math.nan)


def _means_by_direction(results: Results, directions: Sequence[str]) -> Iterator[_Drawing]:
    metric = results.get("metric", "accuracy")
    rows = results.get("summary") or []
    stages = _stages(results, (row["strategy"] for row in rows))
    sides = (("in_domain_mean", "in-domain mean"), ("shifted_mean", "shifted mean"))
    if not any(math.isfinite(_number(row.get(key))) for row in rows for key, _ in sides):
        return
    canvas = _canvas(7.2, 1.0 + 0.27 * len(directions))
    for axes, (key, title) in zip(canvas.subplots(1, 2, sharex=True, sharey=True), sides, strict=True):
        for row in rows:
            if row["direction"] in directions:
                value, y = _number(row.get(key)), directions.index(row["direction"])
                _point(axes, row["strategy"], results, (value, math.nan, math.nan), y)
        axes.set_ylim(len(directions) - 0.5, -0.5)
        axes.set_yticks(range(len(directions)), _short_names(directions))
        axes.tick_params(axis="y", length=0)
        _number_axis(axes, "x", metric)
        axes.set_xlabel(_metric_label(metric))
        axes.set_title(title)
    canvas.axes[0].set_ylabel("trained on")
    _legend(canvas, [_handle(stage, results) for stage in stages], columns=4)
    yield _Drawing(
        "scores",
        f"{_heading(metric)} by training domain",
        "A row per training: means over its own test domains (left) and over all others (right), seeds together. "
        "Filled markers are strategies, hollow ones controls. Means over domains are shown without intervals.",
        canvas,
    )


# ---- translation: gained and forgotten -------------------------------------------------------------------------


def _ledger(results: Results) -> Iterator[_Drawing]:
    """In-domain gain against the change elsewhere, a point per strategy with both intervals."""
    rows = [
        row
        for row in results.get("ledger") or []
        if all(math.isfinite(_number((row.get(role) or {}).get("difference"))) for role in _ROLES)
    ]
    if len(rows) < 2:
        return
    metric = results.get("metric", "bleu")
    stages = _stages(results, (row["strategy"] for row in rows))
    canvas = _canvas(6.0, 4.6)
    axes = canvas.subplots()
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=0.8)
    several = len({row["direction"] for row in rows}) > 1
    for row in rows:
        colour, _, _ = _look(row["strategy"], results)
        x, y = (row[role]["difference"] for role in ("in_domain", "shifted"))
        ends = [[_number(row[role][end]) for end in ("low", "high")] for role in ("in_domain", "shifted")]
        if not several:  # crosses of many directions would hide the points
            axes.plot(ends[0], [y, y], color=colour, linewidth=1.0, alpha=0.6, solid_capstyle="butt")
            axes.plot([x, x], ends[1], color=colour, linewidth=1.0, alpha=0.6, solid_capstyle="butt")
        axes.plot([x], [y], **_marker(row["strategy"], results))
    handles = [_handle(stage, results) for stage in stages]
    best = max((row["in_domain"]["difference"] for row in rows if row["in_domain"]["verdict"] == "helps"), default=0.0)
    if best > 0 and not several:
        axes.axvline(ENOUGH_KEPT * best, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        handles.append(_line_handle(f"{100 * ENOUGH_KEPT:g}% of the largest gain", (0, (1, 2))))
    axes.margins(0.08)
    for side in ("x", "y"):
        _number_axis(axes, side, metric, is_difference=True)
    gained = "gained" if results["higher_is_better"] else "improved by"
    axes.set_xlabel(f"{_metric_label(metric)} {gained} in-domain (points)")
    axes.set_ylabel("change elsewhere (points, mean)")
    _legend(canvas, handles, columns=4)
    crosses = "" if several else f" Crosses are {_level(results)} intervals."
    yield _Drawing(
        "ledger",
        "Gained in-domain against changed elsewhere",
        "Both against the checkpoint as it comes: right is better at home, above the line nothing was forgotten."
        f"{crosses}{' A point per strategy and direction.' if several else ''}",
        canvas,
    )


def _trade_off(results: Results) -> Iterator[_Drawing]:
    """Validation along the line from the checkpoint to the adapted weights, a curve per run."""
    items = [item for item in results.get("translation") or [] if (item.get("trade_off") or {}).get("curve")]
    if not items:
        return
    metric = results.get("metric", "bleu")
    has_general = any(math.isfinite(_number(p.get("general"))) for item in items for p in item["trade_off"]["curve"])
    canvas = _canvas(5.6, 4.2)
    axes = canvas.subplots()
    colour, marker, _ = _look("interpolated", results)
    for number, item in enumerate(items):
        curve = item["trade_off"]["curve"]
        alphas, own, general = (_array([p.get(key) for p in curve]) for key in ("alpha", "in_domain", "general"))
        x, y = (own, general) if has_general else (alphas, own)
        axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.0, alpha=1 if number == 0 else 0.45)
        chosen = alphas == item["trade_off"]["alpha"]
        axes.plot(x[chosen], y[chosen], color=INK, marker="o", markersize=10, markerfacecolor="none", linestyle="none")
        for place in np.flatnonzero(np.isfinite(x) & np.isfinite(y)) if number == 0 and has_general else ():
            axes.annotate(f"{alphas[place]:g}", (x[place], y[place]), (5, 5), textcoords="offset points")
    axes.margins(0.1)
    label = f"validation {_metric_label(metric)}"
    axes.set_xlabel(f"in-domain {label}" if has_general else "share of the adapted weights")
    axes.set_ylabel(f"general {label}" if has_general else f"in-domain {label}")
    for side in ("x", "y") if has_general else ("y",):
        _number_axis(axes, side, metric)
    ring = _line_handle("chosen", "none", INK, "o", filled=False)
    ring.set_markersize(8)
    _legend(canvas, [_line_handle("along the line", "-", colour, marker), ring], columns=2)
    runs = f" {len(items)} runs, the first in full colour." if len(items) > 1 else ""
    numbers = "Numbers are the share of the adapted weights: 0" if has_general else "0"
    yield _Drawing(
        "trade_off",
        "Between the checkpoint and the adapted model",
        f"{numbers} is the checkpoint as it comes, 1 the adapted model. Scores of greedy search on validation text."
        f"{runs}",
        canvas,
    )


# ---- source by target ------------------------------------------------------------------------------------------


def _matrices(results: Results) -> Iterator[_Drawing]:
    metric, taken = results.get("metric", "accuracy"), set()
    for matrix in results.get("matrix") or []:
        values, low, high = (_grid(matrix.get(key), matrix) for key in ("values", "low", "high"))
        if not np.isfinite(values).any():
            continue
        strategy = _clean(matrix["strategy"])
        slug = "matrix_" + re.sub(r"[^a-z0-9_-]+", "-", strategy.lower())[:40]
        name = next(name for n in itertools.count(1) if (name := slug if n == 1 else f"{slug}-{n}") not in taken)
        taken.add(name)
        sources, targets = list(matrix["sources"]), list(matrix["targets"])
        canvas = _canvas(2.0 + 0.44 * len(targets), 1.6 + 0.3 * len(sources))
        axes = canvas.subplots()
        in_domain = np.array([[target == source for target in targets] for source in sources])
        texts = [[_cell_text(metric, value) for value in row] for row in values]
        _heat_map(axes, values, texts, _short_names(sources), _short_names(targets), in_domain)
        axes.set_ylabel("trained on")
        axes.set_xlabel("tested on")
        unit = "in percent, " if is_fraction(metric) else ""
        reach = np.fmax(values - low, high - values)
        width = float(np.nanmax(reach)) if np.isfinite(reach).any() else None
        interval = f" {_level(results)} intervals reach up to {format_difference(metric, width)} to either side."
        yield _Drawing(
            name,
            f"{strategy}: {_metric_label(metric)} from each domain to each",
            f"{_heading(metric)} ({unit}brighter is higher) of {strategy} trained on the domain of "
            f"the row and tested on that of the column; framed where both are the same.{interval if width else ''}",
            canvas,
        )


def _heat_map(
    axes: Axes,
    values: np.ndarray,
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    framed: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
) -> None:
    """Cells [rows, columns] in cividis with their text in black or white, whichever can be read; nan stays empty."""
    import matplotlib
    from matplotlib.patches import Rectangle

    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    colours = matplotlib.colormaps["cividis"]((values - low) / ((high - low) or 1.0))
    for row, column in np.ndindex(values.shape):
        empty = not math.isfinite(values[row, column])
        colour = "none" if empty else colours[row, column]
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor=colour, linewidth=0.3))
        strong = framed is not None and framed[row, column]
        ink = INK if empty else _ink_on(colours[row, column])
        axes.text(column + 0.5, row + 0.5, texts[row][column], color=ink, ha="center", va="center_baseline",
                  weight="bold" if strong else "normal")  # fmt: skip
        if strong:
            inside = Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, fill=False, edgecolor=ink, linewidth=1.2)
            axes.add_patch(inside)
    axes.set_xlim(0, values.shape[1])
    axes.set_ylim(values.shape[0], 0)
    axes.set_xticks(np.arange(values.shape[1]) + 0.5, columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(values.shape[0]) + 0.5, rows)
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _ink_on(colour: np.ndarray) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2.1, relative luminance) on ``colour`` [4].

    Not quite black: matplotlib writes no colour for black text, which would then be that of the text around it.
    """
    linear = np.where(colour[:3] <= 0.04045, colour[:3] / 12.92, ((colour[:3] + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000001"


def _cell_text(metric: str, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}" if is_fraction(metric) else f"{value:.3g}"


def _grid(values: Any, matrix: Row) -> np.ndarray:
    """[sources, targets] float64, nan for null; all nan where there is nothing."""
    shape = (len(matrix["sources"]), len(matrix["targets"]))
    return np.array(values, dtype=np.float64) if values else np.full(shape, np.nan)


# ---- target examples -------------------------------------------------------------------------------------------


def _learning_curves(results: Results) -> Iterator[_Drawing]:
    metric = results.get("metric", "accuracy")
    curves = [curve for curve in results.get("learning_curves") or [] if np.isfinite(_array(curve.get("values"))).any()]
    if not curves:
        return
    many = len({curve.get("direction") for curve in curves}) > 1

    def target_of(curve: Row) -> str:
        return f"{curve.get('direction')} → {curve['domain']}" if many else str(curve["domain"])

    targets = list(dict.fromkeys(map(target_of, curves)))
    kinds = [kind for kind in (True, False) if any(bool(curve.get("with_source", True)) == kind for curve in curves)]
    panels = [(target, kind) for target in targets for kind in kinds]
    columns = min(2, len(panels))
    sizes = sorted({size for curve in curves for size in curve["sizes"]})
    canvas = _canvas(3.4 * columns + 0.2, 0.9 + 2.1 * math.ceil(len(panels) / columns))
    grid = _panels(canvas, len(panels), columns, sharex=True, sharey=True)
    names = dict(zip(targets, _short_names(targets), strict=True))
    for axes, (target, kind) in zip(grid, panels, strict=True):
        for curve in curves:
            if (target_of(curve), bool(curve.get("with_source", True))) != (target, kind):
                continue
            colour, _, _ = _look(curve["strategy"], results)
            x, y, low, high = (_array(curve.get(key)) for key in ("sizes", "values", "low", "high"))
            if len(low) == len(high) == len(x):
                axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(x, y, **_marker(curve["strategy"], results, line=True))
        positive = [size for size in sizes if size > 0]
        if positive:  # as a logarithm beyond the smallest size, so that 0 has a place
            axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5, base=10)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        _number_axis(axes, "y", metric)
        axes.set_title(f"{names[target]}: {'source and target' if kind else 'target only'}")
        axes.label_outer()
    for axes in grid[::columns]:
        axes.set_ylabel(_metric_label(metric))
    for axes in grid[-columns:]:
        axes.set_xlabel("labelled target examples")
    stages = _stages(results, (curve["strategy"] for curve in curves))
    _legend(canvas, [_handle(stage, results, line=True) for stage in stages], columns=4)
    bands = any(np.isfinite(_array(curve.get("low"))).any() for curve in curves)
    yield _Drawing(
        "learning_curves",
        "What labelled target examples are worth",
        f"{_heading(metric)} on a target domain by the number of its labelled examples in training"
        + (f", with {_level(results)} bands. " if bands else ". ")
        + "The axis is logarithmic beyond its first size over 0.",
        canvas,
    )


# ---- robustness and distance -----------------------------------------------------------------------------------


def _robustness(results: Results) -> Iterator[_Drawing]:
    metric, section = results.get("metric", "accuracy"), results.get("robustness") or {}
    points = [
        point
        for point in section.get("points") or []
        if all(0 <= _number(point.get(key)) <= 1 for key in ("in_domain", "shifted"))  # false for nan
    ]
    if not points:
        return
    canvas = _canvas(4.9, 4.9)
    axes = canvas.subplots()
    stages = _stages(results, (point["strategy"] for point in points))
    for stage in stages:
        mine = [point for point in points if point["strategy"] == stage]
        x, y = ([_logit(point[key]) for point in mine] for key in ("in_domain", "shifted"))
        axes.plot(x, y, **_marker(stage, results))
    places = np.array([_logit(point[key]) for point in points for key in ("in_domain", "shifted")])
    margin = max(0.15, 0.06 * float(np.ptp(places)))
    ends = np.array([places.min() - margin, places.max() + margin])
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    handles = [*(_handle(stage, results) for stage in stages), _line_handle("no gap", (0, (1, 2)))]
    line = section.get("line")
    if line:
        axes.plot(ends, line["slope"] * ends + line["intercept"], color=INK, linewidth=1.0, linestyle=(0, (6, 2)))
        handles.append(_line_handle("line through the controls", (0, (6, 2))))
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    ticks = _spaced_ticks(*ends)
    labels = [f"{100 * tick:g}%" if is_fraction(metric) else f"{tick:g}" for tick in ticks]
    axes.set_xticks([_logit(tick) for tick in ticks], labels)
    axes.set_yticks([_logit(tick) for tick in ticks], labels)
    label = _metric_label(metric)
    axes.set_xlabel(f"in-domain {label} (mean over domains, logit scale)")
    axes.set_ylabel(f"shifted {label} (mean over domains, logit scale)")
    _legend(canvas, handles, columns=3)
    each = [word for word in ("seed", "direction") if len({point.get(word) for point in points}) > 1]
    sentences = [
        f"A point per {' and '.join(['strategy', *each])}. On the dotted diagonal nothing is lost outside the training "
        "domains."
    ]
    effective = [
        f"{_clean(name)} {format_difference(metric, value)}"
        for name, value in (section.get("effective") or {}).items()
        if value is not None
    ]
    if effective:
        sentences.append(f"Effective robustness, height above the line: {'; '.join(effective)}.")
    if line and line["points"] < ENOUGH_FOR_A_LINE:
        sentences.append(f"The line goes through {line['points']} points of controls: a rough guide.")
    yield _Drawing("robustness", f"Shifted against in-domain {label}", " ".join(sentences), canvas)


def _logit(share: float) -> float:
    """Natural log odds; 0 and 1 are drawn as 0.1% and 99.9%."""
    inside = min(max(share, 0.001), 0.999)
    return math.log(inside / (1 - inside))


def _spaced_ticks(low: float, high: float) -> list[float]:
    """Shares to label between two log odds, two or more, none so near the one before that labels touch."""
    ticks: list[float] = []
    for shares in (_PERCENT_TICKS, *([i / count for i in range(1, count)] for count in (100, 1000, 10_000))):
        ticks = []
        for share in shares:
            place = _logit(share)
            if low <= place <= high and (not ticks or place - _logit(ticks[-1]) >= 0.1 * (high - low)):
                ticks.append(share)
        if len(ticks) > 1:
            break
    return ticks


def _distance_drop(results: Results) -> Iterator[_Drawing]:
    metric = results.get("metric", "accuracy")
    sides = (("proxy_a", "proxy A-distance (0 to 2)"), ("jensen_shannon", "Jensen-Shannon divergence of words (bits)"))
    rows = [row for row in results.get("distances") or [] if any(_drops(row, key) for key, _ in sides)]
    shown = [(key, label) for key, label in sides if any(_drops(row, key) for row in rows)]
    if not shown:
        return
    stages = _stages(results, (stage for row in rows for key, _ in shown for stage in _drops(row, key)))
    many = len({row["source"] for row in rows}) > 1
    names = _short_names([f"{row['source']} → {row['target']}" if many else row["target"] for row in rows], 30)
    labelled = len(rows) <= MOST_LABELLED_POINTS
    canvas = _canvas(6.4, 0.6 + 3.9 * len(shown))
    sentences = []
    for axes, (key, label) in zip(_panels(canvas, len(shown), 1), shown, strict=True):
        facts = []
        for stage in stages:
            pairs = [(float(row[key]), found[stage]) for row in rows if stage in (found := _drops(row, key))]
            axes.plot([x for x, _ in pairs], [drop for _, drop in pairs], **_marker(stage, results))
            if (r := _pearson(pairs)) is not None:
                facts.append(f"{_clean(stage)} {r:+.2f}")
        if facts:
            sentences.append(f" Pearson correlation of {label.split(' (')[0]} and drop: {', '.join(facts)}.")
        axes.margins(x=0.08)
        axes.axhline(0, color=INK, linewidth=0.6)
        if labelled:
            _name_columns(axes, [(float(row[key]), n) for row, n in zip(rows, names, strict=True) if _drops(row, key)])
        _number_axis(axes, "y", metric, is_difference=True)
        axes.set_xlabel(label)
        points = " (points)" if is_fraction(metric) else ""
        axes.set_ylabel(
            f"{'drop' if results.get('higher_is_better', True) else 'rise'} of {_metric_label(metric)}{points}"
        )
    _legend(canvas, [_handle(stage, results) for stage in stages], columns=4)
    pairs_count = "1 pair" if len(rows) == 1 else f"{len(rows)} pairs"
    doubt = "so few settle no correlation." if len(rows) <= 30 else "pairs that share a domain are not independent."
    yield _Drawing(
        "distance_drop",
        "Distance and drop",
        f"Each column of points is a {'pair of source and target' if many else 'target domain'}; its height is how "
        f"much worse the score is than in-domain.{''.join(sentences)} From {pairs_count} of source and target: {doubt}"
        + ("" if labelled else f" Names are left out beyond {MOST_LABELLED_POINTS} pairs."),
        canvas,
    )


def _drops(row: Row, key: str) -> dict[str, float]:
    """Loss by strategy or control, of those with a number, where the distance has one."""
    if not math.isfinite(_number(row.get(key))):
        return {}
    found = {stage: _number(drop) for stage, drop in (row.get("drop") or {}).items()}
    return {stage: drop for stage, drop in found.items() if math.isfinite(drop)}


def _pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < 3:
        return None  # of two points it is always 1
    x, y = np.array(pairs, dtype=np.float64).T
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 1e-12 else None


def _name_columns(axes: Axes, places: Sequence[tuple[float, str]]) -> None:
    """Write names in a row above the axes, moved apart where columns lie too near, each with a line to its column."""
    low, high = axes.get_xlim()
    ordered = sorted(places)
    wanted = [(x - low) / (high - low) for x, _ in ordered]
    gap = 0.034  # share of a panel that a turned line of text takes
    at: list[float] = []
    for x in wanted:
        at.append(max(x, at[-1] + gap) if at else x)
    limit = 1.0
    for i in reversed(range(len(at))):
        at[i] = min(at[i], limit)
        limit = at[i] - gap
    for (x, name), share, own in zip(ordered, at, wanted, strict=True):
        axes.axvline(x, color=INK, alpha=0.2, linewidth=0.6)
        axes.plot([own, share], [1.0, 1.05], color=INK, alpha=0.4, linewidth=0.6, transform=axes.transAxes,
                  clip_on=False)  # fmt: skip
        axes.text(share, 1.06, name, transform=axes.transAxes, rotation=50, rotation_mode="anchor", ha="left",
                  va="center")  # fmt: skip


# ---- confidence ------------------------------------------------------------------------------------------------


def _reliability(results: Results) -> Iterator[_Drawing]:
    rows = [row for row in results.get("calibration") or [] if row.get("bins")]
    stages = _stages(results, (row["strategy"] for row in rows))
    if not stages:
        return
    kinds = (("bins", "as trained", "-", True), ("bins_scaled", "after temperature", ":", False))
    canvas, grid = _panels_for(stages, 2.6, 2.55)
    values = [
        b[key] for row in rows for kind, *_ in kinds for b in row.get(kind) or [] for key in ("confidence", "accuracy")
    ]
    low = max(0.0, math.floor(10 * min(values)) / 10 - 0.02)
    for axes, stage in zip(grid, stages, strict=True):
        axes.plot([low, 1], [low, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        for role, (colour, marker) in _ROLE_LOOKS.items():
            mine = [row for row in rows if (row["strategy"], row["role"]) == (stage, role)]
            for key, _, line, filled in kinds:
                x, y = _pooled_bins([row.get(key) or [] for row in mine])
                axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=3.8, linewidth=1.1,
                          markerfacecolor=colour if filled else "none")  # fmt: skip
        axes.set_xlim(low, 1.02)
        axes.set_ylim(low, 1.02)
        axes.set_aspect("equal")
        axes.set_title(_clean(stage))
        for side in ("x", "y"):
            _number_axis(axes, side, "accuracy")
    _outer_labels(grid, "confidence (mean of a bin)", "accuracy (of a bin)")
    roles = [role for role in _ROLE_LOOKS if any(row["role"] == role for row in rows)]
    handles = [
        _line_handle(f"{_ROLES[role]}, {text}", line, *_ROLE_LOOKS[role], filled=filled)
        for role in roles
        for _, text, line, filled in kinds
    ]
    _legend(canvas, [_line_handle("confidence = accuracy", (0, (1, 2))), *handles], columns=2)
    facts = []
    for stage in stages:
        parts = []
        for role in roles:
            mine = [row for row in rows if (row["strategy"], row["role"]) == (stage, role)]
            before, after = (_mean(row.get(key) for row in mine) for key in ("ece", "ece_scaled"))
            if math.isfinite(before):
                scaled = f" (after temperature {_percent(after)})" if math.isfinite(after) else ""
                parts.append(f"{_ROLES[role]} {_percent(before)}{scaled}")
        if parts:
            facts.append(f"{_clean(stage)} {', '.join(parts)}")
    seeds = _seeds(row.get("seed") for row in rows)
    together = ", all seeds together" if seeds.startswith("Mean") else ""
    yield _Drawing(
        "reliability",
        "Confidence against accuracy",
        f"Below the diagonal a model is too sure of itself. Bins hold about equally many examples{together}; "
        "the temperature is fitted in-domain."
        + (f" Calibration error, {seeds.lower()}: {'; '.join(facts)}." if facts else ""),
        canvas,
    )


def _pooled_bins(runs: Sequence[Sequence[Row]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence and accuracy of the bins of several runs, neighbours merged into as many as one run has."""
    counted = (b for run in runs for b in run if b["count"])
    bins = sorted(counted, key=lambda b: (b["confidence"], b["accuracy"], b["count"]))
    if not bins:
        return np.array([]), np.array([])
    counts = np.array([b["count"] for b in bins], dtype=np.float64)
    wanted = max(len(run) for run in runs)
    if len(bins) > wanted:
        middle = np.cumsum(counts) - counts / 2
        group = np.minimum((wanted * middle / counts.sum()).astype(int), wanted - 1)
    else:
        group = np.arange(len(bins))
    total = np.bincount(group, weights=counts)
    x, y = (
        np.bincount(group, weights=counts * np.array([b[key] for b in bins])) / np.where(total > 0, total, np.nan)
        for key in ("confidence", "accuracy")
    )
    return x[total > 0], y[total > 0]


def _risk_coverage(results: Results) -> Iterator[_Drawing]:
    rows = [row for row in results.get("calibration") or [] if row.get("risk_coverage")]
    roles = [role for role in _ROLES if any(row["role"] == role for row in rows)]
    if not roles:
        return
    stages = _stages(results, (row["strategy"] for row in rows))
    canvas = _canvas(0.5 + 3.2 * len(roles), 3.2)
    grid = _panels(canvas, len(roles), len(roles), sharey=True)
    for axes, role in zip(grid, roles, strict=True):
        for stage in stages:
            curves = [row["risk_coverage"] for row in rows if (row["strategy"], row["role"]) == (stage, role)]
            if curves:
                x, y = _mean_curve(curves)
                axes.plot(x, y, markevery=max(1, len(x) // 6), **_marker(stage, results, line=True))
        axes.set_title(_ROLES[role])
        axes.set_xlim(0, 1.01)
        axes.set_xlabel("coverage: share of examples answered")
        for side in ("x", "y"):
            _number_axis(axes, side, "accuracy")
    grid[0].set_ylim(bottom=0)  # after the last line: it ends the search for limits
    grid[0].set_ylabel("risk: errors among the answered")
    _legend(canvas, [_handle(stage, results, line=True) for stage in stages], columns=4)
    facts = []
    for stage in stages:
        at_80 = [
            f"{_ROLES[role]} {_percent(value)}"
            for role in roles
            if math.isfinite(
                value := _mean(
                    row.get("accuracy_at_80") for row in rows if (row["strategy"], row["role"]) == (stage, role)
                )
            )
        ]
        if at_80:
            facts.append(f"{_clean(stage)} {', '.join(at_80)}")
    yield _Drawing(
        "risk_coverage",
        "Errors when the least confident examples are rejected",
        f"Lower is better; the right end is the error on all examples. {_seeds(row.get('seed') for row in rows)}."
        + (f" Accuracy on the most confident 80%: {'; '.join(facts)}." if facts else ""),
        canvas,
    )


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and mean risk: read at the coverages of the longest curve, from where all of them have begun."""
    arrays = [np.array(sorted(map(tuple, curve)), dtype=np.float64) for curve in curves]
    x = max(arrays, key=len)[:, 0]
    x = x[x >= max(array[0, 0] for array in arrays) - 1e-12]
    return x, np.mean([np.interp(x, array[:, 0], array[:, 1]) for array in arrays], axis=0)


# ---- confusion -------------------------------------------------------------------------------------------------


def _confusion(results: Results) -> Iterator[_Drawing]:
    found: dict[tuple[str, str], np.ndarray] = {}
    names: list[str] = []
    for item in results.get("confusion") or []:
        counts = np.nan_to_num(np.array(item.get("counts") or [], dtype=np.float64))
        if counts.size == 0 or not counts.sum() or (names and len(names) != len(counts)):
            continue
        names = names or list(item["names"])
        key = (item["strategy"], item["role"])
        found[key] = found.get(key, 0) + counts  # directions together
    if not found:
        return
    stages = _stages(results, (strategy for strategy, _ in found))
    roles = [role for role in _ROLES if any((stage, role) in found for stage in stages)]
    if len(names) > MOST_CLASSES_IN_A_MATRIX:
        yield _confused_pairs(results, found, names, stages, roles)
        return
    size = max(1.35, 0.36 * len(names))
    canvas = _canvas(1.8 + (size + 0.3) * len(roles), 1.3 + (size + 0.35) * len(stages))
    grid = _panels(canvas, len(stages) * len(roles), len(roles), sharex=True, sharey=True)
    short = _short_names(names, 16)
    for axes, (stage, role) in zip(grid, itertools.product(stages, roles), strict=True):
        if (stage, role) not in found:
            axes.set_axis_off()
            continue
        shares = _row_shares(found[stage, role])
        texts = [["–" if math.isnan(share) else f"{100 * share:.0f}" for share in row] for row in shares]
        _heat_map(axes, shares, texts, short, short, limits=(0.0, 1.0))
        axes.set_aspect("equal")
        axes.set_title(f"{_clean(stage)}, {_ROLES[role]}")
        axes.label_outer()
    _outer_labels(grid, "predicted", "reference", columns=len(roles))
    yield _Drawing(
        "confusion",
        "Which classes are taken for which",
        "Percent of the examples of a class (row) that were predicted as each class (column), seeds together; "
        "a row adds up to 100, a dash stands for a class without examples.",
        canvas,
    )


def _row_shares(counts: np.ndarray) -> np.ndarray:
    """[reference, predicted] shares of the row; nan where a class has no examples."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def _confused_pairs(
    results: Results,
    found: Mapping[tuple[str, str], np.ndarray],
    names: Sequence[str],
    stages: Sequence[str],
    roles: Sequence[str],
) -> _Drawing:
    short = _short_names(names)
    canvas = _canvas(6.4, 1.0 + (0.19 * MOST_PAIRS + 0.6) * len(roles))
    grid = _panels(canvas, len(roles), 1, sharex=True)
    for axes, role in zip(grid, roles, strict=True):
        shares = {stage: _row_shares(found[stage, role]) for stage in stages if (stage, role) in found}
        mean = np.nan_to_num(np.mean(list(shares.values()), axis=0))
        np.fill_diagonal(mean, 0)
        order = np.argsort(-mean, axis=None, kind="stable")[:MOST_PAIRS]
        pairs = [divmod(int(place), len(names)) for place in order if mean.flat[place] > 0]
        axes.barh(range(len(pairs)), [mean[pair] for pair in pairs], height=0.7, color=INK, alpha=0.18, linewidth=0)
        for y, pair in enumerate(pairs):
            for stage, share in shares.items():
                axes.plot([share[pair]], [y], clip_on=False, **_marker(stage, results))
        labels = [f"{short[reference]} → {short[predicted]}" for reference, predicted in pairs]
        axes.set_yticks(range(len(pairs)), labels)
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_title(_ROLES[role])
        _number_axis(axes, "x", "accuracy")
    grid[-1].set_xlim(left=0)  # after the last point: it ends the search for limits
    grid[-1].set_xlabel("share of the examples of the first class")
    _legend(canvas, [_handle(stage, results) for stage in stages], columns=4)
    return _Drawing(
        "confusion",
        "Which classes are taken for which",
        f"The {MOST_PAIRS} most confused pairs of {len(names)} classes, reference → predicted: bars are means over "
        "strategies, markers the strategies, seeds together. Shares of classes with few examples jump.",
        canvas,
    )


# ---- training --------------------------------------------------------------------------------------------------


def _training(results: Results) -> Iterator[_Drawing]:
    rows = results.get("training") or []
    selection = (results.get("selection") or {}).get("metric") or results.get("metric", "accuracy")
    label = f"validation {_metric_label(selection)}"
    sides = (("steps", "loss", "training loss", "loss"), ("validation_steps", "validation", label, selection))
    shown = [side for side in sides if any(np.isfinite(_array(row.get(side[1]))).any() for row in rows)]
    if not shown:
        return
    stages = _stages(results, (row["strategy"] for row in rows))
    several = len(rows) > len(stages)
    canvas = _canvas(0.4 + 3.3 * len(shown), 3.2)
    for axes, (x_key, y_key, label, metric) in zip(_panels(canvas, len(shown), len(shown)), shown, strict=True):
        for stage in stages:
            colour, _, _ = _look(stage, results)
            runs = [
                (x, y)
                for row in rows
                if row["strategy"] == stage
                and len(x := _array(row.get(x_key))) == len(y := _array(row.get(y_key)))
                and len(x)
            ]
            for x, y in runs:
                axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.45 if len(runs) <= 5 else 0.15)
            if runs:
                common = sorted(set.intersection(*({float(step) for step in x} for x, _ in runs)))
                mean = [np.mean([y[x == step][0] for x, y in runs]) for step in common]
                axes.plot(common, mean, markevery=max(1, len(common) // 6), **_marker(stage, results, line=True))
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.margins(x=0.03)
        _number_axis(axes, "y", metric)
    _legend(canvas, [_handle(stage, results, line=True) for stage in stages], columns=4)
    yield _Drawing(
        "training",
        "Training",
        "By step of the optimiser."
        + (" Thin lines are runs, thick ones their mean at the steps that all of them reached." if several else ""),
        canvas,
    )


# ---- shared by figures -----------------------------------------------------------------------------------------


def _canvas(width: float, height: float) -> Canvas:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained")


def _panels(canvas: Canvas, count: int, columns: int, **shared: Any) -> list[Axes]:
    """``count`` axes in rows of ``columns``; the places left over stay empty."""
    grid = canvas.subplots(math.ceil(count / columns), columns, squeeze=False, **shared).ravel().tolist()
    for axes in grid[count:]:
        axes.set_axis_off()
    return grid[:count]


def _panels_for(stages: Sequence[str], width: float, height: float) -> tuple[Canvas, list[Axes]]:
    columns = min(2, len(stages))
    canvas = _canvas(0.5 + max(width * columns, 4.4), 0.9 + height * math.ceil(len(stages) / columns))
    return canvas, _panels(canvas, len(stages), columns, sharex=True, sharey=True)


def _outer_labels(grid: Sequence[Axes], x: str, y: str, columns: int | None = None) -> None:
    """Label the axes at the left and at the foot of each column; the others share them."""
    columns = columns or min(2, len(grid))
    for number, axes in enumerate(grid):
        if number % columns == 0:
            axes.set_ylabel(y)
        if number + columns >= len(grid):
            axes.set_xlabel(x)
            axes.tick_params(axis="x", labelbottom=True)


def _legend(canvas: Canvas, handles: Sequence[Line2D], columns: int) -> None:
    canvas.legend(handles=list(handles), loc="outside upper left", ncols=min(columns, len(handles)), columnspacing=1.4)


def _stages(results: Results, found: Iterable[str]) -> list[str]:
    """Strategies and controls that occur, in the order of the report: strategies, controls, then any other."""
    present = list(dict.fromkeys(found))
    known = [*(results.get("strategies") or []), *(results.get("controls") or [])]
    return sorted(present, key=lambda name: known.index(name) if name in known else len(known))


def _look(stage: str, results: Results) -> tuple[str, str, Any]:
    if stage in _LOOKS:
        return _LOOKS[stage]
    names = [*(results.get("strategies") or []), *(results.get("controls") or [])]
    unknown = [name for name in names if name not in _LOOKS]
    return _SPARE_LOOKS[(unknown.index(stage) if stage in unknown else 0) % len(_SPARE_LOOKS)]


def _marker(stage: str, results: Results, line: bool = False) -> dict[str, Any]:
    """How ``Axes.plot`` draws a strategy or control: markers alone, or on a line."""
    colour, marker, style = _look(stage, results)
    return {
        "color": colour,
        "marker": marker,
        "markerfacecolor": colour if stage in (results.get("strategies") or []) else "none",
        "linestyle": style if line else "none",
        **({"markersize": 6.5, "markeredgewidth": 0.4} if marker in _JAGGED else {}),
    }


def _handle(stage: str, results: Results, line: bool = False) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=_visible(_clean(stage)), **_marker(stage, results, line))


def _line_handle(label: str, line: Any, colour: str = INK, marker: str = "", filled: bool = True) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, linestyle=line, color=colour, marker=marker, linewidth=1.0, markersize=4,
                  markerfacecolor=colour if filled else "none")  # fmt: skip


def _number_axis(axes: Axes, side: str, metric: str, is_difference: bool = False, ticks: int = 6) -> None:
    """Percent on the ticks of fractions, points where the axis shows differences; few round ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10]))
    if is_fraction(metric):
        unit = "" if is_difference else "%"
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6) + 0.0:g}{unit}"))
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 9) + 0.0:g}"))


def _metric_label(metric: str) -> str:
    return metric_words(metric) if in_points(metric) else _clean(metric).replace("_", " ")


def _heading(metric: str) -> str:
    """The metric at the beginning of a title or sentence."""
    return metric_words(metric) if in_points(metric) else _metric_label(metric).capitalize()


def _percent(share: float) -> str:
    return format_value("accuracy", share)


def _seeds(seeds: Iterable[Any]) -> str:
    """What a value stands for: results may hold details of fewer seeds than scores."""
    count = len({seed for seed in seeds if seed is not None})
    return f"Mean over {count} seeds" if count > 1 else "One seed"


def _level(results: Results) -> str:
    return f"{100 * results.get('confidence', 0.95):g}%"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _array(values: Any) -> np.ndarray:
    """float64, nan for null; empty for null itself."""
    return np.array(values if values is not None else [], dtype=np.float64)


def _mean(values: Iterable[Any]) -> float:
    """Mean of those that are defined; nan of none."""
    found = [float(value) for value in values if value is not None]
    return float(np.mean(found)) if found else math.nan


# ---- text from data --------------------------------------------------------------------------------------------


def _clean(text: Any) -> str:
    """On one line, without what XML cannot hold or what steers the direction of writing."""
    return re.sub(r"[\ufffe\uffff\u200e\u200f\u061c]", "\ufffd", one_line(str(text)))


def _visible(text: str) -> str:
    """matplotlib leaves labels that begin with an underscore out of a legend: a space in front shows them."""
    return f" {text}" if text.startswith("_") else text


def _short_names(names: Sequence[Any], longest: int = LONGEST_NAME) -> list[str]:
    """Names that fit beside an axis, each still different from the others."""
    short: list[str] = []
    for name in names:
        text = _clean(name)
        if len(text) > longest:  # the end stays too: names often differ there
            tail = longest // 3
            text = f"{text[: longest - tail - 1].rstrip()}…{text[-tail:].lstrip()}"
        short.append(next(label for n in itertools.count(1) if (label := _numbered(text, n)) not in short))
    return short


def _numbered(text: str, number: int) -> str:
    return text if number == 1 else f"{text} ({number})"


# ---- SVG -------------------------------------------------------------------------------------------------------


def _finish(drawing: _Drawing) -> Figure:
    buffer = io.StringIO()
    drawing.canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    title, caption = _clean(drawing.title), _clean(drawing.caption)
    width_px = math.ceil(drawing.canvas.get_figwidth() * _UNITS_PER_INCH)
    return Figure(drawing.name, title, caption, _embeddable(buffer.getvalue(), drawing.name, title, caption), width_px)


def _embeddable(svg: str, name: str, title: str, description: str) -> str:
    """What matplotlib wrote, as an element for the body of an HTML page.

    Without declaration, metadata and style sheet (which would hold for the whole page); presentation attributes in
    place of ``style``, so that a strict content security policy does not blank it; only the ids that something points
    at, behind ``name``; currentColor for ``INK``; words for screen readers in front.
    """
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = dict(element.attrib)
        element.attrib.clear()
        for declaration in filter(str.strip, attributes.pop("style", "").split(";")):
            key, _, value = declaration.partition(":")
            attributes[key.strip()] = value.strip()
        if element.tag == "text":
            attributes.pop("font-family", None)  # set once, at the root
        for key, value in attributes.items():
            key = key.rpartition("}")[2]
            if key == "id":
                if value in used:
                    element.set("id", f"{name}-{value}")
            elif key == "href":
                element.set("href", f"#{name}-{value.removeprefix('#')}")
            else:
                element.set(key, value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor"))
        if element.tag == "path" and "d" in element.attrib:
            element.set("d", " ".join(_rounded(element.attrib["d"]).split()))
        for key in ("x", "y", "transform"):
            if key in element.attrib:
                element.set(key, _rounded(element.attrib[key]))
        if element.tag != "text":
            element.text = None
        element.tail = "\n"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    view_box = root.attrib["viewBox"]
    root.attrib.clear()
    ids = f"{name}-title", f"{name}-description"
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": ids[place]})
        element.text, element.tail = text, "\n"
        root.insert(place, element)
    root.attrib.update(
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": view_box,
            "role": "img",
            "aria-labelledby": " ".join(ids),
            "font-family": _FONTS,
            "stroke-linejoin": "round",
            "fill": "currentColor",  # of all text: matplotlib leaves black out
        }
    )
    return ElementTree.tostring(root, encoding="unicode")


def _rounded(text: str) -> str:
    """Numbers to a hundredth of a unit: a third of the bytes less, and nothing that an eye sees."""
    return re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found.group()), 2) + 0.0:g}", text)
