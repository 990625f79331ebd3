"""Runs a suite with a progress bar, and shows and keeps what it came to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moorage.runtime.cli.eval_options import RunOptions
from moorage.runtime.cli.output import print_json, print_note, print_table
from moorage.runtime.evals.journal import Record
from moorage.runtime.evals.runner import Row, Summary, num_samples, run
from moorage.runtime.evals.targets import Targets
from moorage.runtime.evals.tasks import Metric, Suite
from moorage.runtime.units import format_tokens

_MOST_SHOWN = 60
"""Characters of an answer in a line of the log."""


def measure(suite: Suite, targets: Targets, options: RunOptions) -> Summary:
    """Runs a suite while the bar shows the samples and the time left."""
    with _bar(suite, num_samples(suite, targets)) as notify:
        return run(suite, targets, options.output, notify)


def publish(summary: Summary, options: RunOptions, more: dict[str, Any] | None = None) -> None:
    """Prints the table, or JSON alone on stdout, and writes the files that were asked for."""
    report = summary.as_json() | (more or {})
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if options.output is not None:
        (options.output / "summary.json").write_text(text, encoding="utf-8")
    if options.json_file is not None and str(options.json_file) == "-":
        print_json(report)
        return
    if options.json_file is not None:
        options.json_file.write_text(text, encoding="utf-8")
    print_summary(summary)


def print_summary(summary: Summary) -> None:
    """The rows as a table, with what they share in its title."""
    columns, cells = table(summary)
    title = f"{summary.suite.name}: {summary.model}"
    if len(summary.labels) == 1:
        title += f", preset {summary.labels[0]}"
    left = ("task", "preset", "length", "depth")
    right = [column for column in columns if column not in left]
    print_table(columns, cells, title=title, right=right, notes=notes(summary))


def table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the rows; columns that would say the same in every row are left out."""
    rows = summary.rows
    shown: list[tuple[str, Callable[[Row], str]]] = []
    if len(summary.suite.tasks) > 1:
        shown.append(("task", lambda row: row.task))
    if len(summary.labels) > 1:
        shown.append(("preset", lambda row: row.preset))
    shown.append(("length", lambda row: format_tokens(row.length)))
    if any(row.depth is not None for row in rows):
        shown.append(("depth", lambda row: "spread" if row.depth is None else f"{row.depth:g}"))
    for metric in dict.fromkeys(row.metric for row in rows):
        shown.append((metric.value, lambda row, metric=metric: _value(row, metric)))  # type: ignore[misc]
    if any(row.perplexity is not None for row in rows):
        shown.append(("perplexity", lambda row: "" if row.perplexity is None else f"{row.perplexity:.3f}"))
    shown.append(("samples", lambda row: str(row.samples)))
    shown.append(("seconds each", lambda row: f"{row.seconds:.2f}"))
    if any(row.metric is not Metric.LOSS for row in rows):
        shown.append(("budget tokens", _budget))
        shown.append(("recall", lambda row: "-" if row.recall is None else f"{row.recall:.3f}"))
    if any(row.cut_samples for row in rows):
        shown.append(("truncated", lambda row: str(row.cut_samples)))
    return [name for name, _ in shown], [[cell(row) for _, cell in shown] for row in rows]


def notes(summary: Summary) -> list[str]:
    """Means, below the table."""
    labels: tuple[str | None, ...] = summary.labels if len(summary.labels) > 1 else (None,)
    kinds = {row.metric for row in summary.rows}
    metric = next((kind for kind in (Metric.ACCURACY, Metric.SCORE) if kind in kinds), Metric.LOSS)
    form = "{:.4f} nats per token" if metric is Metric.LOSS else "{:.1%}"
    return [
        f"mean {metric.value} {form.format(summary.mean(label))}" + (f" ({label})" if label else "")
        for label in labels
    ]


def _value(row: Row, metric: Metric) -> str:
    if row.metric is not metric:
        return ""
    return f"{row.value:.4f}" if metric is Metric.LOSS else f"{row.value:.1%}"


def _budget(row: Row) -> str:
    if row.metric is Metric.LOSS:
        return "-"
    if not 0 < row.budget_tokens < row.length:
        return "all"
    return f"{row.budget_tokens} ({row.budget_tokens / row.length:.1%})"


@contextmanager
def _bar(suite: Suite, total: int) -> Iterator[Callable[[Record, bool], None]]:
    """A bar on stderr; off a terminal a line for each new sample."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(suite, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("samples"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(suite.name, total=total)

        def notify(record: Record, is_new: bool) -> None:  # noqa: ARG001
            bar.update(task, advance=1, description=_name(record))

        yield notify


class _Lines:
    """Progress as lines of a log."""

    def __init__(self, suite: Suite, total: int) -> None:
        self._metrics = {task.name: task.metric for task in suite.tasks}
        self._done, self._total, self._skipped = 0, total, 0

    def __call__(self, record: Record, is_new: bool) -> None:
        self._done += 1
        if not is_new:
            self._skipped += 1
            return
        if self._skipped:
            print_note(f"{self._skipped} of {self._total} samples were finished already")
            self._skipped = 0
        outcome = record.outcome
        print_note(
            f"{_name(record)} {self._done}/{self._total}: {self._verdict(record)}, {outcome.seconds:.1f} s"
        )

    def _verdict(self, record: Record) -> str:
        outcome, metric = record.outcome, self._metrics[record.key.task]
        if metric is Metric.LOSS:
            return f"loss {outcome.score:.4f}"
        output = outcome.output.strip()
        shown = output if len(output) <= _MOST_SHOWN else output[: _MOST_SHOWN - 1] + "…"
        if metric is Metric.SCORE or 0 < outcome.score < 1:
            return f"{outcome.score:.1%}"
        return (
            "right"
            if outcome.score
            else f"wrong: wanted {', '.join(outcome.answers)[:_MOST_SHOWN]}, got {shown!r}"
        )


def _name(record: Record) -> str:
    key = record.key
    parts = [key.task, key.preset]
    if key.place.length is not None:
        parts.append(format_tokens(key.place.length))
    if key.place.depth is not None:
        parts.append(f"depth {key.place.depth:.2f}")
    return " ".join(parts)
