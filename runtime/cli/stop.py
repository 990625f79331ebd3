"""`runtime stop`: end a cluster and make sure that nothing of it is left."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Annotated

import typer

from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_note
from moorage.runtime.cluster import os_processes, registry
from moorage.runtime.cluster.registry import ClusterRecord
from moorage.runtime.config.addresses import environment_address, server_target
from moorage.workers.counting import counted

_SWEEP_GRACE_S = 5.0


@app.command(epilog=examples("runtime stop", "runtime stop --address 127.0.0.1:50051"))
def stop(
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Which cluster. Default: $MOORAGE_ADDRESS, else the only one here."
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Kill what still runs after this.")
    ] = 30.0,
) -> None:
    """Stop a cluster of this host, with all its processes."""
    record = registry.find(environment_address() if address is None else server_target(address, "--address"))
    killed = end_cluster(record, timeout_s)
    if killed.server:
        print_note(f"the server (pid {record.server.pid}) did not stop within {timeout_s:g} s and was killed")
    if killed.others:
        many = counted(killed.others, "process")
        print_note(
            f"{many} that the server left did not end within {_SWEEP_GRACE_S:g} s and had to be killed"
        )
    print(f"stopped {record.address}")


@dataclass(frozen=True, slots=True)
class Killed:
    """What did not end by itself."""

    server: bool
    others: int
    """Processes below the server."""


def end_cluster(record: ClusterRecord, timeout_s: float) -> Killed:
    """Asks the server to stop, waits, and kills what is left. A server that is stopped (state T) goes on first."""
    everything = {*record.processes, *os_processes.descendants(record.server.pid)}
    record.server.send(signal.SIGTERM)
    record.server.send(signal.SIGCONT)
    stubborn = os_processes.wait_gone([record.server], timeout_s)
    for process in stubborn:
        process.send(signal.SIGKILL)
    others = os_processes.end(everything - {record.server}, _SWEEP_GRACE_S)
    os_processes.wait_gone(stubborn, _SWEEP_GRACE_S)
    registry.remove(record.server.pid)
    return Killed(bool(stubborn), len(others))
