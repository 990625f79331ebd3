"""The clusters that run on this host. Each has a small file in the run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moorage.runtime.cluster.os_processes import ProcessId
from moorage.runtime.config.addresses import DEFAULT_ADDRESS, environment_address
from moorage.workers.errors import NotFound


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """A cluster that was started on this host, and all of its processes, the server first."""

    address: str
    phase: str
    """Either starting or serving."""
    config_file: str
    log_file: str | None
    processes: tuple[ProcessId, ...]
    http: str | None = None
    """The address of its HTTP server, where it has one."""

    @property
    def server(self) -> ProcessId:
        """The process that serves gRPC."""
        return self.processes[0]


def run_dir() -> Path:
    """The directory of state files and logs, which only this user can enter. It is made if need be.

    $MOORAGE_RUN_DIR, else $XDG_RUNTIME_DIR/moorage, else ~/.cache/moorage/run.
    """
    chosen = os.environ.get("MOORAGE_RUN_DIR")
    session = os.environ.get("XDG_RUNTIME_DIR")
    if chosen:
        path = Path(chosen)
    elif session and Path(session).is_dir():
        path = Path(session, "moorage")
    else:
        path = Path("~/.cache/moorage/run").expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def state_dir() -> Path:
    """The directory of files that outlive clusters, such as conversations; only this user can enter it.

    $MOORAGE_RUN_DIR, else $XDG_STATE_HOME/moorage, else ~/.local/state/moorage.
    """
    chosen, home = os.environ.get("MOORAGE_RUN_DIR"), os.environ.get("XDG_STATE_HOME")
    path = Path(chosen) if chosen else Path(home or "~/.local/state", "moorage").expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def write_atomically(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON so that a reader sees all of it or nothing."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    scratch.replace(path)


def save(record: ClusterRecord) -> None:
    """Writes the record, and replaces an earlier one of the same server."""
    write_atomically(_file(record.server.pid), asdict(record))


def remove(server_pid: int) -> None:
    """Removes the record of a cluster; does nothing if there is none."""
    _file(server_pid).unlink(missing_ok=True)


def running() -> list[ClusterRecord]:
    """Every recorded cluster of which a process still runs. Removes the records of the others."""
    records = []
    for path in sorted(run_dir().glob("cluster-*.json")):
        record = _read(path)
        if record is not None and any(process.alive for process in record.processes):
            records.append(record)
        else:
            path.unlink(missing_ok=True)
    return records


def find(address: str | None) -> ClusterRecord:
    """The cluster at an address, or the only one. Raises NotFound where there is none, or no address and several."""
    records = running()
    matching = [record for record in records if address in (None, record.address)]
    known = ", ".join(record.address for record in records)
    if not records:
        raise NotFound("no cluster runs on this host; start one with `runtime launch FILE`")
    if not matching:
        raise NotFound(f"--address {address}: no cluster runs there; running: {known}")
    if len(matching) > 1:
        raise NotFound(f"several clusters run: {known}; choose one with --address")
    return matching[0]


def http_address(address: str) -> str | None:
    """Where the cluster that serves gRPC at `address` on this host serves HTTP; None where that is not known."""
    return next((record.http for record in running() if record.address == address), None)


def default_address() -> str:
    """The address of the server for commands: $MOORAGE_ADDRESS, that of the only running cluster, or the default.

    Raises NotFound when several clusters run.
    """
    return environment_address() or (find(None).address if running() else DEFAULT_ADDRESS)


def _file(server_pid: int) -> Path:
    return run_dir() / f"cluster-{server_pid}.json"


def _read(path: Path) -> ClusterRecord | None:
    """The record in a file; None if the file holds something else, or only a part of a record."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        processes = tuple(ProcessId(**process) for process in value.pop("processes"))
        return ClusterRecord(processes=processes, **value) if processes else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
