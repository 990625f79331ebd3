"""`runtime bench serve`: load on a running server, in the figures of `vllm bench serve`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.client import Client
from moorage.runtime.bench.measure import describe_machine
from moorage.runtime.bench.report import write_json
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.bench_options import JsonFile, bench_app
from moorage.runtime.cli.output import print_note
from moorage.runtime.config.units import parse_tokens
from moorage.runtime.packaged import DEPLOY

if TYPE_CHECKING:
    from moorage.runtime.bench.serve.figures import Figures
    from moorage.runtime.bench.serve.run import Served
    from moorage.runtime.bench.serve.traces import Load

_WIDTH = 50
_LABELS = {
    "ttft": ("Time to First Token", "TTFT"),
    "ttft_first": ("Time to First Token, first turns", "TTFT"),
    "ttft_later": ("Time to First Token, later turns", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
}


@bench_app.command(
    epilog=examples(
        "runtime bench serve --num-prompts 16 --input-len 2K --output-len 64 --request-rate 2",
        "runtime bench serve --num-prompts 4 --turns 3 --input-len 32K --json load.json",
        "runtime bench serve --num-prompts 200 --max-concurrency 100 --goodput ttft:2000 --goodput tpot:50",
    )
)
def serve(
    address: o.Address = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Conversations.")] = 16,
    turns: Annotated[int, typer.Option(min=1, help="Requests of each conversation.")] = 1,
    input_len: Annotated[str, typer.Option(metavar="N", help="Tokens of each first prompt.")] = "1K",
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    request_rate: Annotated[
        float,
        typer.Option(help="Conversations that begin in a second, in the mean.", show_default="all at once"),
    ] = float("inf"),
    max_concurrency: Annotated[int, typer.Option(min=1, help="Most requests at once.")] = 256,
    sessions: Annotated[
        bool,
        typer.Option("--sessions/--no-sessions", help="Keep the KV of a conversation between its turns."),
    ] = True,
    preset: o.Preset = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:MS", help="A limit of good requests: ttft, tpot or e2el, in milliseconds; several."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws documents and times.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Hold many conversations with a running server, and say what its clients see.

    Each conversation has a document of its own, so that no prompt shares its beginning with another.
    """
    from moorage.runtime.bench.serve.figures import figures_of, parse_limits
    from moorage.runtime.bench.serve.run import run_load
    from moorage.runtime.bench.serve.traces import Load

    try:
        limits, tokens = parse_limits(goodput or ()), parse_tokens(input_len)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not request_rate > 0 or tokens < 1:
        raise typer.BadParameter("--request-rate and --input-len must be over 0")
    load = Load(num_prompts, turns, tokens, output_len, request_rate, max_concurrency, seed)
    target = o.server_address(address)
    with Client(target) as client:
        text = client.tokenize((DEPLOY / "documents" / "python_reference.txt").read_bytes())
    begun_s = time.perf_counter()
    served = asyncio.run(
        run_load(
            target, load, text, preset=preset, sessions=sessions, on_served=_Progress(num_prompts * turns)
        )
    )
    figures = figures_of(served, time.perf_counter() - begun_s, limits)
    print("\n".join(_lines(figures, load)))
    if json_file is not None:
        shown = {key: "inf" if value == float("inf") else value for key, value in asdict(load).items()}
        report = {**shown, "preset": preset, **figures.as_json(), "machine": describe_machine()}
        write_json(json_file, report)


class _Progress:
    """Says now and then how many requests are done."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._told_s = total, 0, time.monotonic()

    def __call__(self, _: Served) -> None:
        self._done += 1
        if self._done == self._total or time.monotonic() >= self._told_s + 5:
            self._told_s = time.monotonic()
            print_note(f"{self._done} of {self._total} requests are done")


def _lines(figures: Figures, load: Load) -> list[str]:
    rows: list[tuple[str, str]] = [
        ("Successful requests:", f"{figures.completed}"),
        *((f"Failed requests ({name}):", f"{count}") for name, count in figures.failed.items()),
        ("Maximum request concurrency:", f"{load.max_concurrency}"),
        ("Benchmark duration (s):", f"{figures.duration_s:.2f}"),
        ("Total input tokens:", f"{figures.total_input_tokens}"),
        ("Cached input tokens:", f"{figures.cached_tokens}"),
        ("Total generated tokens:", f"{figures.total_output_tokens}"),
        ("Request throughput (req/s):", f"{figures.request_throughput:.2f}"),
        ("Output token throughput (tok/s):", f"{figures.output_throughput:.2f}"),
        ("Total token throughput (tok/s):", f"{figures.total_token_throughput:.2f}"),
    ]
    if figures.goodput is not None:
        rows.append(("Request goodput (req/s):", f"{figures.goodput:.2f}"))
    if figures.refused_ms is not None:
        rows.append(("Longest time to a refusal (ms):", f"{figures.refused_ms:.2f}"))
    lines = [
        " Serving Benchmark Result ".center(_WIDTH, "="),
        *(f"{name:<40}{value:<10}" for name, value in rows),
    ]
    for name, (title, short) in _LABELS.items():
        spread = figures.spreads[name]
        if spread is None or (name.startswith("ttft_") and load.turns == 1):
            continue
        lines.append(f" {title} ".center(_WIDTH, "-"))
        values = {"Mean": spread.mean, "Median": spread.median, "P99": spread.p99}
        lines += [f"{f'{kind} {short} (ms):':<40}{value:<10.2f}" for kind, value in values.items()]
    return [*lines, "=" * _WIDTH]
