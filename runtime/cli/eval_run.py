"""Runs a suite with a progress bar, and shows and keeps what it came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moorage.runtime.cli.eval_options import RunOptions
from moorage.runtime.cli.eval_progress import progress_of
from moorage.runtime.cli.eval_tables import markdown, print_summary
from moorage.runtime.cli.output import print_json, print_note
from moorage.runtime.evals.journal import write_whole
from moorage.runtime.evals.pictures import Point, draw, save_png
from moorage.runtime.evals.report import SUMMARY
from moorage.runtime.evals.runner import Summary, plan, run
from moorage.runtime.evals.targets import Targets
from moorage.runtime.evals.tasks import Suite
from moorage.workers.errors import InvalidRequest


def measure(suite: Suite, targets: Targets, options: RunOptions) -> Summary:
    """Runs a suite while the bar shows the samples and the time left."""
    with progress_of(suite, [key for key, _ in plan(suite, targets)]) as notify:
        return run(suite, targets, options.output, notify)


def publish(summary: Summary, options: RunOptions, more: dict[str, Any] | None = None) -> None:
    """Prints the table, or JSON alone on stdout, and writes the files that were asked for."""
    report = summary.as_json() | (more or {})
    if options.output is not None:
        _keep(summary, report, options.output)
    if options.json_file is not None and str(options.json_file) == "-":
        print_json(report)
        return
    if options.json_file is not None:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        options.json_file.write_text(text + "\n", encoding="utf-8")
    print_summary(summary)


def _keep(summary: Summary, report: dict[str, Any], directory: Path) -> None:
    """Writes summary.json, summary.md and, where it says more and matplotlib is there, a picture."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(directory / SUMMARY, text)
    write_whole(directory / "summary.md", markdown(summary))
    points = [Point.of(row.as_json(), row.task, row.preset) for row in summary.rows]
    try:
        figures = draw(points, f"{summary.suite.name}: {summary.model}")
    except InvalidRequest as error:
        print_note(str(error))
        return
    for figure in figures:
        save_png(figure, directory / f"{summary.suite.name}.png")
