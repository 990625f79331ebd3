"""The table and the files of `runtime eval formats`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.runtime.cli.eval_choices import markdown_table
from moorage.runtime.cli.output import print_json, print_note, print_table
from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.formats.picture import draw
from moorage.runtime.evals.formats.standings import Perplexity, Retrieved, Standing
from moorage.runtime.evals.journal import write_whole
from moorage.runtime.evals.pictures import save_png
from moorage.workers.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Found:
    """What a comparison came to."""

    model: str
    standings: list[Standing]
    remarks: list[str]
    """What should be known beside the figures, a line each."""

    @property
    def title(self) -> str:
        """Above the table and the picture."""
        return f"{self.model}: formats of keys and values"


def publish(found: Found, output: Path | None, json_file: Path | None) -> None:
    """Prints the table, or JSON alone on stdout, and writes the files that were asked for."""
    report = {
        "model": found.model,
        "formats": [standing.as_json() for standing in found.standings],
        "remarks": found.remarks,
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if output is not None:
        _keep(found, text, output)
    if json_file is not None and str(json_file) == "-":
        print_json(report)
        return
    if json_file is not None:
        json_file.write_text(text, encoding="utf-8")
    columns, cells = table(found.standings)
    print_table(columns, cells, title=found.title, right=columns[1:], notes=found.remarks)


def _keep(found: Found, text: str, directory: Path) -> None:
    """Writes formats.json, formats.md and, where matplotlib is there, formats.png."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "formats.json", text)
    columns, cells = table(found.standings)
    write_whole(directory / "formats.md", "\n".join(markdown_table(columns, cells, 1)) + "\n")
    try:
        figure = draw(found.standings, found.title)
    except InvalidRequest as error:
        print_note(str(error))
        return
    if figure is not None:
        save_png(figure, directory / "formats.png")


def table(found: Sequence[Standing]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells: a row for each format, with the samples lost against the first in brackets."""
    read = any(standing.perplexity for standing in found)
    cells = [
        [
            standing.name,
            f"{standing.kv_bytes:,.0f}",
            f"{standing.ratio:.2f}",
            *(_perplexity(standing.perplexity) if read else []),
            *map(_score, standing.retrieved),
        ]
        for standing in found
    ]
    asked = [f"{cell.task} {format_tokens(cell.length)}" for cell in found[0].retrieved]
    return ["format", "bytes a token", "smaller", *(["perplexity", "change"] if read else []), *asked], cells


def _perplexity(found: Perplexity | None) -> list[str]:
    """The perplexity, and how much more it is than the first format's, with its interval."""
    if found is None:
        return ["-", "-"]
    ends = found.change_interval
    interval = "" if ends is None else " ({:+.2f} to {:+.2f})".format(*(100 * end for end in ends))
    return [f"{found.value:.3f}", f"{100 * found.change:+.2f} %{interval}"]


def _score(cell: Retrieved) -> str:
    """The share that is right, and how many samples it lost and gained where there are any."""
    changes = [f"-{cell.lost}"] * bool(cell.lost) + [f"+{cell.gained}"] * bool(cell.gained)
    return f"{cell.score:.0%}" + (f" ({', '.join(changes)})" if changes else "")
