"""`runtime bench overload`: more requests than a running server can answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.client import AsyncClient, Client, FailedPrecondition
from moorage.runtime.bench.measure import describe_machine
from moorage.runtime.bench.report import write_json
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.bench_options import JsonFile, bench_app
from moorage.runtime.cli.output import print_note
from moorage.runtime.config.units import parse_seconds, parse_tokens
from moorage.runtime.packaged import DEPLOY

if TYPE_CHECKING:
    from moorage.runtime.bench.serve.overload import OverloadFigures

_WIDTH = 50


@bench_app.command(
    epilog=examples(
        "runtime bench overload",
        "runtime bench overload --factor 10 --duration 5min --input-len 2K --output-len 32",
        "runtime bench overload --duration 30s --json overload.json",
    )
)
def overload(
    address: o.Address = None,
    factor: Annotated[
        float, typer.Option(min=1.0, help="Offered requests, in multiples of the capacity.")
    ] = 10.0,
    duration: Annotated[str, typer.Option(metavar="TIME", help="How long they are offered.")] = "5min",
    input_len: Annotated[str, typer.Option(metavar="N", help="Tokens of each prompt.")] = "1K",
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 32,
    unloaded: Annotated[int, typer.Option(min=1, help="Requests that are sent alone at first.")] = 20,
    capacity_time: Annotated[
        str, typer.Option(metavar="TIME", help="How long the capacity is measured.")
    ] = "20s",
    concurrency: Annotated[int, typer.Option(min=1, help="Clients that measure the capacity.")] = 8,
    preset: o.Preset = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws prompts and times.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Offer a running server many times the requests that it can answer.

    It says how soon requests are refused, how soon accepted ones get their first token beside a server without load,
    and how late the client itself sends. The command fails where a process of the server ends, where a request fails
    that is not refused, where refusals take more than 100 ms, and where first tokens come more than twice as late
    (99th percentiles).
    """
    from moorage.runtime.bench.serve.overload import OverloadPlan, run_overload

    try:
        plan = OverloadPlan(
            input_tokens=parse_tokens(input_len),
            output_tokens=output_len,
            factor=factor,
            duration_s=parse_seconds(duration),
            unloaded=unloaded,
            capacity_s=parse_seconds(capacity_time),
            concurrency=concurrency,
            preset=preset,
            seed=seed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if min(plan.input_tokens, plan.duration_s, plan.capacity_s) <= 0:
        raise typer.BadParameter("--input-len, --duration and --capacity-time must be over 0")
    target = o.server_address(address)
    with Client(target) as client:
        text = client.tokenize((DEPLOY / "documents" / "python_reference.txt").read_bytes())

    async def measured(text: Sequence[int]) -> OverloadFigures:
        async with AsyncClient(target) as client:
            return await run_overload(client, plan, text, lambda phase: print_note(f"{phase} …"))

    figures = asyncio.run(measured(text))
    print("\n".join(_lines(figures)))
    if json_file is not None:
        report = {**asdict(plan), **figures.as_json(), "machine": describe_machine()}
        write_json(json_file, report)
    if figures.client_is_late:
        print_note("this client sends late, so the times are in part its own; run it where nothing else runs")
    if figures.shortcomings:
        raise FailedPrecondition(f"under load: {'; '.join(figures.shortcomings)}")


def _lines(figures: OverloadFigures) -> list[str]:
    rows: list[tuple[str, str]] = [
        ("Capacity (req/s):", f"{figures.capacity:.2f}"),
        ("Offered (req/s):", f"{figures.offered:.2f}"),
        ("Accepted requests:", f"{figures.accepted}"),
        ("Refused requests:", f"{figures.refused}"),
        *((f"Failed requests ({name}):", f"{count}") for name, count in figures.failed.items()),
        ("Request throughput (req/s):", f"{figures.completed_rate:.2f}"),
        ("Processes that ended:", f"{len(figures.lost_pids)}"),
        ("Failed steps:", f"{figures.failed_steps}"),
    ]
    if figures.ttft_ratio is not None:
        rows.append(("P99 TTFT, of the unloaded one:", f"{figures.ttft_ratio:.2f} x"))
    if figures.longest_refusal_ms is not None:
        rows.append(("Longest time to a refusal (ms):", f"{figures.longest_refusal_ms:.2f}"))
    lines = [" Overload Result ".center(_WIDTH, "="), *(f"{name:<40}{value:<10}" for name, value in rows)]
    spreads = {
        "Time to First Token, unloaded": figures.unloaded_ttft,
        "Time to First Token, accepted requests": figures.ttft,
        "Time to a refusal": figures.refusal,
        "Delay of the client before it sends": figures.send_delay,
    }
    for title, spread in spreads.items():
        if spread is None:
            continue
        lines.append(f" {title} ".center(_WIDTH, "-"))
        values = {"Mean": spread.mean, "Median": spread.median, "P99": spread.p99}
        lines += [f"{f'{kind} (ms):':<40}{value:<10.2f}" for kind, value in values.items()]
    return [*lines, "=" * _WIDTH]
