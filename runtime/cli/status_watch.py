"""`runtime status --watch`: the snapshot anew every second."""

from __future__ import annotations

import os
import select
import sys
import time
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from moorage.client import Client, MoorageError
from moorage.runtime.cli.keys import single_keys
from moorage.runtime.cli.output import print_error, stdout_console
from moorage.runtime.cli.status_table import status_table
from moorage.runtime.cli.streaming import print_json_line

INTERVAL_S = 1.0
_LONG_TABLE_LINES = 30
"""A terminal of fewer lines gets the short table."""


def watch_status(client: Client, *, as_json: bool) -> None:
    """Shows the cluster until q or Ctrl-C; a server that does not answer is said and asked again.

    On a terminal the table stays in its place. Elsewhere each snapshot is printed after the last, as JSON on one
    line or as a table.
    """
    try:
        if as_json or not sys.stdout.isatty():
            _print_snapshots(client, as_json)
        else:
            _show_in_place(client)
    except KeyboardInterrupt:
        return


def _show_in_place(client: Client) -> None:
    table: RenderableType = ""
    console = stdout_console()
    short = console.height < _LONG_TABLE_LINES
    with single_keys(), Live(console=console, auto_refresh=False) as live:
        while True:
            trouble = ""
            try:
                table = status_table(client.address, client.status(), short=short)
            except MoorageError as error:
                trouble = f"{' '.join(str(error).split())}; "
            foot = Text(f"{trouble}{time.strftime('%H:%M:%S')}, q ends", style="bold" if trouble else "dim")
            live.update(Group(table, foot), refresh=True)
            if quit_pressed(INTERVAL_S):
                return


def _print_snapshots(client: Client, as_json: bool) -> None:
    while True:
        try:
            snapshot = client.status()
        except MoorageError as error:
            print_error(error)
        else:
            if as_json:
                print_json_line({"address": client.address, "time_s": time.time(), **asdict(snapshot)})
            else:
                stdout_console().print(status_table(client.address, snapshot), "")
            sys.stdout.flush()
        time.sleep(INTERVAL_S)


def quit_pressed(timeout_s: float) -> bool:
    """Whether q is pressed within the time; it passes at once if another key is."""
    if not sys.stdin.isatty():
        time.sleep(timeout_s)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
    return bool(ready) and b"q" in os.read(sys.stdin.fileno(), 64).lower()
