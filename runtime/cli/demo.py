"""`runtime demo`: a long document with a hidden fact, asked of the embedded model, from start to stop."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from moorage.client import Client, GenerateResult
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.loading import start_view
from moorage.runtime.cli.output import format_gb, print_note, print_table
from moorage.runtime.cli.stop import end_cluster
from moorage.runtime.cli.streaming import stream_text
from moorage.runtime.cluster import registry
from moorage.runtime.cluster.daemon import launch_detached
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.evals.haystack import Material, text_haystack
from moorage.runtime.evals.passkey import ANSWER_TOKENS, PasskeySample, is_correct, make_sample
from moorage.runtime.evals.targets import ServerCoder
from moorage.runtime.packaged import example_file
from moorage.runtime.planning.preflight import check_host
from moorage.workers.errors import MoorageError, NotFound

DEMO_TOKENS = 32_768
_OVERRIDES = ("server.grpc=127.0.0.1:0",)
_STOP_TIMEOUT_S = 20.0


@app.command(epilog=examples("runtime demo", "runtime demo --tokens 8192"))
def demo(
    tokens: Annotated[int, typer.Option(help="Length of the prompt in tokens.", min=256)] = DEMO_TOKENS,
    depth: Annotated[
        float, typer.Option(help="Where the fact is hidden: 0 at the start, 1 at the end.", min=0, max=1)
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Which part of the document, and which fact.")] = 0,
) -> None:
    """Hide a fact in a long document, and have it found."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in a log, too, results and notes come in order
    haystack = text_haystack()
    with _cluster() as ready, Client(ready["address"]) as client:
        coder = ServerCoder(client)
        material = Material(haystack, coder, coder.prefix())
        sample = make_sample(material, tokens, depth, seed)
        print_note(
            f"A document of {sample.num_tokens:,} tokens hides one fact at {sample.depth:.0%} of its length:\n"
            f"  The pass key is {sample.answer}.\n"
            "It ends with the question: What is the pass key? The model answers:"
        )
        stream = client.generate(sample.prompt_ids, max_new_tokens=ANSWER_TOKENS, temperature=0.0)
        result = stream_text(stream, keep_bar=True)
        _print_figures(result)
    print_note("The cluster has stopped; nothing of it is left.")
    _check(result, sample)


@contextmanager
def _cluster() -> Iterator[dict[str, Any]]:
    """A cluster of its own on a free port, which ends with the block."""
    cluster_file = example_file("local")
    check_host(load_cluster_config(cluster_file, _OVERRIDES))
    print_note(f"Starting a cluster from {cluster_file} …")
    begun_s = time.monotonic()
    with start_view() as view:
        ready = launch_detached(cluster_file, _OVERRIDES, None, view.loading, view.stage)
    print_note(f"Ready after {time.monotonic() - begun_s:.1f} s at {ready['address']}.")
    try:
        yield ready
    finally:
        with suppress(NotFound):
            end_cluster(registry.find(ready["address"]), _STOP_TIMEOUT_S)


def _print_figures(result: GenerateResult) -> None:
    usage = result.usage
    rows = [
        ("time to first token", _shown(usage.time_to_first_token_s, "{:.1f} s")),
        ("prefill", _shown(usage.prefill_tokens_per_s, "{:,.0f} tokens/s")),
        ("decode", _shown(usage.decode_tokens_per_s, "{:.1f} tokens/s")),
        ("DRAM held", f"{format_gb(usage.dram_bytes)} GB"),
        ("blocks selected per layer and step", _shown(usage.chosen_blocks, "{:.1f}")),
        (
            "tokens attended at most",
            f"{usage.budget_tokens:,} of {usage.prompt_tokens:,}" if usage.budget_tokens else "all",
        ),
        ("recall of the attention mass", _shown(usage.recall, "{:.3f}")),
    ]
    print_table(("figure", "value"), rows, right=("value",))


def _shown(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)


def _check(result: GenerateResult, sample: PasskeySample) -> None:
    if not is_correct(result.text, sample.answer):
        raise MoorageError(f"the answer is wrong: the pass key is {sample.answer}; try another --seed")
    print(f"The answer is right: {sample.answer}.")
