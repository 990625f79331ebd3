"""`bench gpu` for people: notes while it runs, the table last."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from moorage.runtime.bench.gpu.arguments import Arguments
from moorage.runtime.bench.gpu.model import QUERY_COSINE, SHAPES
from moorage.runtime.bench.gpu.options import Options
from moorage.runtime.bench.gpu.run import Bench
from moorage.runtime.bench.measure import describe_machine
from moorage.runtime.bench.report import Report, Row, format_seconds
from moorage.runtime.cli.output import print_note, print_table
from moorage.runtime.config.units import format_tokens, parse_bytes, parse_tokens
from moorage.workers.errors import InvalidConfig

FIGURES = (
    ("tok/s", "tokens_per_s", "{:.1f}"),
    ("at most", "ceiling_tokens_per_s", "{:.0f}"),
    ("hits", "hit_rate", "{:.1%}"),
    ("MB/token", "moved_mb_per_token", "{:.1f}"),
    ("linear", "linear_ms", "{:.2f}"),
    ("select", "select_ms", "{:.2f}"),
    ("gather", "gather_ms", "{:.2f}"),
    ("attend", "attend_ms", "{:.2f}"),
    ("busy", "device_busy", "{:.0%}"),
    ("peak GiB", "peak_gib", "{:.1f}"),
)
"""Column, name among the row's values, form."""
NOTES = (
    "at most: weights and attended blocks read at the speed of a device copy, or missing blocks at that of the link, "
    "whichever takes longer. Parts are host milliseconds of a step; on a GPU they count launches and waits.",
    f"Generated tokens ask what a random walk asks: each head's query keeps a cosine of {QUERY_COSINE} with the one "
    "before it. Keys are a random mean for each block and noise around it. Sessions of a batch take stretches of one "
    "past in DRAM; `distinct_past` is the share of their blocks that no other holds. Each has its own slots.",
    "Weights read leave out rows of the embedding that no token asks for; the floor of prefill leaves out embedding "
    "and head. Times are medians of steps after the slots have filled, kernels compiled and graphs recorded.",
)


def run_gpu(arguments: Arguments) -> Report:
    """Runs and prints. Raises InvalidConfig for a shape that there isn't, or without the device."""
    shape, device = arguments.shape, arguments.device
    if shape not in SHAPES:
        raise InvalidConfig(f"--shape {shape}: no such shape; one of {', '.join(SHAPES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig(
            "bench gpu: this host has no CUDA device; try it out with --device cpu --shape tiny"
        )
    place = torch.device(device)
    machine = describe_machine()
    if place.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(place)
    report, notes = Report(machine), list(NOTES)

    def note(text: str) -> None:
        print_note(text)
        notes.append(text)

    options = Options(
        place,
        shape,
        _counts(arguments.context),
        sorted(_counts(arguments.prefill_context)),
        _counts(arguments.batch),
        parse_bytes(arguments.device_memory),
        arguments.chunk,
        arguments.steps,
        arguments.budget,
        arguments.threads,
        parse_bytes(arguments.host_memory) if arguments.host_memory else None,
        [part for part in arguments.only.split(",") if part],
    )
    keep = _keeper(arguments.json_lines)
    keep({"machine": machine})
    for row in Bench(options, note).rows():
        keep(row.as_json())
        speed = row.values.get("tokens_per_s")
        print_note(
            f"{row.name} {_context(row)} {format_seconds(row.median_s)}{f', {speed:.1f} tok/s' if speed else ''}"
        )
        report.add([row])
    report.add((), notes)
    keep({"notes": report.notes})
    _print(report, shape)
    return report


def _keeper(path: str) -> Callable[[Mapping[str, Any]], None]:
    """Adds a value to the file as one line of JSON; does nothing without a file."""

    def keep(value: Mapping[str, Any]) -> None:
        if path:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(value, allow_nan=False) + "\n")

    return keep


def _print(report: Report, shape: str) -> None:
    columns = ("name", "context", "median", "GB/s", "of limit", *(column for column, _, _ in FIGURES))
    cells = [
        (
            row.name,
            _context(row),
            format_seconds(row.median_s),
            "" if row.gb_per_s is None else f"{row.gb_per_s:.1f}",
            "" if row.ratio_to_limit is None else f"{row.ratio_to_limit:.0%}",
            *(form.format(row.values[name]) if name in row.values else "" for _, name, form in FIGURES),
        )
        for row in report.rows
    ]
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    print_table(columns, cells, title=f"gpu: {shape}", right=columns[1:], notes=[*report.notes, machine])


def _counts(text: str) -> list[int]:
    return [parse_tokens(part) for part in text.split(",")]


def _context(row: Row) -> str:
    return "" if row.context_tokens is None else format_tokens(row.context_tokens)
