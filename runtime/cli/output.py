"""What commands print: tables for people, JSON for machines, one line for an error."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_json(value: Any) -> None:
    """Print `value` as indented JSON on stdout; refuses NaN and infinity, which JSON doesn't have."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_error(error: object) -> None:
    """Print `error: …` on stderr as exactly one line."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)


def print_note(text: str) -> None:
    """Print a line for people on stderr, so that stdout stays for results."""
    print(text, file=sys.stderr)


def print_text(text: str, *, indent: str = "") -> None:
    """Print a paragraph on stdout, wrapped at the terminal's width or at 80 columns where there is none."""
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    print(textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    right: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Print a table on stdout; `right` names the columns aligned to the right, `notes` go below it."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = stdout_console()
    console.print(table)
    for note in notes:
        console.print(note, markup=False)


def stdout_console() -> Console:
    """A console on the present stdout; wide when the output is not a terminal, so that nothing is cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def format_gb(num_bytes: float) -> str:
    """Bytes in GB (10^9), two decimals."""
    return f"{num_bytes / 1e9:.2f}"
