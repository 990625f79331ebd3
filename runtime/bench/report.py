"""What a benchmark brings: rows of medians and ratios, as JSON for machines and as a table for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moorage.runtime.cli.output import print_table
from moorage.runtime.config.units import format_tokens
from moorage.workers.errors import InvalidRequest

Key = tuple[str, int | None, int | None]
"""(name, context_tokens, threads): what makes a row the same row in another run."""


def write_json(path: Path, report: object) -> None:
    """Writes a report as JSON, which has neither NaN nor infinity."""
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing. Ratios are speeds: above 1 means faster than the peer or the limit."""

    name: str
    median_s: float
    context_tokens: int | None = None
    threads: int | None = None
    bytes: int | None = None
    """Read or moved in one run."""
    ratio_to_limit: float | None = None
    ratio_to: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    """Other figures by name, with their unit in it; of these the table shows `tokens_per_s`."""

    @property
    def key(self) -> Key:
        """What names the row in a file of earlier figures."""
        return self.name, self.context_tokens, self.threads

    @property
    def gb_per_s(self) -> float | None:
        """10^9 bytes a second."""
        return None if self.bytes is None else self.bytes / self.median_s / 1e9

    def as_json(self) -> dict[str, Any]:
        """The row by name, without what it does not have."""
        values = asdict(self) | {"gb_per_s": self.gb_per_s}
        return {
            name: value for name, value in values.items() if value not in (None, {}) or name == "ratio_to"
        }


@dataclass(slots=True)
class Report:
    """Rows of one run on one machine, and what people should know of them."""

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, rows: Iterable[Row], notes: Iterable[str] = ()) -> None:
        """Takes in what one benchmark brought; a note counts once."""
        self.rows += rows
        self.notes += [note for note in notes if note not in self.notes]

    def as_json(self) -> dict[str, Any]:
        """{"machine": …, "rows": […]}."""
        return {"machine": self.machine, "rows": [row.as_json() for row in self.rows]}

    def write(self, path: Path) -> None:
        """Writes the JSON form."""
        write_json(path, self.as_json())

    def write_ratios(self, path: Path) -> None:
        """Writes the ratios alone, which carry over to another machine of the same kind; seconds do not."""
        kept = ("name", "context_tokens", "threads", "ratio_to_limit", "ratio_to")
        rows = [
            {name: _rounded(value) for name, value in row.as_json().items() if name in kept}
            for row in self.rows
            if row.ratio_to or row.ratio_to_limit is not None
        ]
        text = json.dumps({"machine": self.machine, "rows": rows}, indent=1, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    def print(self, title: str) -> None:
        """Prints the table and, below it, the notes."""
        columns = ("name", "context", "threads", "median", "tokens/s", "GB/s", "of limit", "times as fast as")
        cells = [
            (
                row.name,
                "" if row.context_tokens is None else format_tokens(row.context_tokens),
                "" if row.threads is None else str(row.threads),
                format_seconds(row.median_s),
                f"{row.values['tokens_per_s']:.0f}" if "tokens_per_s" in row.values else "",
                "" if row.gb_per_s is None else f"{row.gb_per_s:.1f}",
                "" if row.ratio_to_limit is None else f"{row.ratio_to_limit:.0%}",
                ", ".join(f"{peer} {ratio:.2f}" for peer, ratio in row.ratio_to.items()),
            )
            for row in self.rows
        ]
        used = [i for i, _ in enumerate(columns) if i == 0 or any(row[i] for row in cells)]
        shown = [columns[i] for i in used]
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        print_table(
            shown,
            [[row[i] for i in used] for row in cells],
            title=title,
            right=[column for column in shown if column in columns[1:-1]],
            notes=[*self.notes, machine],
        )


@dataclass(frozen=True, slots=True)
class Fall:
    """A ratio that is now smaller than it was."""

    key: Key
    what: str
    before: float
    now: float


def compare(rows: Sequence[Row], file: Path, tolerance: float) -> tuple[list[Fall], int]:
    """(ratios that fell by more than `tolerance`, a share; how many were compared) against a file of ratios."""
    if not file.is_file():
        raise InvalidRequest(f"{file}: no such file; write one with `runtime bench --keep {file}`")
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"]
    before = {(row["name"], row.get("context_tokens"), row.get("threads")): _ratios(row) for row in kept}
    falls, count = [], 0
    for row in rows:
        old, new = before.get(row.key, {}), _ratios(row.as_json())
        for what in old.keys() & new.keys():
            count += 1
            if new[what] < old[what] * (1 - tolerance):
                falls.append(Fall(row.key, what, old[what], new[what]))
    return falls, count


def print_falls(falls: Sequence[Fall], count: int, file: Path) -> None:
    """Says what fell since `file` was written."""
    columns = ("name", "context", "threads", "against", "before", "now")
    cells = [
        (
            fall.key[0],
            "" if fall.key[1] is None else format_tokens(fall.key[1]),
            "" if fall.key[2] is None else str(fall.key[2]),
            fall.what,
            f"{fall.before:.2f}",
            f"{fall.now:.2f}",
        )
        for fall in sorted(falls, key=lambda fall: fall.now / fall.before)
    ]
    print_table(
        columns, cells, title=f"{len(falls)} of {count} ratios fell since {file.name}", right=columns[1:]
    )


def format_seconds(seconds: float) -> str:
    """A time with the unit that suits it, in three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def _ratios(row: dict[str, Any]) -> dict[str, float]:
    limit = row.get("ratio_to_limit")
    return {**row.get("ratio_to", {}), **({} if limit is None else {"limit": limit})}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value
