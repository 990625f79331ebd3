"""How a calibration goes on: a bar for each of its parts on a terminal, else a line for each tenth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from moorage.runtime.cli.output import print_note


class CalibrationBar:
    """Shows the parts of a calibration; see `calibrate.calibration.Watcher`."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._tasks: dict[str, int] = {}
        self._told: dict[str, int] = {}

    def loading(self, read: int, total: int) -> None:
        """Bytes of the weights that are read, and all."""
        self._show("weights", read, total)

    def gradients(self, window: int, total: int, loss: float) -> None:
        """Windows whose gradients are computed, and all; the loss of the last one."""
        self._show("gradients", window, total, f"window {window} of {total}, loss {loss:.3f}")

    def levels(self, layer: int, total: int) -> None:
        """Layers whose levels are found, and all."""
        self._show("levels", layer, total, f"layer {layer} of {total}")

    def _show(self, part: str, done: int, total: int, detail: str = "") -> None:
        if self._bar is None:
            tenths = 10 * done // max(1, total)
            if tenths > self._told.get(part, 0):
                self._told[part] = tenths
                print_note(f"{part}: {detail or f'{10 * tenths} %'}")
            return
        if part not in self._tasks:
            self._tasks[part] = self._bar.add_task(part, total=total, detail="")
        self._bar.update(self._tasks[part], completed=done, total=total, detail=detail)  # type: ignore[arg-type]


@contextmanager
def calibration_bar() -> Iterator[CalibrationBar]:
    """Yields what shows the parts of a calibration on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield CalibrationBar(None)
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        yield CalibrationBar(bar)
