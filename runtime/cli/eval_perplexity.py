"""`runtime eval perplexity` and `runtime eval extrapolation`: long texts by length, by positions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import (
    DOCUMENT,
    Document,
    Lengths,
    RunOptions,
    Seed,
    parse_lengths,
    takes_run_options,
)
from moorage.runtime.cli.eval_run import measure, publish
from moorage.runtime.evals.haystack import text_haystack
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.perplexity import Perplexity, TokenText
from moorage.runtime.evals.tasks import Suite
from moorage.runtime.evals.variants import Variant
from moorage.runtime.units import parse_tokens

_EVERY_KEY = (
    "memory.preset=full",
    "memory.topk=null",
    "memory.exc_block_size=null",
    "long_context.second_select_num=null",
)
"""Overrides that take back a file's choice of blocks."""


def schemes(trained: int) -> list[Variant]:
    """Ways to go beyond the trained length: four over every key, and clamped with the file's choice of blocks."""
    length = f"memory.pretraining_length={trained}"
    linear = "memory.rope_scaling={rope_type: linear, factor: {scale}}"
    rope = (*_EVERY_KEY, "memory.positions=rope")
    return [
        Variant("rope", None, rope),
        Variant("linear", None, (*rope, linear)),
        Variant("dynamic", None, (*rope, length, "memory.rope_scaling_factor=1")),
        Variant("dca", None, (*_EVERY_KEY, length, "memory.positions=dca")),
        Variant("clamped", None, ("memory.positions=clamped",)),
    ]


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
    """Measure loss, in nats per token, and perplexity, its exponential, of long texts by length.

    A window is read in one prefill: presets that prefill exactly differ by their positions alone.
    """
    if dtype not in ("uint16", "uint32"):
        raise typer.BadParameter(f"{dtype!r} should be uint16 or uint32", param_hint="--dtype")
    task = Perplexity(TokenText.of(data, dtype), parse_lengths(lengths), samples, stride, last)
    with run.targets(max(task.lengths)) as targets:
        summary = measure(Suite("perplexity", (task,)), targets, run)
    publish(summary, run)


@eval_app.command(
    epilog=examples(
        "runtime eval extrapolation --config deploy/local.yaml --trained 512",
        "runtime eval extrapolation --model ./my-model --trained 8K --scales 1,4 --samples 5 --output out",
        "runtime eval extrapolation --config deploy/local.yaml --variant yarn:memory.preset=full,"
        "memory.rope_scaling={rope_type: yarn, factor: {scale}}",
    )
)
@takes_run_options
def extrapolation(
    run: RunOptions,
    trained: Annotated[
        str | None,
        typer.Option(metavar="N", help="Tokens the model was trained on; default is its own figure."),
    ] = None,
    scales: Annotated[str, typer.Option(metavar="X,X,…", help="Lengths, in trained lengths.")] = "2,4,16,64",
    samples: Annotated[int, typer.Option(min=1, help="Pass keys of each length.")] = 10,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each length for the perplexity.")] = 2,
    last: Last = 256,
    seed: Seed = 0,
    document: Document = DOCUMENT,
) -> None:
    """Lay ways to go beyond the trained length side by side: pass keys and perplexity at multiples of it.

    In this process: plain RoPE, linear interpolation, dynamic NTK and dual chunks over every key, and clamped
    positions with the file's choice of blocks; or the presets and variants that are given.
    """
    if not run.in_process:
        raise typer.BadParameter("give --config or --model; this runs in this process", param_hint="--config")
    base = _trained(run, trained)
    try:
        lengths = tuple(round(float(scale) * base) for scale in scales.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{scales!r} should be numbers, separated by commas", param_hint="--scales"
        ) from None
    passkeys = Passkey(text_haystack(document), Style.TEXT, lengths, samples, seed)
    texts = Perplexity(TokenText.of(document), lengths, windows, None, last)
    with run.targets(max(lengths), schemes(base), base) as targets:
        summary = measure(Suite("extrapolation", (passkeys, texts), seed), targets, run)
    publish(summary, run, {"trained": base})


def _trained(run: RunOptions, trained: str | None) -> int:
    if trained is not None:
        return parse_tokens(trained)
    from moorage.runtime.evals.local_targets import LocalConfig
    from moorage.workers.hf_config import read_model_spec

    config = LocalConfig(run.config, run.model, run.overrides or ()).load()
    return config.memory.pretraining_length or read_model_spec(config.model.path).max_position_embeddings
