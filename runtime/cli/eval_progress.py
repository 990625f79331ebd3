"""Progress of an evaluation: a bar with the time left, or lines of a log off a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moorage.runtime.cli.output import print_note
from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.journal import Key, Record
from moorage.runtime.evals.tasks import Metric, Suite
from moorage.workers.counting import counted

_MOST_SHOWN = 60
"""Characters of an answer in a line of the log."""
_SPEED_WINDOW_S = 3600.0
"""Over which the time of a token is averaged; a long sample takes minutes."""


@contextmanager
def progress_of(suite: Suite, plan: list[Key]) -> Iterator[Callable[[Record, bool], None]]:
    """Yields a function to call with every finished sample, and whether it is new.

    The time left is estimated from the tokens of the samples still to come.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(suite, len(plan))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]} samples"))
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=_SPEED_WINDOW_S,
    ) as bar:
        task = bar.add_task(suite.name, total=sum(map(_weight, plan)), done=f"0/{len(plan)}")
        finished = weight = 0

        def notify(record: Record, is_new: bool) -> None:
            nonlocal finished, weight
            finished, weight = finished + 1, weight + _weight(record.key)
            done = f"{finished}/{len(plan)}"
            if is_new:
                bar.update(task, completed=weight, description=_name(record.key), done=done)
            else:  # takes no time, so that it must not count as speed
                bar.reset(task, completed=weight, done=done)

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
            print_note(f"{self._skipped} of {counted(self._total, 'sample')} had been finished before")
            self._skipped = 0
        outcome = record.outcome
        print_note(
            f"{_name(record.key)} {self._done}/{self._total}: {self._verdict(record)}, {outcome.seconds:.1f} s"
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


def _weight(key: Key) -> int:
    return key.place.length or 1


def _name(key: Key) -> str:
    parts = [key.task, key.preset]
    if key.place.length is not None:
        parts.append(format_tokens(key.place.length))
    if key.place.depth is not None:
        parts.append(f"depth {key.place.depth:.2f}")
    return " ".join(parts)
