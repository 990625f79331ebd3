"""`runtime bench sessions`: a long document in a session, with a fork, files and a restart."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moorage.client import FailedPrecondition
from moorage.runtime.bench.measure import describe_machine
from moorage.runtime.bench.report import write_json
from moorage.runtime.cli.app import examples
from moorage.runtime.cli.bench_options import JsonFile, bench_app
from moorage.runtime.cli.demo_cluster import demo_cluster
from moorage.runtime.cli.output import print_note
from moorage.runtime.config.units import format_bytes, parse_tokens
from moorage.runtime.packaged import DEPLOY, example_file
from moorage.workers.counting import counted

if TYPE_CHECKING:
    from moorage.runtime.bench.sessions import Asked, SessionFigures


@bench_app.command(
    epilog=examples(
        "runtime bench sessions --length 100K",
        "runtime bench sessions --length 500K --set long_context.max_seq_len=600K --set kv_store.dram=2GiB",
    )
)
def sessions(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Cluster file or model.", show_default="the example reference"),
    ] = None,
    length: Annotated[str, typer.Option(metavar="N", help="Tokens of the document.")] = "100K",
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 16,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the document and the questions.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Ask two questions about a long document, fork and save its session, restart the server, and ask again.

    It starts a cluster of its own, twice. After the restart the second answer also goes on. The command fails where
    an answer after the restart has other tokens than one before it.
    """
    from moorage.runtime.bench.sessions import SessionFigures, SessionPlan, first_life, second_life

    try:
        num_tokens = parse_tokens(length)
    except ValueError as error:
        raise typer.BadParameter(f"--length: {error}") from None
    source = config or example_file("reference")
    with tempfile.TemporaryDirectory(prefix="moorage-sessions-") as folder:
        given = [*(overrides or ()), f"sessions.path={folder}", "server.http=off"]
        with demo_cluster(source, given) as client:
            text = client.tokenize((DEPLOY / "documents" / "python_reference.txt").read_bytes())
            plan = SessionPlan.of(text, num_tokens, output_len, seed)
            print_note(f"Reading {num_tokens:,} tokens …")
            before = first_life(client, plan)
        with demo_cluster(source, given) as client:
            figures = SessionFigures(before, second_life(client, plan, before))
    print("\n".join(_lines(figures)))
    if json_file is not None:
        report = {"length": num_tokens, "seed": seed, **figures.as_json(), "machine": describe_machine()}
        write_json(json_file, report)
    if not figures.same_tokens:
        raise FailedPrecondition("an answer after the restart has other tokens than the one before it")


def _read(asked: Asked) -> str:
    return f"{counted(asked.prompt_tokens - asked.cached_tokens, 'token')} read"


def _lines(figures: SessionFigures) -> list[str]:
    before, after = figures.before, figures.after
    shared = f"{format_bytes(before.shared_bytes)} of {format_bytes(before.branch_bytes)}"
    rows = [
        ("First question, time to first token:", f"{before.first.ttft_s:.3f} s"),
        ("Second question:", f"{before.second.ttft_s:.3f} s, 1/{1 / figures.second_part:.0f}"),
        ("Prompt tokens that the session held:", f"{before.second.cached_tokens:,}"),
        ("Fork:", f"{1000 * before.fork_s:.1f} ms, shares {shared}"),
        ("Save:", f"{before.save_s:.2f} s, {format_bytes(before.saved_bytes)}"),
        ("Load after a restart:", f"{after.load_s:.3f} s"),
        ("The second answer goes on:", f"{after.rest.ttft_s:.3f} s, {_read(after.rest)}"),
        ("Second question again:", f"{after.again.ttft_s:.3f} s"),
        ("Load and question together:", f"1/{1 / figures.restart_part:.0f}"),
        ("Tokens as before the restart:", "yes" if figures.same_tokens else "no"),
    ]
    return [f"{name:<40}{value}" for name, value in rows]
