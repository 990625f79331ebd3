"""`runtime bench decode` and `prefill`: whole steps of the engine on the embedded model."""

from __future__ import annotations

from typing import Annotated

import typer

from moorage.runtime.bench.measure import describe_machine, installed
from moorage.runtime.bench.report import Report
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.bench_options import (
    JsonFile,
    Rounds,
    bench_app,
    finish,
    parse_counts,
)

Shards = Annotated[int, typer.Option(min=1, help="KV stores that share the cache.")]
Mailbox = Annotated[bool, typer.Option(help="Stores in processes of their own, reached by the mailbox.")]
EngineThreads = Annotated[
    int, typer.Option("--threads", min=1, help="Threads of the engine and of each store.")
]
PeerContext = Annotated[
    str, typer.Option(metavar="N", help="Longest context that transformers is measured with.")
]
NO_PEER = "transformers is not installed, so its rows are missing: pip install transformers"


@bench_app.command(
    epilog=examples(
        "runtime bench decode",
        "runtime bench decode --context 32K,1M --mailbox --shards 2",
        "runtime bench decode --context 32K --batch 8",
        "runtime bench decode --context 32K,1M --keys 128",
    )
)
def decode(
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens before the new one.")] = (
        "4K,32K,128K,512K,1M"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Tokens of each context.")] = 40,
    full_steps: Annotated[int, typer.Option(min=1, help="How many of them also attend all keys.")] = 3,
    peer_context: PeerContext = "128K",
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Instead, decode so many sessions together, beside one; full attention and transformers are left "
            "out.",
        ),
    ] = None,
    keys: Annotated[
        int,
        typer.Option(
            min=0,
            help="Single keys that each KV head selects beside a window of 512, as in deploy/million.yaml (128); 0 "
            "selects blocks.",
        ),
    ] = 0,
    shards: Shards = 1,
    mailbox: Mailbox = False,
    threads: EngineThreads = 1,
    json_file: JsonFile = None,
) -> None:
    """Generate tokens on the embedded model with the same budget at every length."""
    from moorage.runtime.bench.batching import run_batches
    from moorage.runtime.bench.decoding import run_decode
    from moorage.runtime.bench.pilot import Setup

    report = Report(describe_machine())
    setup = Setup(shards, mailbox, threads, keys)
    if batch is not None:
        report.add(run_batches(parse_counts(context), parse_counts(batch), steps, setup))
        finish(report, "decode of several sessions: seconds a step and its parts", json_file)
        return
    rows = run_decode(parse_counts(context), steps, full_steps, setup, parse_counts(peer_context)[0])
    report.add(rows, () if installed("transformers") else (NO_PEER,))
    finish(report, "decode: seconds a token and its parts", json_file)


@bench_app.command(
    epilog=examples("runtime bench prefill", "runtime bench prefill --context 64K,1M --rounds 5")
)
def prefill(
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens before the measured chunk.")] = (
        "4K,64K,256K,1M"
    ),
    chunk: Annotated[int, typer.Option(min=1, help="Tokens of the measured chunk.")] = 2048,
    exact_context: Annotated[
        str, typer.Option(metavar="N", help="Longest context prefilled exactly.")
    ] = "64K",
    peer_context: PeerContext = "32K",
    shards: Shards = 1,
    mailbox: Mailbox = False,
    threads: EngineThreads = 1,
    rounds: Rounds = 3,
    json_file: JsonFile = None,
) -> None:
    """Prefill a chunk of a prompt behind contexts of several lengths, exactly and with selection."""
    from moorage.runtime.bench.pilot import Setup
    from moorage.runtime.bench.prefilling import run_prefill

    report = Report(describe_machine())
    setup = Setup(shards, mailbox, threads)
    limits = parse_counts(exact_context)[0], parse_counts(peer_context)[0]
    rows = run_prefill(parse_counts(context), chunk, rounds, setup, *limits)
    report.add(rows, () if installed("transformers") else (NO_PEER,))
    finish(report, "prefill: seconds a token and its parts", json_file)
