"""An evaluation is killed with SIGKILL in the middle; run again, it ends with the table of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reading_engine import ReadingEngine
from tests.toy_server import ToyServer, toy_server

FLAGS = ["--lengths", "256,512,1K", "--samples", "6", "--style", "garbage", "--preset", "full,keen"]
NUM_SAMPLES = 36


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server(engine=ReadingEngine(step_s=0.02)) as running:
        yield running


def start(server: ToyServer, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from moorage.runtime.cli import main; main()", "eval", "passkey"]
    return subprocess.Popen(
        [*command, "--address", server.address, *FLAGS, "--output", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "MOORAGE_RUN_DIR": str(output.parent)},
    )


def finish(server: ToyServer, output: Path) -> None:
    process = start(server, output)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def count(output: Path) -> int:
    path = output / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def untimed(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "summary.json").read_text())
    for row in report["rows"]:
        del row["seconds"]
    return report


def without_seconds(output: Path) -> list[list[str]]:
    rows = [line.split("|") for line in (output / "summary.md").read_text().splitlines()]
    at = next(row.index(" seconds each ") for row in rows if " seconds each " in row)
    return [row[:at] + row[at + 1 :] if len(row) > at else row for row in rows]


@pytest.mark.parametrize("kills", [(1,), (7, 20), (35,)])
def test_killed_and_run_again(server: ToyServer, tmp_path: Path, kills: tuple[int, ...]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(server, whole)
    for finished in kills:
        process = start(server, broken)
        until = time.monotonic() + 60
        while count(broken) < finished and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert finished <= count(broken) <= NUM_SAMPLES
        assert not (broken / "summary.json").exists() or count(broken) == NUM_SAMPLES
    before, asked = count(broken), len(server.engine.seen)
    finish(server, broken)
    assert len(server.engine.seen) - asked == NUM_SAMPLES - before
    assert count(broken) == NUM_SAMPLES
    assert untimed(broken) == untimed(whole)
    assert without_seconds(broken) == without_seconds(whole)
