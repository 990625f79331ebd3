"""`runtime launch`: start a cluster and serve it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.loading import start_view
from moorage.runtime.cli.output import print_json, print_note
from moorage.runtime.cluster.daemon import launch_detached
from moorage.runtime.cluster.logs import configure_logs
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.source import is_model
from moorage.runtime.planning.preflight import check_host


@app.command(
    epilog=examples(
        "runtime launch path/to/model",
        "runtime launch cluster.yaml",
        "runtime launch --example local",
        "runtime launch cluster.yaml --detach --ready-file ready.json",
        "runtime launch cluster.yaml --set server.grpc=127.0.0.1:0 --set kv_store.dram=16GiB",
    )
)
def launch(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE|DIR",
            help="A cluster file; or, for every default, a model directory or GGUF file.",
            show_default=False,
        ),
    ] = None,
    example: o.Example = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Serve in the background; return once it is ready.")
    ] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write addresses and pids here, as JSON, once it is ready.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the ready file holds when it is ready.")
    ] = False,
) -> None:
    """Start a cluster from a file, or serve a model directory or GGUF file.

    It serves until Ctrl-C, SIGTERM or `runtime stop`. A model is served with every default; if the
    default port is in use, a free one is taken.
    """
    file = o.cluster_file(file, example)
    given = [*_adjusted(file, overrides or ()), *(overrides or ())]
    config = load_cluster_config(file, given)
    for warning in check_host(config, print_note).warnings:
        print_note(f"warning: {warning}")
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)

    def announce(ready: dict[str, Any]) -> None:
        if as_json:
            print_json(ready)
        else:
            print(f"ready: {ready['model']} at {ready['address']}, pid {ready['pid']}", flush=True)
            if ready.get("http"):
                print(_http_lines(ready), flush=True)

    if detach:
        with start_view() as view:
            ready = launch_detached(file, given, ready_file, view.loading, view.stage)
        announce(ready)
        return
    configure_logs()
    from moorage.runtime.cluster.hooks import Hooks
    from moorage.runtime.cluster.server import Launch, serve

    with start_view() as view:
        hooks = Hooks(announce, view.status, view.loading, view.stage)
        asyncio.run(serve(Launch(config, file, ready_file), hooks))


def _http_lines(ready: dict[str, Any]) -> str:
    """Where HTTP and the chat page are served, and a command that asks the model something."""
    url = f"http://{ready['http']}"
    path, body = "/v1/completions", '{"prompt": "Once upon a time"}'
    if ready["has_chat_template"]:
        path, body = "/v1/chat/completions", '{"messages": [{"role": "user", "content": "Hello"}]}'
    command = f"curl {url}{path} -H 'content-type: application/json' -d '{body}'"
    return f"http:  {url}/v1\n  {command}\npage:  {url}/"


def _adjusted(file: Path, overrides: Sequence[str]) -> list[str]:
    """Overrides that make a bare model work on this host, each said; none for a cluster file."""
    if not is_model(file):
        return []
    from moorage.runtime.planning.model_launch import adjustments

    found = adjustments(file, overrides)
    for adjustment in found:
        print_note(f"note: {adjustment.reason}")
    return [adjustment.override for adjustment in found]
