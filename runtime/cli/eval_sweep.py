"""`runtime eval sweep`: a table of recall and pass-key accuracy over the axes of selection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_recall import DEFAULT_CONFIG, ConfigFile, Overrides
from moorage.runtime.cli.output import print_note, print_table
from moorage.runtime.config.units import parse_tokens
from moorage.runtime.evals.haystack import DEFAULT_DOCUMENT, text_haystack
from moorage.runtime.evals.sweep import SweepPoint, SweepPrompts, SweepRow, points, points_of_presets, sweep
from moorage.workers.counting import counted

_ANCHORS = (
    "BLOCK_MEAN:plain,BLOCK_MAX:plain,FIXED:plain,QUEST:plain,QUEST:rotated,DYNAMIC:plain,DYNAMIC:rotated,"
    "REPR_TOPK:plain"
)


@eval_app.command(
    name="sweep",
    epilog=examples(
        "runtime eval sweep --length 4K --samples 4 --json anchors.json",
        "runtime eval sweep --presets moorage,ktransformers,inf-llm --budgets 512 --length 2K",
        "runtime eval sweep --anchors QUEST:plain,QUEST:rotated --anchor-nums 1,2,4,8",
    ),
)
def sweep_command(
    config: ConfigFile = DEFAULT_CONFIG,
    overrides: Overrides = None,
    anchors: Annotated[str, typer.Option(metavar="TYPE:SPACE,…", help="Kinds of anchors.")] = _ANCHORS,
    anchor_nums: Annotated[str, typer.Option(metavar="N,…", help="Parts of a block.")] = "1,4",
    block_sizes: Annotated[str, typer.Option(metavar="N,…", help="Tokens of a block.")] = "32,64",
    budgets: Annotated[
        str, typer.Option(metavar="N,…", help="Selected tokens per layer and step.")
    ] = "384,768",
    preselects: Annotated[
        str, typer.Option(metavar="off,prompt", help="Preselections of three times the budget.")
    ] = "off",
    presets: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Instead: presets with their own anchors and block sizes."),
    ] = None,
    length: Annotated[str, typer.Option(metavar="N", help="Tokens of each prompt and its answer.")] = "4K",
    samples: Annotated[int, typer.Option(min=1, help="Prompts for each point.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same prompts.")] = 0,
    document: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR", help="The text to hide keys in.", show_default="the shipped Python reference"
        ),
    ] = DEFAULT_DOCUMENT,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as JSON too, as they come.")
    ] = None,
) -> None:
    """Try every combination of anchors, parts, block sizes and budgets, in this process."""
    kinds = [
        (kind, space or "plain") for kind, _, space in (text.partition(":") for text in anchors.split(","))
    ]
    chosen = points(
        kinds, _numbers(anchor_nums), _numbers(block_sizes), _numbers(budgets), preselects.split(",")
    )
    if presets is not None:
        chosen = _of_presets(presets, _numbers(budgets), config, overrides or ())
    num_tokens = parse_tokens(length)
    rows: list[SweepRow] = []
    prompts = SweepPrompts(text_haystack(document), num_tokens, samples, seed)
    for row in sweep(config, chosen, prompts, overrides or ()):
        found = f"recall {row.recall:.3f}, oracle {row.oracle:.3f}, pass keys {row.passkey:.0%}"
        print_note(f"{row.point}: {found}")
        rows.append(row)
        if json_file is not None:
            report = {"length": num_tokens, "seed": seed, "rows": [row.as_json() for row in rows]}
            json_file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    columns = ("preset", "prefill", "anchors", "space", "preselect", "parts", "block", "budget")
    print_table(
        (*columns, "attended", "recall", "oracle", "pass keys"),
        [
            (
                row.point.preset or "-",
                row.point.prefill,
                row.point.anchor_type,
                row.point.anchor_space,
                row.point.preselect_block,
                str(row.point.anchor_num),
                str(row.point.block_size),
                str(row.point.budget_tokens),
                str(row.attended_tokens),
                f"{row.recall:.3f}",
                f"{row.oracle:.3f}",
                f"{row.passkey:.0%}",
            )
            for row in rows
        ],
        title=f"{length} tokens, {counted(samples, 'prompt')} for each row",
        right=("parts", "block", "budget", "attended", "recall", "oracle", "pass keys"),
    )


def _of_presets(
    names: str, budgets: Sequence[int], config: Path, overrides: Sequence[str]
) -> list[SweepPoint]:
    try:
        return points_of_presets(names.split(","), budgets, config, overrides)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--presets") from None


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} should be whole numbers, separated by commas") from None
