"""`runtime status`: what the cluster does and holds now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from moorage.client import Client, DeadlineExceeded, Unavailable
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_json, stdout_console
from moorage.runtime.cli.status_table import status_table
from moorage.runtime.cli.status_watch import watch_status
from moorage.runtime.cluster import registry

TIMEOUT_S = 10.0
"""How long a server may take to answer."""


@app.command(
    epilog=examples(
        "runtime status",
        "runtime status --watch",
        "runtime status --address 127.0.0.1:50051 --json",
    )
)
def status(
    address: o.Address = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Show it anew every second until q or Ctrl-C; with --json, a line each."
        ),
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Show load, memory and processes of a cluster."""
    where = o.server_address(address)
    with Client(where, timeout_s=TIMEOUT_S) as client:
        if watch:
            watch_status(client, as_json=as_json)
            return
        with _answered_soon(where):
            snapshot = client.status()
    if as_json:
        print_json({"address": where, "http": registry.http_address(where), **asdict(snapshot)})
    else:
        stdout_console().print(status_table(where, snapshot, http=registry.http_address(where)))


@contextmanager
def _answered_soon(address: str) -> Iterator[None]:
    """Says what the time limit of this command means."""
    try:
        yield
    except DeadlineExceeded:
        raise Unavailable(
            f"{address} did not answer within {TIMEOUT_S:g} s; look in its log, or stop it and launch it again"
        ) from None
