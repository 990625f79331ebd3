"""The `runtime` command as users start it, against the toy engine."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from moorage.runtime.cli import main
from tests.toy_server import ToyServer, toy_server

Cli = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server() as running:
        yield running


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """Runs `runtime ARGUMENTS` in this process; `stdin` is what is piped in.

    The log of a server in this process goes to a stream of its own, as that of a server elsewhere does.
    """
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(io.StringIO()))
    monkeypatch.setenv("MOORAGE_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            for name, stream in (("stdin", io.BytesIO(stdin or b"")), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, io.TextIOWrapper(stream, encoding="utf-8", write_through=True))
            with pytest.raises(SystemExit) as left:
                main([os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in arguments])
            return subprocess.CompletedProcess(
                arguments, int(left.value.code or 0), out.getvalue(), err.getvalue()
            )

    yield run
    structlog.reset_defaults()
