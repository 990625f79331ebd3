"""The picture of a comparison of formats: perplexity over bytes, and what each format retrieves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.formats.standings import Retrieved, Standing
from moorage.runtime.evals.pictures import MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(found: Sequence[Standing], title: str) -> Figure | None:
    """A panel of perplexity and one of tasks, as far as they were measured; None where neither was.

    Raises InvalidRequest without matplotlib.
    """
    measured = [standing for standing in found if standing.perplexity is not None]
    asked = [standing for standing in found if standing.retrieved]
    if not measured and not asked:
        return None
    figure, axes = new_figure(bool(measured) + bool(asked), title)
    if measured:
        _losses(axes[0], measured)
    if asked:
        _tasks(axes[bool(measured)], asked)
    return figure


def _losses(axis: Axes, found: Sequence[Standing]) -> None:
    for number, standing in enumerate(found):
        assert standing.perplexity is not None
        low, high = standing.perplexity.change_interval or (standing.perplexity.change,) * 2
        change = 100 * standing.perplexity.change
        axis.errorbar(
            [standing.kv_bytes],
            [change],
            yerr=[[change - 100 * low], [100 * high - change]],
            marker=MARKERS[number % len(MARKERS)],
            capsize=2,
            linestyle="none",
            label=standing.name,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("symlog", linthresh=1)
    axis.set_xlabel("bytes of keys and values, a token")
    axis.set_ylabel(f"perplexity above {found[0].name}, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _tasks(axis: Axes, found: Sequence[Standing]) -> None:
    cells = found[0].retrieved
    grid = [[cell.score for cell in standing.retrieved] for standing in found]
    axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axis.set_xticks(range(len(cells)), [_name(cell) for cell in cells], fontsize=7, rotation=60, ha="right")
    axis.set_yticks(range(len(found)), [standing.name for standing in found], fontsize=8)
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            colour = "white" if abs(value - 0.5) > 0.35 else "black"
            axis.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=6, color=colour)


def _name(cell: Retrieved) -> str:
    return f"{cell.task} {format_tokens(cell.length)}"
