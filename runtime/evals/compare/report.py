"""A comparison as a whole: its plan, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.compare.makers import MADE_TASKS
from moorage.runtime.evals.compare.measure import Answers, Judge, Measured
from moorage.runtime.evals.compare.samples import TEXT_TASKS, SampleMaker
from moorage.runtime.evals.compare.standings import Cell, Standing, cells, standings
from moorage.runtime.evals.fidelity.choices import Frame, choices
from moorage.runtime.evals.fidelity.engines import by_engine
from moorage.runtime.evals.fidelity.passages import Text
from moorage.runtime.evals.local_coder import LocalCoder
from moorage.runtime.evals.local_targets import LocalConfig
from moorage.runtime.evals.variants import Variant
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.hf_config import read_model_spec

TASKS = (*TEXT_TASKS, *MADE_TASKS)


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
    samples: int
    seed: int
    generated: int
    """Tokens of the task `generate`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What it came to."""

    model: str
    frame: Frame
    standings: list[Standing]
    cells: list[Cell]

    @property
    def title(self) -> str:
        """The model and what all choices share."""
        return f"{self.model}: {self.frame.sinks} sinks and a window of {self.frame.window} beside what is selected"

    def as_json(self) -> dict[str, Any]:
        """All of it by name."""
        return {
            "model": self.model,
            **asdict(self.frame),
            "ranking": [standing.as_json() for standing in self.standings],
            "cells": [cell.as_json() for cell in self.cells],
        }


def compare(
    plan: Plan, note: Callable[[str], None], keep: Callable[[Comparison], None] = lambda _found: None
) -> Comparison:
    """Measures the plan; `note` gets a line for each result, and `keep` what there is after each sample.

    Raises InvalidConfig, InvalidModel or InvalidRequest for what can't be compared.
    """
    path = plan.source.load().model.path
    compared = choices(
        plan.source, read_model_spec(path), plan.presets, plan.variants, plan.budgets, plan.frame
    )
    coder = LocalCoder(TextTokenizer.load(path))
    maker = SampleMaker(plan.text, coder, plan.samples, plan.seed, plan.generated)
    samples = [sample for length in plan.lengths for sample in maker.samples(length, plan.tasks)]
    answers: Answers = {}
    results: list[Measured] = []
    for engine, served in by_engine(compared, max(sample.most_tokens for sample in samples)):
        judge = Judge(engine, answers)
        for sample in samples:
            found = judge.compare(sample, served)
            results += found
            for measured in found:
                note(_line(measured))
            keep(_comparison(plan, results))
    return _comparison(plan, results)


def _comparison(plan: Plan, results: Sequence[Measured]) -> Comparison:
    return Comparison(plan.source.load().model.path.name, plan.frame, standings(results), cells(results))


def _line(measured: Measured) -> str:
    budget = "" if measured.budget is None else f" {measured.budget}"
    score = "" if measured.score is None else f", score {measured.score:.2f} (full {measured.full_score:.2f})"
    return (
        f"{measured.task} {format_tokens(measured.length)} sample {measured.index + 1}: {measured.choice}{budget}: "
        f"KL {measured.kl.mean():.5f}, agreement {measured.agrees.mean():.2f}{score}"
    )
