"""`runtime eval report`: finished runs side by side on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.evals.report import find_runs, render


@eval_app.command(
    epilog=examples(
        "runtime eval report out",
        "runtime eval report runs/full runs/inf-llm --output compared.html",
    )
)
def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR…", help="What --output wrote, or folders of such runs.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("report.html"),
) -> None:
    """Write one page that lays finished runs side by side.

    The page is HTML with tables, heatmaps and curves, and needs nothing from elsewhere.
    """
    runs = find_runs(directories)
    output.write_text(render(runs), encoding="utf-8")
    print(f"{output}: {len(runs)} run{'s' * (len(runs) != 1)}")
