"""`runtime eval compare`: choices of memory ranked over many tasks, at equal numbers of attended tokens."""

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
from moorage.runtime.cli.eval_options import Seed, takes_run_options
from moorage.runtime.cli.output import print_json, print_note, print_table
from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.haystack import DEFAULT_DOCUMENT

if TYPE_CHECKING:
    from moorage.runtime.evals.compare.report import Comparison
    from moorage.runtime.evals.compare.standings import Cell, Standing

TASKS = (
    "copy", "continue", "generate", "passkey", "passkey-wordings", "wordings", "needle", "multikey", "json",
    "records", "chains", "common", "frequent",
)  # fmt: skip
_DEFAULT_TASKS = "copy,continue,multikey,records,chains,common,frequent"


@eval_app.command(
    epilog=examples(
        "runtime eval compare --model MODEL_DIR --lengths 4K --window 128 --budgets 256,768 --output out",
        "runtime eval compare --model MODEL_DIR --tasks generate --generated 4096 --samples 2 --lengths 4K",
        "runtime eval compare --model MODEL_DIR --tasks passkey,json --lengths 8K --set memory.positions=dca",
    )
)
@takes_run_options
def compare(
    chosen: ChoiceOptions,
    lengths: Annotated[
        str, typer.Option(metavar="N,N,…", help="Most tokens of a document; K is 1024.")
    ] = "4K",
    tasks: Annotated[str, typer.Option(metavar="NAME,…", help=f"Of {', '.join(TASKS)}.")] = _DEFAULT_TASKS,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each task and length.")] = 10,
    generated: Annotated[int, typer.Option(min=1, help="Tokens that the task generate generates.")] = 4096,
    seed: Seed = 0,
    text: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="The text that documents are made of.",
            show_default="the shipped Python reference",
        ),
    ] = DEFAULT_DOCUMENT,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write compare.json and compare.md there as they grow.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")
    ] = None,
) -> None:
    """Rank choices of memory over many tasks, at equal numbers of selected tokens.

    Each document is prefilled exactly; the question and the answer pass one token at a time through decode steps
    that select what they attend. KL, in nats from full attention, is measured over the text's own tokens, or over the
    answer that full attention gives; each choice's own greedy answer is scored as well. Intervals are of 95 %.

    The tasks: copy (the end repeats a cue from far back), continue (the text goes on; perplexity), generate (full
    attention's own long text; KL in eight parts of it), passkey and needle (one hidden fact, as published),
    passkey-wordings and wordings (a pass key, and other numbers, in ten wordings each that no published test has),
    multikey (one of four), json (one pair of many), records (all facts of a document; the share that is listed),
    chains (variables assigned one from another), common and frequent (the most frequent words).
    """
    source, variants, budgets = chosen.source(), chosen.variants(), chosen.sizes()
    wanted, sizes = parse_tasks(tasks, TASKS), parse_documents(lengths)
    from moorage.runtime.evals.compare.report import Plan, compare
    from moorage.runtime.evals.fidelity.passages import text_of

    plan = Plan(
        source,
        chosen.presets(),
        variants,
        budgets,
        chosen.frame(),
        text_of(text),
        wanted,
        sizes,
        samples,
        seed,
        generated,
    )

    def keep(found: Comparison) -> None:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "compare.json").write_text(_as_text(found), encoding="utf-8")
            (output / "compare.md").write_text(markdown(found), encoding="utf-8")

    found = compare(plan, print_note, keep)
    if json_file is not None and str(json_file) == "-":
        print_json(found.as_json())
        return
    if json_file is not None:
        json_file.write_text(_as_text(found), encoding="utf-8")
    for title, (columns, rows), num_left in _tables(found):
        print_table(columns, rows, title=title, right=columns[num_left:])


def ranking(standings: Sequence[Standing]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the ranking, each task and length counting alike."""
    columns = [
        "selected", "choice", "attended", "index bytes", "KL", "95 % interval", "agreement", "score",
        "95 % interval", "full's score", "perplexity / full's",
    ]  # fmt: skip
    return columns, [
        [
            "all" if one.index_bytes is None else shown(one.budget, "d"),
            one.choice,
            "all" if one.index_bytes is None else shown(one.attended, ".0f"),
            shown(one.index_bytes, ".3g"),
            f"{one.kl:.5f}",
            _interval(one.kl_interval, ".2g"),
            f"{one.agreement:.3f}",
            shown(one.score, ".3f"),
            _interval(one.score_interval, ".2f"),
            shown(one.full_score, ".3f"),
            shown(one.perplexity_ratio, ".4f"),
        ]
        for one in standings
    ]


def by_task(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of all cells."""
    columns = [
        "task", "length", "selected", "choice", "samples", "KL", "95 % interval", "agreement", "score",
        "95 % interval", "full's score", "perplexity", "full's",
    ]  # fmt: skip
    return columns, [
        [
            cell.task,
            format_tokens(cell.length),
            "all" if cell.index_bytes is None else shown(cell.budget, "d"),
            cell.choice,
            str(cell.samples),
            f"{cell.kl:.5f}",
            _interval(cell.kl_interval, ".2g"),
            f"{cell.agreement:.3f}",
            shown(cell.score, ".3f"),
            _interval(cell.score_interval, ".2f"),
            shown(cell.full_score, ".3f"),
            shown(cell.perplexity, ".3f"),
            shown(cell.full_perplexity, ".3f"),
        ]
        for cell in cells
    ]


def drift(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of KL in each part of a long generation."""
    generated = [cell for cell in cells if cell.drift is not None]
    parts = max((len(cell.drift or ()) for cell in generated), default=0)
    columns = ["length", "selected", "choice", *(f"part {part}" for part in range(1, parts + 1)), "repeated"]
    return columns, [
        [
            format_tokens(cell.length),
            "all" if cell.index_bytes is None else shown(cell.budget, "d"),
            cell.choice,
            *(f"{value:.5f}" for value in cell.drift or ()),
            shown(cell.repeated, ".2f"),
        ]
        for cell in generated
    ]


def markdown(found: Comparison) -> str:
    """All tables as Markdown."""
    lines = [f"# {found.title}"]
    for title, (columns, rows), num_left in _tables(found):
        lines += ["", f"## {title}", "", *markdown_table(columns, rows, num_left)]
    return "\n".join(lines) + "\n"


def _tables(found: Comparison) -> list[tuple[str, tuple[list[str], list[list[str]]], int]]:
    """Title, columns with rows, and how many columns stand at the left."""
    tables = [
        (f"ranking: {found.title}", ranking(found.standings), 2),
        ("by task", by_task(found.cells), 4),
    ]
    if any(cell.drift is not None for cell in found.cells):
        tables.append(("KL in equal parts of what full attention generated", drift(found.cells), 3))
    return tables


def _interval(ends: tuple[float, float] | None, form: str) -> str:
    return "-" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def _as_text(found: Comparison) -> str:
    return json.dumps(found.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
