"""The `runtime` command as users start it, against the toy engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.toy_server import ToyServer, toy_server

Cli = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server() as running:
        yield running


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs `runtime ARGUMENTS`; `stdin` is what is piped in."""

    def run(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        words = [arg if isinstance(arg, bytes) else str(arg) for arg in arguments]
        return subprocess.run(
            [sys.executable, "-c", "from moorage.runtime.cli import main; main()", *words],
            input=stdin or b"",
            capture_output=True,
            timeout=60,
            env={**os.environ, "MOORAGE_RUN_DIR": str(tmp_path), "COLUMNS": "200"},
            check=False,
        )

    return run
