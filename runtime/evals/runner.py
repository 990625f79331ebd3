"""Runs the tasks of a suite on every choice of memory and sums the samples up in rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from moorage.runtime.evals.intervals import bootstrap, wilson
from moorage.runtime.evals.journal import Journal, Key, Record
from moorage.runtime.evals.targets import Targets
from moorage.runtime.evals.tasks import Metric, Outcome, Place, Suite, Task
from moorage.workers.counting import counted


@dataclass(frozen=True, slots=True)
class Row:
    """The samples of one task, choice and length, and of one depth where results are kept by depth."""

    task: str
    preset: str
    metric: Metric
    length: int
    """The length that was asked for; where the data decides, that of the longest prompt."""
    depth: float | None
    value: float
    samples: int
    recall: float | None
    budget_tokens: int
    seconds: float
    """Mean of a sample."""
    cut_samples: int = 0
    """Samples whose prompt was truncated."""
    cut_answers: int = 0
    """Answers that the limit of tokens ended and that are not wholly right."""
    interval: tuple[float, float] | None = None
    """95 % interval of `value`: Wilson's of an accuracy, the bootstrap's of any other mean."""

    @property
    def perplexity(self) -> float | None:
        """exp(loss), where the metric is a loss."""
        return math.exp(self.value) if self.metric is Metric.LOSS else None

    def as_json(self) -> dict[str, Any]:
        """The row by name, without what it does not have."""
        values = {
            "task": self.task,
            "preset": self.preset,
            "length": self.length,
            "depth": self.depth,
            self.metric.value: self.value,
            "perplexity": self.perplexity,
            "samples": self.samples,
            "interval": None if self.interval is None else list(self.interval),
            "recall": self.recall,
            "budget_tokens": self.budget_tokens,
            "seconds": self.seconds,
            "cut_samples": self.cut_samples or None,
            "cut_answers": self.cut_answers or None,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to."""

    suite: Suite
    model: str
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    records: tuple[Record, ...]
    """Every sample, in the order of the rows."""
    remarks: tuple[str, ...] = ()
    """What should be known beside the figures, a line each."""

    def as_json(self) -> dict[str, Any]:
        """{"task", "model", "preset", "rows", "mean"}; rows name task and preset where there are several."""
        shared = set()
        if len(self.suite.tasks) == 1:
            shared.add("task")
        if len(self.labels) == 1:
            shared.add("preset")
        rows = [{k: v for k, v in row.as_json().items() if k not in shared} for row in self.rows]
        report: dict[str, Any] = {
            "task": self.suite.name,
            "model": self.model,
            "preset": ", ".join(self.labels),
            "seed": self.suite.seed,
            "rows": rows,
            "mean": self.mean(),
        }
        if self.remarks:
            report["remarks"] = list(self.remarks)
        if len(self.labels) > 1:
            report["means"] = {label: self.mean(label) for label in self.labels}
        return report

    def mean(self, label: str | None = None) -> float:
        """Mean of the rows of one choice, or of all; losses count only where there is nothing else."""
        rows = [row for row in self.rows if label in (None, row.preset)]
        scores = [row.value for row in rows if row.metric is not Metric.LOSS]
        return fmean(scores or [row.value for row in rows])


def run(
    suite: Suite,
    targets: Targets,
    output: Path | None = None,
    notify: Callable[[Record, bool], None] = lambda _record, _is_new: None,
) -> Summary:
    """Measures every sample that `output` does not hold yet; `notify` is called with each, and whether it is new.

    Raises what targets and tasks raise; what was finished until then is kept in `output`.
    """
    identity = {"task": suite.name, "model": targets.model, "seed": suite.seed}
    choices = {label: targets.settings(label) for label in targets.labels}
    journal = Journal(output, identity, {"tasks": suite.settings(), "choices": choices})
    try:
        for key, task in plan(suite, targets):
            known = journal.found.get(key)
            record = Record(key, known or task.measure(key.place, targets.at(key.preset, key.place.length)))
            if known is None:
                journal.add(record)
            notify(record, known is None)
    finally:
        journal.close()
    return summarise(suite, targets, journal)


def summarise(suite: Suite, targets: Targets, journal: Journal) -> Summary:
    """Rows in the order of the plan, whichever way the samples came in."""
    groups: dict[tuple[str, str, int | None, float | None], list[Outcome]] = {}
    records = []
    metrics = {task.name: task.metric for task in suite.tasks}
    for key, task in plan(suite, targets):
        depth = key.place.depth if task.by_depth else None
        group = groups.setdefault((key.task, key.preset, key.place.length, depth), [])
        group.append(journal.found[key])
        records.append(Record(key, journal.found[key]))
    rows = [
        _row(task, preset, metrics[task], length, depth, outcomes)
        for (task, preset, length, depth), outcomes in groups.items()
    ]
    lengths = sorted({row.length for row in rows})
    remarks = (*targets.remarks(lengths), *same_answers(records))
    return Summary(suite, targets.model, targets.labels, tuple(rows), tuple(records), remarks)


def same_answers(records: Sequence[Record]) -> list[str]:
    """A line for each set of choices that answered every sample of several with the same words."""
    said: dict[str, dict[tuple[str, Place], str]] = {}
    for record in records:
        if record.outcome.output:
            said.setdefault(record.key.preset, {})[record.key.task, record.key.place] = record.outcome.output
    alike: dict[frozenset[tuple[tuple[str, Place], str]], list[str]] = {}
    for label, answers in said.items():
        alike.setdefault(frozenset(answers.items()), []).append(label)
    return [
        f"{', '.join(labels[:-1])} and {labels[-1]} gave the same answers in all {counted(len(answers), 'sample')}"
        for answers, labels in alike.items()
        if len(labels) > 1 and len(answers) > 1
    ]


def plan(suite: Suite, targets: Targets) -> Iterator[tuple[Key, Task]]:
    """Every sample of a run, in the order in which they are measured and reported."""
    for label in targets.labels:
        longest = suite.longest.get(label)
        for task in suite.tasks:
            for place in task.places():
                if longest is None or place.length is None or place.length <= longest:
                    yield Key(task.name, label, place), task


def _row(
    task: str, preset: str, metric: Metric, length: int | None, depth: float | None, outcomes: list[Outcome]
) -> Row:
    recalls = [outcome.recall for outcome in outcomes if outcome.recall is not None]
    budgets = [outcome.budget_tokens for outcome in outcomes]
    scores = [outcome.score for outcome in outcomes]
    value = fmean(scores)
    return Row(
        task=task,
        preset=preset,
        metric=metric,
        length=length or max(outcome.prompt_tokens for outcome in outcomes),
        depth=depth,
        value=value,
        samples=len(outcomes),
        recall=fmean(recalls) if recalls else None,
        budget_tokens=max(budgets) if all(budgets) else 0,
        seconds=fmean(outcome.seconds for outcome in outcomes),
        cut_samples=sum(outcome.cut_tokens > 0 for outcome in outcomes),
        cut_answers=sum(outcome.cut_answer and outcome.score < 1 for outcome in outcomes),
        interval=wilson(value, len(scores)) if metric is Metric.ACCURACY else bootstrap(scores),
    )
