"""What a task is: samples named by their places, each asked of a target and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from moorage.runtime.evals.targets import Target


class Metric(StrEnum):
    """What the score of a sample is, and the name of its mean."""

    ACCURACY = "accuracy"
    """Right or wrong: 1 or 0, or the share of a sample's parts that are right."""
    SCORE = "score"
    """A likeness to the reference, 0 to 1."""
    LOSS = "loss"
    """Nats per token; lower is better."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which sample of a task it is. With the seed it decides the sample."""

    index: int
    length: int | None = None
    """Tokens of prompt and answer together; None where the data decides."""
    depth: float | None = None
    """Share of the text before the fact; None where there is no such place."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the target made of one sample."""

    score: float
    output: str
    answers: tuple[str, ...]
    prompt_tokens: int
    seconds: float
    recall: float | None = None
    budget_tokens: int = 0
    """Most tokens attended per layer and decode step; 0 stands for all."""
    cut_tokens: int = 0
    """Prompt tokens that were cut out to make it fit."""
    cut_answer: bool = False
    """Whether the limit of tokens ended the answer, and not the model."""


class Task(Protocol):
    """A set of samples with known answers."""

    @property
    def name(self) -> str:
        """Names the task in tables and files."""

    @property
    def metric(self) -> Metric:
        """What its scores are."""

    @property
    def by_depth(self) -> bool:
        """Whether results are kept by depth."""

    def settings(self) -> Mapping[str, Any]:
        """Whatever else decides the samples; JSON values."""

    def places(self) -> Sequence[Place]:
        """All samples, in the order of the results."""

    def measure(self, place: Place, target: Target) -> Outcome:
        """Builds one sample, asks the target and scores the answer."""


class ByLength:
    """One task with other samples at each length."""

    def __init__(self, parts: Mapping[int, Task]) -> None:
        """`parts`: at least one length, each with the task that has its samples; all of one kind."""
        self._parts = dict(parts)
        first = next(iter(self._parts.values()))
        self.name, self.metric, self.by_depth, self._settings = (
            first.name,
            first.metric,
            first.by_depth,
            first.settings(),
        )

    def settings(self) -> Mapping[str, Any]:
        """The settings of every part."""
        return self._settings

    def places(self) -> Sequence[Place]:
        """The parts' samples, length by length."""
        return [place for part in self._parts.values() for place in part.places()]

    def measure(self, place: Place, target: Target) -> Outcome:
        """Measures as the part of the place's length does."""
        assert place.length is not None
        return self._parts[place.length].measure(place, target)


@dataclass(frozen=True, slots=True)
class Suite:
    """Tasks that are run and reported together."""

    name: str
    tasks: tuple[Task, ...]
    seed: int = 0
    longest: Mapping[str, int] = field(default_factory=dict)
    """Most tokens of a sample, by choice: longer samples are left out."""

    def settings(self) -> dict[str, Any]:
        """What else decides the samples of each task."""
        return {task.name: dict(task.settings()) for task in self.tasks}


def spread(lengths: Sequence[int], samples: int, depths: Sequence[float] | None) -> list[Place]:
    """`samples` of each length, and of each depth where depths are given.

    Without depths they lie in the middle of `samples` equal parts of the text.
    """
    if depths is None:
        middles = [(index + 0.5) / samples for index in range(samples)]
        return [Place(index, length, depth) for length in lengths for index, depth in enumerate(middles)]
    return [Place(index, length, depth) for length in lengths for depth in depths for index in range(samples)]
