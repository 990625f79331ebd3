"""How a start goes on: its stage and the weights read, as a bar on a terminal, else as lines of a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from moorage.runtime.cli.output import print_note
from moorage.runtime.config.units import format_bytes
from moorage.runtime.serving.protocol import ClusterStatus

LINE_EVERY_S = 5.0
SLOW_START_S = 15.0
"""Time without output after which one line says what takes so long."""
_SLOW_START = (
    "Still starting. The first start on a machine compiles kernels for its processor, which takes about a minute; "
    "later starts take as long only where the machine is busy."
)
_REFRESHES_PER_S = 8


class StartView(Protocol):
    """Shows how a server starts, and its state once it serves."""

    def stage(self, text: str) -> None:
        """A stage begins."""

    def loading(self, read: int, total: int) -> None:
        """Bytes of the weights that are read, and all."""

    def status(self, address: str, status: ClusterStatus) -> None:
        """The state of the serving cluster."""

    def refresh(self) -> None:
        """Shows the present state now, and not at the next tick."""


@contextmanager
def start_view() -> Iterator[StartView]:
    """One place at the foot of the terminal; lines that are printed meanwhile go above it. Lines off a terminal.

    While nothing is read for long, one line says what takes the time.
    """
    console = Console(stderr=True)
    slow = threading.Timer(SLOW_START_S, print_note, (_SLOW_START,))
    slow.daemon = True
    slow.start()
    try:
        if not console.is_terminal:
            yield _Lines(slow.cancel)
            return
        # What goes to standard output must stay there when it is a file.
        with Live(
            console=console,
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        ) as live:
            yield _Foot(live, slow.cancel)
    finally:
        slow.cancel()


@contextmanager
def loading_bar() -> Iterator[Callable[[int, int], None]]:
    """Yields a function that takes the bytes of the weights that are read, and all, where nothing else is shown."""
    with start_view() as view:
        yield view.loading


class _Foot:
    """A spinner with the stage, a bar of weights, then a table."""

    def __init__(self, live: Live, on_progress: Callable[[], None]) -> None:
        self._live, self._on_progress = live, on_progress
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[read]}"),
            TimeElapsedColumn(),
        )
        self._stage = self._bar.add_task("starting", total=None, read="")
        live.update(self._bar)

    def stage(self, text: str) -> None:
        """Names the stage; the bar pulses until there is something to count."""
        self._bar.reset(self._stage, description=text, total=None, read="")

    def loading(self, read: int, total: int) -> None:
        """Moves the bar."""
        self._on_progress()
        shown = f"{format_bytes(read)} of {format_bytes(total)}"
        self._bar.update(
            self._stage, description="reading the weights", completed=read, total=total, read=shown
        )

    def status(self, address: str, status: ClusterStatus) -> None:
        """A table takes the place of the bar, where standard output is no file."""
        from moorage.runtime.cli.status_table import status_table

        self._on_progress()
        if sys.stdout.isatty():
            self._live.update(status_table(address, status, short=True))

    def refresh(self) -> None:
        """Draws the foot anew."""
        self._live.refresh()


class _Lines:
    """Each stage once, the weights every few seconds and at their end."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        self._on_progress = on_progress
        self._told_s = time.monotonic()
        self._done = False

    def stage(self, text: str) -> None:
        """One line."""
        print_note(text)

    def loading(self, read: int, total: int) -> None:
        """A line now and then."""
        self._on_progress()
        if self._done or not (read == total or time.monotonic() >= self._told_s + LINE_EVERY_S):
            return
        self._told_s, self._done = time.monotonic(), read == total
        print_note(f"read {format_bytes(read)} of {format_bytes(total)} of weights")

    def status(self, address: str, status: ClusterStatus) -> None:  # noqa: ARG002  # a log has no live view
        """Nothing."""
        self._on_progress()

    def refresh(self) -> None:
        """Nothing: lines are written as they come."""
