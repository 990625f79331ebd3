"""`runtime eval fidelity-report`: several runs of `eval fidelity` as one table and one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_fidelity import markdown, table
from moorage.runtime.cli.output import print_note, print_table
from moorage.workers.errors import InvalidRequest


@eval_app.command(
    "fidelity-report",
    epilog=examples("runtime eval fidelity-report out/keys out/blocks --output out/all"),
)
def fidelity_report(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR…", help="What --output of `eval fidelity` wrote.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write fidelity.json, fidelity.md and a picture there."),
    ] = None,
) -> None:
    """Lay several runs of `eval fidelity` side by side: one table, and how well each measure predicts KL.

    The runs are of one model, sinks and window. The picture has a point for each cell that selects: KL over the share
    of attention that is lost, by each measure of that share.
    """
    from moorage.runtime.evals.fidelity.merged import RESULT, merge
    from moorage.runtime.evals.fidelity.report import draw

    report = merge(directories)
    columns, rows = table(report.cells)
    print_table(columns, rows, title=report.title, right=columns[3:], notes=report.notes())
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    result = json.dumps(report.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (output / RESULT).write_text(result, encoding="utf-8")
    (output / "fidelity.md").write_text(markdown(report), encoding="utf-8")
    try:
        draw(report, output / "fidelity.png")
    except InvalidRequest as error:
        print_note(str(error))
