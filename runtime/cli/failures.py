"""The report of an unforeseen error: one line, and a file with the traceback."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from moorage.runtime.cluster import registry

SERVER_PACKAGES = (
    "gguf", "grpc_reflection", "grpc_status", "llguidance", "llvmlite", "numba", "ray", "safetensors", "tokenizers",
    "torch",
)  # fmt: skip
"""Import names of what `pip install moorage` leaves out and the extra `server` brings."""


def missing_server_line(error: ModuleNotFoundError, arguments: Sequence[str]) -> str | None:
    """What to install where a command needs the server's packages; None for any other missing module."""
    name = (error.name or "").partition(".")[0]
    if name not in SERVER_PACKAGES:
        return None
    command = next((word for word in arguments if not word.startswith("-")), "this command")
    return (
        f"{command} needs the packages of the server, and {name} is not installed; "
        "install them with: pip install 'moorage[server]'"
    )


def failure_line(error: BaseException, arguments: Sequence[str]) -> str:
    """One line for `error`, which names the file that has its traceback. `arguments` go into the file."""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    file = _write_private(_report(error, arguments))
    return f"unexpected {reason}; the traceback is in {file}"


def _report(error: BaseException, arguments: Sequence[str]) -> str:
    lines = [
        f"time: {time.strftime('%Y-%m-%dT%H:%M:%S%z')}",
        f"version: moorage {metadata.version('moorage')}, Python {sys.version.split()[0]}",
        f"command: {shlex.join([*sys.argv[:1], *arguments])}",
        "",
        *traceback.format_exception(error),
    ]
    return "\n".join(lines)


def _write_private(text: str) -> Path:
    """A new file in the run directory that only this user may read; in the temporary directory if it must be."""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-"
    try:
        handle, path = tempfile.mkstemp(prefix=name, suffix=".log", dir=registry.run_dir())
    except OSError:
        handle, path = tempfile.mkstemp(prefix=f"moorage-{name}", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return Path(path)
