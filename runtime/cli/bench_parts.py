"""`runtime bench scoring`, `select`, `gather`, `formats` and others: single parts beside limits and peers."""

from __future__ import annotations

from typing import Annotated

import typer

from moorage.runtime.bench.measure import describe_machine, installed
from moorage.runtime.bench.report import Report
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.bench_options import (
    EVERY_CORE,
    JsonFile,
    Rounds,
    Threads,
    WithRay,
    bench_app,
    finish,
    parse_counts,
)


@bench_app.command(
    epilog=examples("runtime bench scoring", "runtime bench scoring --threads 1 --json scoring.json")
)
def scoring(
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens that the anchors stand for.")] = "1M",
    threads: Threads = EVERY_CORE,
    rounds: Rounds = 15,
    json_file: JsonFile = None,
) -> None:
    """Score every block of one layer, and select the best: 8 KV heads of 128, blocks of 128 tokens."""
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


@bench_app.command(epilog=examples("runtime bench seal", "runtime bench seal --threads 1"))
def seal(threads: Threads = EVERY_CORE, rounds: Rounds = 31, json_file: JsonFile = None) -> None:
    """Make anchors and codes of keys of the full blocks of one layer, against reading these and QUEST's bounds."""
    from moorage.runtime.bench.sealing import run_seal

    report = Report(describe_machine())
    report.add(run_seal(parse_counts(threads), rounds))
    finish(report, "seal", json_file)


@bench_app.command(epilog=examples("runtime bench linear", "runtime bench linear --threads 1"))
def linear(threads: Threads = EVERY_CORE, rounds: Rounds = 31, json_file: JsonFile = None) -> None:
    """Multiply one row with weights of 4, 8, 16 and 32 bits, against reading as many bytes and against torch."""
    from moorage.runtime.bench.linear import run_linear

    report = Report(describe_machine())
    report.add(run_linear(parse_counts(threads), rounds))
    finish(report, "linear", json_file)


@bench_app.command(epilog=examples("runtime bench link", "runtime bench link --no-ray"))
def link(with_ray: WithRay = True, rounds: Rounds = 15, json_file: JsonFile = None) -> None:
    """Measure the round trip to a store: percentiles of calls that compute nothing."""
    from moorage.runtime.bench.selecting import run_link

    report = Report(describe_machine())
    report.add(run_link(rounds, with_ray))
    finish(report, "link", json_file)


@bench_app.command(epilog=examples("runtime bench keys", "runtime bench keys --context 32K,128K --threads 1"))
def keys(
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens of the session.")] = "128K",
    threads: Threads = EVERY_CORE,
    rounds: Rounds = 101,
    json_file: JsonFile = None,
) -> None:
    """Select and attend 768 single keys of each of 3 KV heads of 64 in one layer, against reading their codes."""
    from moorage.runtime.bench.single_keys import run_keys

    report = Report(describe_machine())
    for tokens in parse_counts(context):
        report.add(run_keys(tokens, parse_counts(threads), rounds))
    finish(report, "keys", json_file)


@bench_app.command(
    epilog=examples(
        "runtime bench formats", "runtime bench formats --heads 32x1x128 --context 16K --keys 768"
    )
)
def formats(
    heads: Annotated[
        str, typer.Option(metavar="KxGxD", help="KV heads, query heads of each of them, and head size.")
    ] = "8x4x128",
    context: Annotated[str, typer.Option(metavar="N,N,…", help="Tokens of the session.")] = "64K",
    num_keys: Annotated[
        int, typer.Option("--keys", metavar="N", min=0, help="Single keys that each KV head selects; 0: all.")
    ] = 0,
    threads: Threads = EVERY_CORE,
    rounds: Rounds = 31,
    json_file: JsonFile = None,
) -> None:
    """Attend every key of one layer, or single keys, where it lies packed, by kv_type, against keys in FP16."""
    from moorage.runtime.bench.formats import HeadShape, packed_types, run_format_keys, run_formats

    try:
        shape = HeadShape.parse(heads)
    except (ValueError, TypeError):
        raise typer.BadParameter(f"{heads!r} is not of the form 8x4x128", param_hint="--heads") from None
    report = Report(describe_machine())
    for tokens in parse_counts(context):
        many, kv_types = parse_counts(threads), packed_types()
        if num_keys:
            report.add(run_format_keys(shape, tokens, num_keys, many, rounds, kv_types))
        else:
            report.add(run_formats(shape, tokens, many, rounds, kv_types))
    finish(report, "formats", json_file)


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
    """Write, select and attend in one layer on the CPU: 2 KV heads of 64, 24 of the blocks of 32 tokens."""
    from moorage.runtime.bench.decode_layer import run_layer_of_decode

    report = Report(describe_machine())
    for tokens in parse_counts(context):
        report.add(run_layer_of_decode(tokens, parse_counts(sessions), parse_counts(threads), rounds))
    finish(report, "layer", json_file)
