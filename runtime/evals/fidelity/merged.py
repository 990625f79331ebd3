"""Results of several runs of the comparison as one: each run may measure some choices, lengths or tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from moorage.runtime.evals.fidelity.choices import Frame
from moorage.runtime.evals.fidelity.figures import Cell, predictions
from moorage.runtime.evals.fidelity.report import Report
from moorage.workers.errors import InvalidRequest

RESULT = "fidelity.json"
Key = tuple[str, int, str, int | None]


def merge(paths: Sequence[Path]) -> Report:
    """The cells of runs that `eval fidelity --output` wrote, of one model, sinks and window.

    Where two runs have a cell in common, that of more passages stands, and of equal ones the first. Raises
    InvalidRequest for a folder without a result, and for runs that can't stand in one table.
    """
    reports = [read(path) for path in paths]
    first = reports[0]
    for path, report in zip(paths, reports, strict=True):
        if (report.model, report.frame) != (first.model, first.frame):
            raise InvalidRequest(
                f"{path}: {report.title}, and {paths[0]}: {first.title}; name runs of one model, sinks and window"
            )
    found: dict[Key, Cell] = {}
    for cell in (cell for report in reports for cell in report.cells):
        key = (cell.task, cell.length, cell.choice, cell.budget)
        if key not in found or cell.passages > found[key].passages:
            found[key] = cell
    cells = sorted(found.values(), key=lambda cell: (cell.task, cell.length, cell.kl))
    heads = sorted({head for report in reports for head in report.retrieval_heads})
    return Report(first.model, first.frame, cells, heads, predictions(cells))


def read(path: Path) -> Report:
    """The result in a folder, or in a file of its own. Raises InvalidRequest where there is none."""
    file = path / RESULT if path.is_dir() else path
    try:
        return _report(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidRequest(
            f"{file}: no result of `runtime eval fidelity`; name a folder that its --output wrote"
        ) from None


def _report(given: dict[str, Any]) -> Report:
    frame = Frame(given["sinks"], given["window"], given["prefill"])
    cells = [_cell(each) for each in given["cells"]]
    heads = [(layer, head) for layer, head in given["retrieval_heads"]]
    return Report(given["model"], frame, cells, heads, predictions(cells))


def _cell(given: dict[str, Any]) -> Cell:
    known = {each.name for each in fields(Cell)}
    values = {name: value for name, value in given.items() if name in known}
    lost = [(passage, token, margin) for passage, token, margin in given.get("lost_hits", ())]
    return Cell(**{"flip_margin": None} | values | {"lost_hits": lost})
