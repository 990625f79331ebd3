"""`runtime bench`: its group of commands, and the options that they share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.bench.report import Report
from moorage.runtime.cli.app import app
from moorage.runtime.cli.metavars import App
from moorage.runtime.config.units import parse_tokens

bench_app = App(
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    invoke_without_command=True,
)
app.add_typer(bench_app, name="bench", help="Measure the parts side by side with limits and peers.")

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as JSON.")]
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved runs; the medians are shown.")]
Threads = Annotated[str, typer.Option(metavar="N,N,…", help="Thread counts.")]
WithRay = Annotated[bool, typer.Option("--ray/--no-ray", help="Also through a Ray actor.")]
EVERY_CORE = "1" if len(os.sched_getaffinity(0)) == 1 else f"1,{min(2, len(os.sched_getaffinity(0)))}"


def parse_counts(text: str) -> list[int]:
    """Thread counts or contexts, separated by commas."""
    try:
        counts = [parse_tokens(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}, separated by commas") from error
    if min(counts) < 1:
        raise typer.BadParameter(f"{text!r}: at least 1 each")
    return counts


def finish(report: Report, title: str, json_file: Path | None) -> None:
    """Prints the table and writes the file that was asked for."""
    report.print(title)
    if json_file is not None:
        report.write(json_file)
