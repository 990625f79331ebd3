"""What a comparison came to: its plan, its cells, what predicts KL, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.fidelity.choices import Frame, choices
from moorage.runtime.evals.fidelity.figures import MEASURES, Cell, cells, points, predictions, retrieval_heads
from moorage.runtime.evals.fidelity.measure import Said, measure
from moorage.runtime.evals.fidelity.passages import Passage, Text, most_tokens, passages
from moorage.runtime.evals.local_coder import LocalCoder
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.evals.local_targets import LocalConfig
from moorage.runtime.evals.pictures import MARKERS, new_figure, save_png
from moorage.runtime.evals.variants import Variant
from moorage.workers.hf_config import read_model_spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SHOWN_KL = 1e-5
"""The least KL on the picture's logarithmic axis; below it is the noise of rounding."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared, on what."""

    source: LocalConfig
    presets: Sequence[str]
    variants: Sequence[Variant]
    budgets: Sequence[int]
    frame: Frame
    text: Text
    tasks: Sequence[str]
    lengths: Sequence[int]
    passages: int


@dataclass(frozen=True, slots=True)
class Report:
    """The cells of a comparison, and what it was made with."""

    model: str
    frame: Frame
    cells: list[Cell]
    retrieval_heads: list[tuple[int, int]]
    """(layer, head) of the heads that attend what a text copies, under full attention."""
    predictions: dict[str, float | None]
    """Measure -> rank correlation with KL."""

    @property
    def title(self) -> str:
        """The model and what all choices share."""
        return f"{self.model}: {self.frame.sinks} sinks and a window of {self.frame.window} beside what is selected"

    def notes(self) -> list[str]:
        """What should be known beside the cells."""
        lines = [f"retrieval heads, found in the task copy: {len(self.retrieval_heads)}"]
        known = {name: value for name, value in self.predictions.items() if value is not None}
        if known:
            said = ", ".join(f"{MEASURES[name]} {value:+.2f}" for name, value in known.items())
            lines.append(f"rank correlation with KL over the cells that select: {said}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {
            "model": self.model,
            **asdict(self.frame),
            "retrieval_heads": [list(head) for head in self.retrieval_heads],
            "rank_correlation_with_kl": self.predictions,
            "cells": [cell.as_json() for cell in self.cells],
        }


def compare(
    plan: Plan, note: Callable[[str], None], keep: Callable[[Report], None] = lambda _report: None
) -> Report:
    """Measures the plan; `note` gets a line for each passage and choice, and `keep` what there is after it.

    Raises as `choices` and `measure` do.
    """
    model = read_model_spec(plan.source.load().model.path)
    compared = choices(plan.source, model, plan.presets, plan.variants, plan.budgets, plan.frame)

    def make(engine: LocalEngine) -> list[Passage]:
        coder = LocalCoder(engine.tokenizer)
        prefix = coder.prefix()
        return [
            passage
            for length in plan.lengths
            for passage in passages(plan.text, coder, prefix, length, plan.tasks, plan.passages)
        ]

    results: list[Said] = []
    for said in measure(compared, make, max(map(most_tokens, plan.lengths))):
        results.append(said)
        note(_line(said))
        keep(_report(plan, results))
    return _report(plan, results)


def _report(plan: Plan, results: Sequence[Said]) -> Report:
    heads = retrieval_heads(results)
    found = cells(results)
    pairs = (
        []
        if heads is None
        else [(int(layer), int(head)) for layer, head in zip(*heads.nonzero(), strict=True)]
    )
    return Report(plan.source.load().model.path.name, plan.frame, found, pairs, predictions(found))


def draw(report: Report, path: Path) -> None:
    """KL over each measure of mass, a point for each cell. Raises InvalidRequest without matplotlib."""
    labels = list(dict.fromkeys(cell.choice for cell in report.cells if cell.index_bytes is not None))
    shown = [share for share in MEASURES if points(report.cells, share)[0]]
    figure, axes = new_figure(len(shown), f"{report.model}: what the attended mass says of KL")
    for axis, share in zip(axes, shown, strict=False):
        for number, label in enumerate(labels):
            mass, kl = points([cell for cell in report.cells if cell.choice == label], share)
            axis.scatter(
                [max(1 - held, LEAST_SHOWN_KL) for held in mass],
                [max(value, LEAST_SHOWN_KL) for value in kl],
                marker=MARKERS[number % len(MARKERS)],
                s=18,
                label=label,
            )
        axis.set(xscale="log", yscale="log", xlabel=f"1 - {MEASURES[share]}", ylabel="KL, nats")
        _label_plainly(axis)
        correlation = report.predictions[share]
        axis.set_title("" if correlation is None else f"rank correlation {correlation:+.2f}", fontsize=10)
        axis.grid(alpha=0.3)
    if shown and len(labels) > 1:
        axes[0].legend(fontsize=7)
    save_png(figure, path)


def _label_plainly(axis: Axes) -> None:
    """Labels a logarithmic axis of shares at 1, 2 and 5 of each decade; further ones would overlap."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _line(said: Said) -> str:
    budget = "" if said.budget is None else f" {said.budget}"
    return (
        f"{said.task} {format_tokens(said.length)} passage {said.passage + 1}: {said.choice}{budget}: "
        f"KL {said.kl.mean():.5f}, agreement {said.agrees.mean():.2f}"
    )
