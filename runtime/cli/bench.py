"""`runtime bench`: how fast the parts are on this machine, side by side with their limits and with others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.bench.gpu.arguments import DEFAULTS, HELP, Arguments
from moorage.runtime.bench.measure import describe_machine, installed
from moorage.runtime.bench.report import Report, compare, print_falls
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.metavars import App
from moorage.runtime.cli.output import print_note
from moorage.runtime.config.units import parse_tokens
from moorage.runtime.packaged import DEPLOY

bench_app = App(
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    invoke_without_command=True,
)
app.add_typer(bench_app, name="bench", help="Measure the parts side by side with limits and peers.")

RATIOS = DEPLOY / "benchmarks" / "cpu-2-cores.json"
NOISE = 0.25
"""A ratio that fell by less than this share is taken for noise."""

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as JSON.")]
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved runs; the medians are shown.")]
Threads = Annotated[str, typer.Option(metavar="N,N,…", help="Thread counts.")]
WithRay = Annotated[bool, typer.Option("--ray/--no-ray", help="Also through a Ray actor.")]
EVERY_CORE = "1" if len(os.sched_getaffinity(0)) == 1 else f"1,{min(2, len(os.sched_getaffinity(0)))}"


def parse_counts(text: str) -> list[int]:
    """Thread counts or contexts, separated by commas."""
    try:
        counts = [parse_tokens(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}, separated by commas") from error
    if min(counts) < 1:
        raise typer.BadParameter(f"{text!r}: at least 1 each")
    return counts


def finish(report: Report, title: str, json_file: Path | None) -> None:
    """Prints the table and writes the file that was asked for."""
    report.print(title)
    if json_file is not None:
        report.write(json_file)


@bench_app.callback()
def every_part(
    context: typer.Context,
    compare_with_last: Annotated[
        bool, typer.Option("--compare", help="Run every benchmark and say which ratios fell.")
    ] = False,
    against: Annotated[
        Path, typer.Option(metavar="FILE", help="Ratios to compare with.", show_default="the shipped ones")
    ] = RATIOS,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run every benchmark and keep its ratios.")
    ] = None,
    with_ray: WithRay = True,
    json_file: JsonFile = None,
) -> None:
    """Measure the parts side by side with limits and peers; --compare runs all of them in short form."""
    if context.invoked_subcommand is not None:
        return
    if not compare_with_last and keep is None and json_file is None:
        print(context.get_help())
        return
    from moorage.runtime.bench.everything import run_everything

    report = Report(describe_machine())
    for name, rows in run_everything(parse_counts(EVERY_CORE), with_ray):
        print_note(f"bench {name} …")
        report.add(rows)
    finish(report, "every benchmark", json_file)
    if keep is not None:
        report.write_ratios(keep)
    if compare_with_last:
        falls, count = compare(report.rows, against, NOISE)
        print_falls(falls, count, against)


@bench_app.command(
    epilog=examples("runtime bench scoring", "runtime bench scoring --threads 1 --json scoring.json")
)
def scoring(
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens that the anchors stand for.")] = "1M",
    threads: Threads = EVERY_CORE,
    rounds: Rounds = 15,
    json_file: JsonFile = None,
) -> None:
    """Score every block of one layer, and choose the best: 8 KV heads of 128, blocks of 128 tokens."""
    from moorage.runtime.bench.scoring import ABSENT, run_scoring

    report = Report(describe_machine())
    for tokens in parse_counts(context):
        report.add(run_scoring(tokens, parse_counts(threads), rounds))
    report.add((), () if installed("faiss-cpu") else (ABSENT,))
    finish(report, "scoring", json_file)


@bench_app.command(epilog=examples("runtime bench select", "runtime bench select --no-ray --context 128K,1M"))
def select(
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens that the blocks stand for.")] = "1M",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each store.")] = 1,
    with_ray: WithRay = True,
    rounds: Rounds = 101,
    json_file: JsonFile = None,
) -> None:
    """Select the blocks of one layer: in this process, through the mailbox, through a Ray call."""
    from moorage.runtime.bench.selecting import run_select

    report = Report(describe_machine())
    for tokens in parse_counts(context):
        report.add(run_select(tokens, threads, rounds, with_ray))
    finish(report, "select", json_file)


@bench_app.command(epilog=examples("runtime bench gather", "runtime bench gather --threads 1"))
def gather(threads: Threads = EVERY_CORE, rounds: Rounds = 31, json_file: JsonFile = None) -> None:
    """Copy selected blocks out of an arena, against memcpy."""
    from moorage.runtime.bench.gathering import run_gather

    report = Report(describe_machine())
    report.add(run_gather(parse_counts(threads), rounds))
    finish(report, "gather", json_file)


@bench_app.command(epilog=examples("runtime bench link", "runtime bench link --no-ray"))
def link(with_ray: WithRay = True, rounds: Rounds = 15, json_file: JsonFile = None) -> None:
    """Measure the round trip to a store: percentiles of calls that compute nothing."""
    from moorage.runtime.bench.selecting import run_link

    report = Report(describe_machine())
    report.add(run_link(rounds, with_ray))
    finish(report, "link", json_file)


@bench_app.command(
    epilog=examples("runtime bench layer", "runtime bench layer --sessions 1,8,32 --threads 1")
)
def layer(
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens of each session.")] = "32K",
    sessions: Annotated[str, typer.Option(metavar="N,N,…", help="Sessions that decode together.")] = "1,8",
    threads: Threads = EVERY_CORE,
    rounds: Rounds = 101,
    json_file: JsonFile = None,
) -> None:
    """Write, choose and attend in one layer on the CPU: 2 KV heads of 64, 24 of the blocks of 32 tokens."""
    from moorage.runtime.bench.decode_layer import run_layer_of_decode

    report = Report(describe_machine())
    for tokens in parse_counts(context):
        report.add(run_layer_of_decode(tokens, parse_counts(sessions), parse_counts(threads), rounds))
    finish(report, "layer", json_file)


Shards = Annotated[int, typer.Option(min=1, help="KV stores that share the cache.")]
Mailbox = Annotated[bool, typer.Option(help="Stores in processes of their own, reached by the mailbox.")]
EngineThreads = Annotated[
    int, typer.Option("--threads", min=1, help="Threads of the engine and of each store.")
]
PeerContext = Annotated[str, typer.Option(metavar="N", help="Longest context that transformers is asked.")]
NO_PEER = "transformers is not installed, so its rows are missing: pip install transformers"


@bench_app.command(
    epilog=examples(
        "runtime bench decode",
        "runtime bench decode --context 32K,1M --mailbox --shards 2",
        "runtime bench decode --context 32K --batch 8",
    )
)
def decode(
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens before the new one.")] = (
        "4K,32K,128K,512K,1M"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Tokens of each context.")] = 40,
    full_steps: Annotated[int, typer.Option(min=1, help="Of them with attention over all keys.")] = 3,
    peer_context: PeerContext = "128K",
    lag: Annotated[bool, typer.Option("--lag", help="Also with choices by the last step's query.")] = False,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Instead, decode so many sessions together, beside one; full attention and transformers are left "
            "out.",
        ),
    ] = None,
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
    setup = Setup(shards, mailbox, threads)
    if batch is not None:
        report.add(run_batches(parse_counts(context), parse_counts(batch), steps, setup))
        finish(report, "decode of several sessions: seconds a step and its parts", json_file)
        return
    rows = run_decode(parse_counts(context), steps, full_steps, setup, parse_counts(peer_context)[0], lag)
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


@bench_app.command(
    epilog=examples(
        "runtime bench gpu", "runtime bench gpu --shape llama-3-8b --context 128K,512K --json gpu.json"
    )
)
def gpu(
    shape: Annotated[str, typer.Option(metavar="NAME", help=HELP["shape"])] = DEFAULTS.shape,
    device: Annotated[str, typer.Option(metavar="NAME", help=HELP["device"])] = DEFAULTS.device,
    device_memory: Annotated[
        str, typer.Option(metavar="SIZE", help=HELP["device_memory"])
    ] = DEFAULTS.device_memory,
    context: Annotated[str, typer.Option(metavar="N,N,…", help=HELP["context"])] = DEFAULTS.context,
    prefill_context: Annotated[
        str, typer.Option(metavar="N,N,…", help=HELP["prefill_context"])
    ] = DEFAULTS.prefill_context,
    batch: Annotated[str, typer.Option(metavar="N,N,…", help=HELP["batch"])] = DEFAULTS.batch,
    chunk: Annotated[int, typer.Option(min=1, help=HELP["chunk"])] = DEFAULTS.chunk,
    steps: Annotated[int, typer.Option(min=1, help=HELP["steps"])] = DEFAULTS.steps,
    budget: Annotated[int, typer.Option(min=1, metavar="SECONDS", help=HELP["budget"])] = DEFAULTS.budget,
    host_memory: Annotated[
        str, typer.Option(metavar="SIZE", help=HELP["host_memory"])
    ] = DEFAULTS.host_memory,
    only: Annotated[str, typer.Option(metavar="NAME,NAME,…", help=HELP["only"])] = DEFAULTS.only,
    json_lines: Annotated[str, typer.Option(metavar="FILE", help=HELP["json_lines"])] = DEFAULTS.json_lines,
    threads: Annotated[int, typer.Option(min=1, help=HELP["threads"])] = DEFAULTS.threads,
    json_file: JsonFile = None,
) -> None:
    """Decode and prefill on a GPU with the KV cache in DRAM; random weights, nothing is downloaded."""
    from moorage.runtime.bench.gpu.report import run_gpu

    for counts in (context, prefill_context, batch):
        parse_counts(counts)
    report = run_gpu(
        Arguments(
            shape,
            device,
            device_memory,
            context,
            prefill_context,
            batch,
            chunk,
            steps,
            budget,
            host_memory,
            only,
            json_lines,
            threads,
        )
    )
    if json_file is not None:
        report.write(json_file)
