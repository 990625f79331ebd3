"""How far a prompt is read: a bar on a terminal, else lines of a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moorage.client import Accepted
from moorage.runtime.cli.output import print_note
from moorage.runtime.serving import protocol
from moorage.workers.counting import counted


@contextmanager
def prefill_bar(*, keep: bool = False) -> Iterator[Callable[[object], None]]:
    """Yields a function that takes every event of a stream and moves the bar.

    The bar goes when the prompt is read, unless it is kept. Off a terminal a kept bar is a line for each tenth
    of the prompt, and any other shows nothing.
    """
    console = Console(stderr=True)
    if keep and not console.is_terminal:
        yield _Tenths()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=not keep, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("waiting for the server", total=None, count="")

        def read(tokens: int, total: int) -> None:
            bar.update(
                task,
                description="reading the prompt",
                completed=tokens,
                total=total,
                count=f"{tokens:,} of {counted(total, 'token', commas=True)}",
            )

        def show(event: object) -> None:
            if isinstance(event, Accepted):
                read(0, event.prompt_tokens)
            elif isinstance(event, protocol.Progress):
                read(event.prefilled_tokens, event.total_tokens)
            elif isinstance(event, protocol.Token):
                bar.stop()

        yield show


class _Tenths:
    """Progress as lines of a log."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, event: object) -> None:
        if isinstance(event, protocol.Progress):
            tenths = 10 * event.prefilled_tokens // event.total_tokens
            if tenths > self._told:
                self._told = tenths
                print_note(
                    f"read {event.prefilled_tokens:,} of {counted(event.total_tokens, 'token', commas=True)}"
                )
