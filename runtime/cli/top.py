"""`runtime top`: a live view of a cluster and of every request in it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from moorage.client import Client, MoorageError
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.keys import single_keys
from moorage.runtime.cli.output import print_error, stdout_console
from moorage.runtime.cli.status import TIMEOUT_S
from moorage.runtime.cli.status_watch import quit_pressed
from moorage.runtime.cli.top_view import TopView

_LINES_ELSEWHERE = 60
"""Lines of a view that is not shown on a terminal."""


@app.command(epilog=examples("runtime top", "runtime top --interval 5", "runtime top --count 1 | head"))
def top(
    address: o.Address = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two views.")] = 1.0,
    count: Annotated[int | None, typer.Option(min=1, help="Views to show.", show_default="until q")] = None,
) -> None:
    """Show speed, memory and every request of a cluster, anew each second until q or Ctrl-C.

    Speeds are those since the view before. On a terminal the view takes the whole screen.
    """
    where = o.server_address(address)
    numbers = itertools.count(1) if count is None else range(1, count + 1)
    shown = _Shown(Client(where, timeout_s=TIMEOUT_S), TopView(where), stdout_console())
    with shown.client:
        try:
            if shown.console.is_terminal:
                shown.on_screen(numbers, interval, count)
            else:
                shown.printed(numbers, interval, count)
        except KeyboardInterrupt:
            return


@dataclass(frozen=True, slots=True)
class _Shown:
    """Views of one server, one after another."""

    client: Client
    view: TopView
    console: Console

    def on_screen(self, numbers: Iterable[int], interval_s: float, count: int | None) -> None:
        """Each view in the place of the last. A server that does not answer is said and asked again."""
        body: RenderableType = ""
        with single_keys(), Live(console=self.console, auto_refresh=False, screen=True) as live:
            for number in numbers:
                trouble = ""
                try:
                    body = self.view.of(self.client.status(), time.monotonic(), self.console.height)
                except MoorageError as error:
                    trouble = f"{' '.join(str(error).split())}; "
                foot = Text(
                    f"{trouble}{time.strftime('%H:%M:%S')}, q ends", style="bold" if trouble else "dim"
                )
                live.update(Group(body, foot), refresh=True)
                if quit_pressed(0.0 if number == count else interval_s):
                    return

    def printed(self, numbers: Iterable[int], interval_s: float, count: int | None) -> None:
        """Each view after the last."""
        for number in numbers:
            try:
                self.console.print(self.view.of(self.client.status(), time.monotonic(), _LINES_ELSEWHERE), "")
            except MoorageError as error:
                print_error(error)
            if number != count:
                time.sleep(interval_s)
