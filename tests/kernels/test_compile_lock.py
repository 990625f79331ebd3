from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moorage.kernels import compile_lock
from moorage.kernels.compile_lock import one_at_a_time

PROGRAM = """
import sys, time
from moorage.kernels.compile_lock import one_at_a_time
print("here", flush=True)
sys.stdin.readline()
with one_at_a_time("test"):
    for word in ("in", "out"):
        with open(sys.argv[1], "a") as log:
            print(word, file=log)
        time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def started(log: Path, seconds: float, **environment: str) -> subprocess.Popen[str]:
    """A process that is about to ask for the lock, and will hold it for twice the time."""
    command = [sys.executable, "-c", PROGRAM, str(log), str(seconds)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_go_one_after_the_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [started(log, 0.3) for _ in range(3)]
    for process in processes:
        go(process)
    for process in processes:
        process.communicate(timeout=60)
    assert log.read_text().split() == ["in", "out"] * 3


def test_processes_with_kernels_in_different_places_do_not_wait(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    holder = started(first, 600, NUMBA_CACHE_DIR="one")
    go(holder)
    other = started(second, 0, NUMBA_CACHE_DIR="another")
    go(other)
    other.communicate(timeout=60)
    assert second.read_text().split() == ["in", "out"]
    holder.kill()
    holder.communicate()


def test_a_process_that_dies_lets_the_next_one_in(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first, second = started(log, 600), started(log, 0)
    go(first)
    while not log.exists() or "in" not in log.read_text():
        assert first.poll() is None
    first.kill()
    first.communicate()
    go(second)
    second.communicate(timeout=60)
    assert log.read_text().split() == ["in", "in", "out"]


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    holder = started(log, 600)
    go(holder)
    while not log.exists():
        assert holder.poll() is None
    monkeypatch.setattr(compile_lock, "LONGEST_WAIT_S", 0.2)
    with one_at_a_time("test"):
        assert holder.poll() is None
    holder.kill()
    holder.communicate()


def test_without_a_place_for_the_lock_all_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    entered = False
    with one_at_a_time("test"):
        entered = True
    assert entered
