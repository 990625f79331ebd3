"""`runtime eval perplexity`: the loss of long texts by length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import (
    DOCUMENT,
    Lengths,
    RunOptions,
    parse_lengths,
    takes_run_options,
)
from moorage.runtime.cli.eval_run import measure, publish
from moorage.runtime.evals.perplexity import Perplexity, TokenText
from moorage.runtime.evals.tasks import Suite

Last = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Count only the last tokens of a window; all if absent."),
]


@eval_app.command(
    epilog=examples(
        "runtime eval perplexity --lengths 2K,8K,32K",
        "runtime eval perplexity --config deploy/local.yaml --data book.txt --lengths 512,2K --preset full,inf-llm",
        "runtime eval perplexity --data pg19.bin --dtype uint16 --lengths 4K,64K --stride 256 --samples 100",
    )
)
@takes_run_options
def perplexity(
    run: RunOptions,
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="A text file, a folder of .txt, .md and .rst files, or token ids in a .bin file.",
            show_default="the shipped Python reference",
        ),
    ] = DOCUMENT,
    dtype: Annotated[
        str, typer.Option(metavar="uint16|uint32", help="Of the ids in a .bin file.")
    ] = "uint16",
    lengths: Lengths = "2K,8K,32K",
    samples: Annotated[int, typer.Option(min=1, help="Windows of each length.")] = 8,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Slide a window by this many tokens (256 in PG19 tables); spread if absent.",
        ),
    ] = None,
    last: Last = None,
) -> None:
    """Measure loss and perplexity of long texts by length.

    The loss is in nats per token, the perplexity its exponential. Windows of all lengths end at the same
    places. A window is read in one prefill: presets that prefill exactly differ by their positions alone.
    """
    if dtype not in ("uint16", "uint32"):
        raise typer.BadParameter(f"{dtype!r} should be uint16 or uint32", param_hint="--dtype")
    task = Perplexity(TokenText.of(data, dtype), parse_lengths(lengths), samples, stride, last)
    with run.targets(max(task.lengths)) as targets:
        summary = measure(Suite("perplexity", (task,)), targets, run)
    publish(summary, run)
