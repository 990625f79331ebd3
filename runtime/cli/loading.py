"""How far a model's weights are read: a bar on a terminal, else lines of a log; and why a start is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from moorage.runtime.cli.output import print_note
from moorage.runtime.units import format_bytes

LINE_EVERY_S = 5.0
SLOW_START_S = 15.0
"""Without a word, after which a user should hear what takes so long."""
_SLOW_START = (
    "Still starting: the first start on a machine compiles kernels for its processor, a minute or two."
)


@contextmanager
def loading_bar() -> Iterator[Callable[[int, int], None]]:
    """Yields a function that takes the bytes read and all bytes, on stderr; the bar goes when all are read.

    While nothing is read for long, one line says what takes the time.
    """
    console = Console(stderr=True)
    slow = threading.Timer(SLOW_START_S, print_note, (_SLOW_START,))
    slow.daemon = True
    slow.start()
    try:
        with _display(console) as show:

            def told(read: int, total: int) -> None:
                slow.cancel()
                show(read, total)

            yield told
    finally:
        slow.cancel()


@contextmanager
def _display(console: Console) -> Iterator[Callable[[int, int], None]]:
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (TextColumn("reading the weights"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", visible=False)

        def show(read: int, total: int) -> None:
            bar.update(task, completed=read, total=total, visible=read < total)

        yield show


class _Lines:
    """One every few seconds, and one at the end."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def __call__(self, read: int, total: int) -> None:
        if read == total or time.monotonic() >= self._told_s + LINE_EVERY_S:
            self._told_s = time.monotonic()
            print_note(f"read {format_bytes(read)} of {format_bytes(total)} of weights")
