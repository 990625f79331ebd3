"""`runtime eval extrapolation`: tasks and perplexity at multiples of the trained length, choices side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli.app import examples
from moorage.runtime.cli.eval import eval_app
from moorage.runtime.cli.eval_options import DOCUMENT, Document, RunOptions, Seed, takes_run_options
from moorage.runtime.cli.eval_perplexity import Last
from moorage.runtime.cli.eval_run import measure, publish
from moorage.runtime.evals.haystack import Haystack, text_haystack
from moorage.runtime.evals.key_values import KeyValues
from moorage.runtime.evals.needle import Needle
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.perplexity import Perplexity, TokenText
from moorage.runtime.evals.tasks import Suite, Task
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


def _makers(
    haystack: Haystack, lengths: tuple[int, ...], samples: int, seed: int
) -> dict[str, Callable[[], Task]]:
    return {
        "passkey": lambda: Passkey(haystack, Style.TEXT, lengths, samples, seed),
        "needle": lambda: Needle(haystack, lengths, samples, seed),
        "needle-4": lambda: Needle(haystack, lengths, samples, seed, needles=4, name="needle-4"),
        "kv-retrieval": lambda: KeyValues(lengths, samples, seed),
    }


@eval_app.command(
    epilog=examples(
        "runtime eval extrapolation --config deploy/local.yaml --trained 512",
        "runtime eval extrapolation --config deploy/local.yaml --preset full,inf-llm,moorage --scales 1,4,16,64 "
        "--tasks passkey,needle-4,kv-retrieval,perplexity --output out",
        "runtime eval extrapolation --config deploy/local.yaml --variant yarn:memory.preset=full,"
        "'memory.rope_scaling={rope_type: yarn, factor: {scale}}'",
        "runtime eval extrapolation --address 127.0.0.1:50051 --trained 8K --preset full,lmdeploy",
    )
)
@takes_run_options
def extrapolation(
    run: RunOptions,
    trained: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Tokens the model was trained on; in this process its own figure if absent."
        ),
    ] = None,
    scales: Annotated[str, typer.Option(metavar="X,X,…", help="Lengths, in trained lengths.")] = "2,4,16,64",
    tasks: Annotated[
        str, typer.Option(metavar="NAME,…", help="Of passkey, needle, needle-4, kv-retrieval and perplexity.")
    ] = "passkey,perplexity",
    samples: Annotated[int, typer.Option(min=1, help="Samples of each task and length.")] = 10,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each length for the perplexity.")] = 2,
    last: Last = 256,
    seed: Seed = 0,
    document: Document = DOCUMENT,
) -> None:
    """Lay ways beyond the trained length side by side.

    Measures tasks and perplexity at multiples of it. Without presets or variants, in this process: plain RoPE,
    linear interpolation, dynamic NTK and dual chunks over every key, and clamped positions with the file's
    choice of blocks.
    """
    if not run.in_process and trained is None:
        raise typer.BadParameter(
            "a server does not tell; give it, or --config or --model", param_hint="--trained"
        )
    base = _trained(run, trained)
    try:
        lengths = tuple(dict.fromkeys(round(float(scale) * base) for scale in scales.split(",")))
    except ValueError:
        raise typer.BadParameter(
            f"{scales!r} should be numbers, separated by commas", param_hint="--scales"
        ) from None
    chosen = _tasks(tasks, text_haystack(document), lengths, samples, seed, document, windows, last)
    ways = schemes(base) if run.in_process else None
    with run.targets(max(lengths), ways, base) as targets:
        summary = measure(Suite("extrapolation", chosen, seed), targets, run)
    publish(summary, run, {"trained": base})


def _tasks(
    names: str,
    haystack: Haystack,
    lengths: tuple[int, ...],
    samples: int,
    seed: int,
    document: Path,
    windows: int,
    last: int | None,
) -> tuple[Task, ...]:
    makers = _makers(haystack, lengths, samples, seed)
    makers["perplexity"] = lambda: Perplexity(TokenText.of(document), lengths, windows, None, last)
    asked = names.split(",")
    unknown = [name for name in asked if name not in makers]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} should be one of {', '.join(makers)}", param_hint="--tasks")
    return tuple(makers[name]() for name in dict.fromkeys(asked))


def _trained(run: RunOptions, trained: str | None) -> int:
    if trained is not None:
        return parse_tokens(trained)
    from moorage.runtime.evals.local_targets import LocalConfig
    from moorage.workers.hf_config import read_model_spec

    config = LocalConfig(run.config, run.model, run.overrides or ()).load()
    return config.memory.pretraining_length or read_model_spec(config.model.path).max_position_embeddings
