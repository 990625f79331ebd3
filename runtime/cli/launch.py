"""`runtime launch`: start a cluster and serve it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.loading import loading_bar
from moorage.runtime.cli.output import print_json, print_note
from moorage.runtime.config import load_cluster_config
from moorage.runtime.detach import launch_detached
from moorage.runtime.logs import configure_logs
from moorage.runtime.preflight import check_host
from moorage.runtime.requests import ClusterStatus


@app.command(
    epilog=examples(
        "runtime launch deploy/local.yaml",
        "runtime launch cluster.yaml --detach --ready-file ready.json",
        "runtime launch cluster.yaml --set server.grpc=127.0.0.1:0 --set kv_store.dram=16GiB",
    )
)
def launch(
    file: Annotated[Path, typer.Argument(help="The cluster file.", show_default=False)],
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
    """Start a cluster; it serves until Ctrl-C, SIGTERM or `runtime stop`."""
    config = load_cluster_config(file, overrides or ())
    for warning in check_host(config, print_note).warnings:
        print_note(f"warning: {warning}")
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)

    def announce(ready: dict[str, Any]) -> None:
        if as_json:
            print_json(ready)
        else:
            print(f"ready: {ready['model']} at {ready['address']}, pid {ready['pid']}", flush=True)

    if detach:
        with loading_bar() as on_loading:
            ready = launch_detached(file, overrides or (), ready_file, on_loading)
        announce(ready)
        return
    configure_logs()
    from moorage.runtime.launch import Hooks, Launch, serve

    with loading_bar() as on_loading, _live_view() as show:
        hooks = Hooks(on_ready=announce, on_status=show, on_loading=on_loading)
        asyncio.run(serve(Launch(config, file, ready_file), hooks))


@contextmanager
def _live_view() -> Iterator[Callable[[str, ClusterStatus], None]]:
    """A table at the foot of the terminal that follows the cluster; nothing off a terminal."""
    console = Console(stderr=True)
    if not (console.is_terminal and sys.stdout.isatty()):
        yield lambda _address, _status: None
        return
    from moorage.runtime.cli.status import status_table

    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda address, status: live.update(status_table(address, status), refresh=True)
