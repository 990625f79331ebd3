"""What is shown while weights are read."""

from __future__ import annotations

import os
import pty
import sys
import threading
from contextlib import suppress
from queue import Queue

import pytest

from moorage.runtime.cli import loading

GIB = 2**30


def test_lines_off_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LINE_EVERY_S", 0.0)
    with loading.loading_bar() as show:
        for read in (GIB, 3 * GIB, 4 * GIB):
            show(read, 4 * GIB)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [f"read {n}.00 GiB of 4.00 GiB of weights" for n in (1, 3, 4)]


def test_a_small_model_takes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with loading.loading_bar() as show:
        for read in range(1, 8):
            show(read, 7)
    assert capsys.readouterr().err == "read 7 B of 7 B of weights\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with loading.loading_bar() as show:
            show(GIB, 4 * GIB)
    shown = b""
    with suppress(OSError):  # EIO, the end of a terminal that nobody writes to
        while part := os.read(controller, 1 << 16):
            shown += part
    os.close(controller)
    assert b"reading the weights" in shown
    assert b"1.1/4.3 GB" in shown


def test_a_slow_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    told: Queue[str] = Queue()
    monkeypatch.setattr(loading, "print_note", told.put)
    monkeypatch.setattr(loading, "SLOW_START_S", 0.0)
    with loading.loading_bar():
        assert "first start" in told.get(timeout=60)


def test_once_weights_are_read_nothing_waits_to_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "print_note", lambda _text: None)
    monkeypatch.setattr(loading, "SLOW_START_S", 600.0)
    with loading.loading_bar() as show:
        waiting = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        show(1, 2)
        for timer in waiting:
            timer.join(60)
        assert waiting
        assert not any(timer.is_alive() for timer in waiting)
