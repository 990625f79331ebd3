"""All of `runtime bench`: importing this registers its commands, in the order of its help."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.bench.measure import describe_machine
from moorage.runtime.bench.report import Report, compare, print_falls
from moorage.runtime.cli.bench_options import EVERY_CORE, JsonFile, WithRay, bench_app, finish, parse_counts
from moorage.runtime.cli.output import print_note
from moorage.runtime.packaged import DEPLOY

RATIOS = DEPLOY / "benchmarks" / "cpu-2-cores.json"
NOISE = 0.25
"""A ratio that fell by less than this share is taken for noise."""
MODULES = (
    "bench_parts",
    "bench_engine",
    "bench_verify",
    "bench_peers",
    "bench_serve",
    "bench_overload",
    "bench_sessions",
    "bench_gpu",
)

for _module in MODULES:
    import_module(f"moorage.runtime.cli.{_module}")


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
