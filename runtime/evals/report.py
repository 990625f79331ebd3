"""One page that lays finished runs side by side: a table for each task, heatmaps and curves, and wrong answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.journal import PREDICTIONS
from moorage.runtime.evals.pictures import Point, as_svg, draw
from moorage.workers.errors import InvalidRequest

SUMMARY = "summary.json"
_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_MOST_MISSES = 12
"""Wrong answers shown of each run."""
_MOST_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: where it lies, its summary and what it named its choices."""

    directory: Path
    summary: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows with their task and preset filled in."""
        shared = {"task": self.summary["task"], "preset": self.summary["preset"]}
        return [{**shared, **row} for row in self.summary["rows"]]


def find_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs of the directories, or below them. Raises InvalidRequest where there is none."""
    runs = []
    for directory in directories:
        files = sorted(directory.rglob(SUMMARY)) if directory.is_dir() else []
        if not files:
            raise InvalidRequest(
                f"{directory}: no finished run in it; run an evaluation with --output {directory}"
            )
        runs += [Run(file.parent, _read(file)) for file in files]
    return runs


def render(runs: Sequence[Run]) -> str:
    """The page, without anything from elsewhere."""
    labels = _labels(runs)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    suites = dict.fromkeys(run.summary["task"] for run in runs)
    return template.render(
        sections=[
            _section(suite, [run for run in runs if run.summary["task"] == suite], labels) for suite in suites
        ],
        runs=[
            {
                "directory": str(run.directory),
                "summary": run.summary,
                "misses": _misses(run.directory / PREDICTIONS),
            }
            for run in runs
        ],
    )


def _section(suite: str, runs: Sequence[Run], labels: dict[tuple[Path, str], str]) -> dict[str, Any]:
    points = [Point.of(row, suite, labels[run.directory, row["preset"]]) for run in runs for row in run.rows]
    named = list(dict.fromkeys(point.label for point in points))
    lines: dict[tuple[str, int, float | None], dict[str, dict[str, Any]]] = {}
    for run in runs:
        for row in run.rows:
            place = (row["task"], row["length"], row.get("depth"))
            lines.setdefault(place, {})[labels[run.directory, row["preset"]]] = _cell(row)
    return {
        "name": suite,
        "svgs": [as_svg(figure) for figure in draw(points, suite)],
        "labels": named,
        "by_depth": any(depth is not None for _, _, depth in lines),
        "by_task": len({task for task, _, _ in lines}) > 1,
        "lines": [
            {
                "task": task,
                "length": format_tokens(length),
                "depth": "" if depth is None else f"{depth:g}",
                "cells": [cells.get(label) for label in named],
            }
            for (task, length, depth), cells in lines.items()
        ],
    }


def _cell(row: dict[str, Any]) -> dict[str, Any]:
    """What a cell says, its colour and the figures below it."""
    notes = [f"{row['samples']} sample{'s' * (row['samples'] != 1)}", f"{row['seconds']:.2f} s"]
    if 0 < row.get("budget_tokens", 0) < row["length"]:
        notes.append(f"{row['budget_tokens']} attended")
    if row.get("recall") is not None:
        notes.append(f"recall {row['recall']:.3f}")
    if row.get("cut_samples"):
        notes.append(f"{row['cut_samples']} truncated")
    if row.get("cut_answers"):
        notes.append(f"{row['cut_answers']} answers cut")
    if "loss" in row:
        return {"text": f"{row['loss']:.4f} (ppl {math.exp(row['loss']):.2f})", "hue": None, "notes": notes}
    value = row.get("accuracy", row.get("score", 0.0))
    return {"text": f"{value:.1%}", "hue": round(120 * value), "notes": notes}


def _labels(runs: Sequence[Run]) -> dict[tuple[Path, str], str]:
    """A name for each choice of each run: its preset, with the model or directory where that is not enough."""
    choices = [(run, preset) for run in runs for preset in dict.fromkeys(row["preset"] for row in run.rows)]
    several_models = len({run.summary["model"] for run in runs}) > 1
    named = {}
    for run, preset in choices:
        same = [
            other
            for other, name in choices
            if name == preset and other.summary["task"] == run.summary["task"]
        ]
        label = f"{run.summary['model']}, {preset}" if several_models else preset
        twice = sum(other.summary["model"] == run.summary["model"] for other in same) > 1
        named[run.directory, preset] = f"{label} ({run.directory.name})" if twice else label
    return named


def _misses(path: Path) -> list[dict[str, Any]]:
    """The first wrong answers of a run, short enough to be read."""
    if not path.is_file():
        return []
    misses: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        sample = json.loads(line)
        if sample["answers"] and sample["score"] < 1:
            misses.append(
                {
                    "task": sample["task"],
                    "preset": sample["preset"],
                    "length": format_tokens(sample["length"] or sample["prompt_tokens"]),
                    "score": f"{sample['score']:.0%}",
                    "answer": _brief(", ".join(sample["answers"])),
                    "output": _brief(sample["output"]),
                }
            )
    return misses[:_MOST_MISSES]


def _read(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(summary, dict) and {"task", "model", "preset", "rows"} <= summary.keys():
            return summary
    except ValueError:
        pass
    raise InvalidRequest(f"{path}: is not what an evaluation wrote; leave this directory out")


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"
