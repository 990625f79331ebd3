"""Pictures of results: depth by length as a heatmap, and scores over length as curves; PNG files or inline SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage.runtime.config.units import format_tokens
from moorage.workers.errors import InvalidRequest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = ("accuracy", "score", "loss")
_PANEL_INCHES = (4.6, 3.0)
_MOST_COLUMNS = 3
MARKERS = "osD^vPX*"
"""Markers of curves and points, one for each label."""


@dataclass(frozen=True, slots=True)
class Point:
    """One row of a result, as the pictures need it."""

    task: str
    label: str
    """The preset or variant, as the legend names it."""
    length: int
    depth: float | None
    metric: str
    value: float

    @classmethod
    def of(cls, row: dict[str, Any], task: str, label: str) -> Point:
        """A row of a summary's JSON."""
        metric = next(name for name in METRICS if name in row)
        return cls(row.get("task", task), label, row["length"], row.get("depth"), metric, row[metric])


def draw(points: Sequence[Point], title: str) -> list[Figure]:
    """A heatmap of results by depth, curves of results by length; nothing where there is one depth and one length.

    Raises InvalidRequest without matplotlib.
    """
    deep = [point for point in points if point.depth is not None]
    flat = [point for point in points if point.depth is None]
    figures = [_heatmaps(deep, title)] if len({point.depth for point in deep}) > 1 else []
    if flat and all(_is_by_length(flat)):
        figures.append(_curves(flat, title))
    return figures


def save_png(figure: Figure, path: Path) -> None:
    """Writes a picture."""
    figure.savefig(path, dpi=120)


def as_svg(figure: Figure) -> str:
    """The picture as an element of a page, its letters as text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "moorage"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _is_by_length(points: Sequence[Point]) -> Iterable[bool]:
    """Whether each task was measured at more than one length."""
    for task in {point.task for point in points}:
        yield len({point.length for point in points if point.task == task}) > 1


def _heatmaps(points: Sequence[Point], title: str) -> Figure:
    panels = list(dict.fromkeys((point.task, point.label) for point in points))
    figure, axes = new_figure(len(panels), title)
    for axis, (task, label) in zip(axes, panels, strict=False):
        own = [point for point in points if (point.task, point.label) == (task, label)]
        lengths = sorted({point.length for point in own})
        depths = sorted({point.depth for point in own if point.depth is not None})
        cells = {(point.depth, point.length): point.value for point in own}
        grid = [[cells.get((depth, length), math.nan) for length in lengths] for depth in depths]
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_xticks(range(len(lengths)), [format_tokens(length) for length in lengths], fontsize=8)
        axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
        axis.set_xlabel("tokens")
        axis.set_ylabel("depth of the fact")
        axis.set_title(label if len({task for task, _ in panels}) == 1 else f"{task}, {label}", fontsize=10)
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                if not math.isnan(value):
                    colour = "white" if abs(value - 0.5) > 0.35 else "black"
                    axis.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes[: len(panels)], label=own[0].metric)
    return figure


def _curves(points: Sequence[Point], title: str) -> Figure:
    tasks = list(dict.fromkeys(point.task for point in points))
    labels = list(dict.fromkeys(point.label for point in points))
    figure, axes = new_figure(len(tasks), title)
    for axis, task in zip(axes, tasks, strict=False):
        own = [point for point in points if point.task == task]
        for number, label in enumerate(labels):
            line = sorted((point.length, point.value) for point in own if point.label == label)
            if line:
                marker = MARKERS[number % len(MARKERS)]
                axis.plot(*zip(*line, strict=True), marker=marker, markersize=4, linewidth=1.4, label=label)
        lengths = sorted({point.length for point in own})
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [format_tokens(length) for length in lengths], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel("tokens")
        if len(tasks) > 1:
            axis.set_title(task, fontsize=10)
        axis.grid(alpha=0.3)
        if own[0].metric == "loss":
            axis.set_ylabel("loss, nats per token")
        else:
            axis.set_ylabel(own[0].metric)
            axis.set_ylim(-0.03, 1.03)
    if len(labels) > 1:
        axes[0].legend(fontsize=8)
    return figure


def new_figure(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows. Raises InvalidRequest without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidRequest("pictures need matplotlib; pip install 'moorage[eval]'") from None
    columns = min(count, _MOST_COLUMNS)
    rows = -(-count // columns)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * columns + 0.8, height * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes
