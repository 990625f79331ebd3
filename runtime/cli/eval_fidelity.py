"""`runtime eval fidelity`: how far from full attention is what a model says under each choice of memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_choices import (
    ChoiceOptions,
    markdown_table,
    parse_documents,
    parse_tasks,
    shown,
)
from moorage.runtime.cli.eval_options import takes_run_options
from moorage.runtime.cli.output import print_json, print_note, print_table
from moorage.runtime.config.units import format_tokens
from moorage.workers.errors import InvalidRequest

if TYPE_CHECKING:
    from moorage.runtime.evals.fidelity.figures import Cell
    from moorage.runtime.evals.fidelity.report import Report

TASKS = ("copy", "continue", "retrieve")


@eval_app.command(
    epilog=examples(
        "runtime eval fidelity --model MODEL_DIR --passages 2 --lengths 4K",
        "runtime eval fidelity --model MODEL.gguf --preset moorage,ktransformers --budgets 256,512,1024 --output out",
        "runtime eval fidelity --config cluster.yaml --tasks copy --variant 'one mean:long_context.block_size=32,"
        "long_context.anchor_type=BLOCK_MEAN,memory.topk=32'",
    )
)
@takes_run_options
def fidelity(
    chosen: ChoiceOptions,
    lengths: Annotated[
        str, typer.Option(metavar="N,N,…", help="Tokens of a document; K is 1024.")
    ] = "3600,8000",
    tasks: Annotated[str, typer.Option(metavar="NAME,…", help=f"Of {', '.join(TASKS)}.")] = ",".join(TASKS),
    passages: Annotated[int, typer.Option(min=1, help="Passages of each task and length.")] = 4,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR", help="The text to read.", show_default="docstrings of Python's library"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write fidelity.json and fidelity.md there as they grow, and a picture."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")
    ] = None,
) -> None:
    """Measure how far from full attention is what a model says under each choice of memory.

    A document is prefilled; then given tokens pass one at a time through decode steps that select what they attend.
    At each scored token the distribution over the vocabulary is compared with full attention's over the same
    cache: KL in nats, with its 95 % interval over passages; how often the likeliest token is the same; how near
    full attention's two likeliest tokens are at most where it is another (flip margin, in nats); how often it is
    the true one. The mass is the share of the exact attention on the attended keys; where single keys are selected,
    the means of blocks estimate it as well. The tasks: copy (the end
    repeats a cue from far back), continue (the text goes on) and retrieve (one of four facts is asked for).
    """
    source, variants, budgets = chosen.source(), chosen.variants(), chosen.sizes()
    wanted, sizes = parse_tasks(tasks, TASKS), parse_documents(lengths)
    from moorage.runtime.evals.fidelity.passages import library_text, text_of
    from moorage.runtime.evals.fidelity.report import Plan, compare, draw

    plan = Plan(
        source,
        chosen.presets(),
        variants,
        budgets,
        chosen.frame(),
        library_text() if text is None else text_of(text),
        wanted,
        sizes,
        passages,
    )

    def keep(report: Report) -> None:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "fidelity.json").write_text(_as_text(report), encoding="utf-8")
            (output / "fidelity.md").write_text(markdown(report), encoding="utf-8")

    report = compare(plan, print_note, keep)
    if output is not None:
        try:
            draw(report, output / "fidelity.png")
        except InvalidRequest as error:
            print_note(str(error))
    if json_file is not None and str(json_file) == "-":
        print_json(report.as_json())
        return
    if json_file is not None:
        json_file.write_text(_as_text(report), encoding="utf-8")
    columns, rows = table(report.cells)
    print_table(columns, rows, title=report.title, right=columns[3:], notes=report.notes())


def table(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells, the smallest KL first within a task and length."""
    columns = [
        "task", "length", "choice", "budget", "attended", "index bytes", "KL", "±", "agreement", "flip margin",
        "hits", "full's hits", "mass", "5th pct.", "retrieval heads", "estimated",
    ]  # fmt: skip
    return columns, [
        [
            cell.task,
            format_tokens(cell.length),
            cell.choice,
            "-" if cell.budget is None else str(cell.budget),
            "all" if cell.index_bytes is None else shown(cell.attended, ".0f"),
            shown(cell.index_bytes, ".3g"),
            f"{cell.kl:.5f}",
            shown(cell.kl_interval, ".5f"),
            f"{cell.agreement:.3f}",
            shown(cell.flip_margin, ".3f"),
            f"{cell.hits:.3f}",
            f"{cell.full_hits:.3f}",
            shown(cell.mass, ".3f"),
            shown(cell.low_mass, ".3f"),
            shown(cell.retrieval_mass, ".3f"),
            shown(cell.estimated_mass, ".3f"),
        ]
        for cell in cells
    ]


def markdown(report: Report) -> str:
    """The table as Markdown, with its title and notes."""
    notes = (f"- {note}" for note in report.notes())
    lines = [f"## {report.title}", "", *markdown_table(*table(report.cells), num_left=3), "", *notes]
    return "\n".join(lines) + "\n"


def _as_text(report: Report) -> str:
    return json.dumps(report.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
