"""`runtime bench gpu`: decode and prefill of a 7B shape on a GPU."""

from __future__ import annotations

from typing import Annotated

import typer

from moorage.runtime.bench.gpu.arguments import DEFAULTS, HELP, Arguments
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.bench_options import (
    JsonFile,
    bench_app,
    parse_counts,
)


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
