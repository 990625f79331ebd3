"""What is shown while weights are read."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Queue

import pytest
import structlog

from moorage.client import Accepted
from moorage.runtime.cli import loading
from moorage.runtime.cli.prefill_bar import prefill_bar
from moorage.runtime.cluster.logs import configure_logs
from tests.toy_engine import ToyEngine

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


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Standard error and output are one terminal; after the block the list holds what was shown."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    controller, slave = pty.openpty()
    shown: list[str] = []
    with os.fdopen(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "stdout", stream)
        yield shown
    data = b""
    with suppress(OSError):  # EIO, the end of a terminal that nobody writes to
        while part := os.read(controller, 1 << 16):
            data += part
    os.close(controller)
    shown.append(data.decode())


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown, loading.start_view() as view:
        view.stage("starting Ray")
        view.refresh()
        view.loading(GIB, 4 * GIB)
        view.refresh()
    assert shown[0].index("starting Ray") < shown[0].index("reading the weights")
    assert "1.00 GiB of 4.00 GiB" in shown[0]


def test_lines_that_are_logged_go_above_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    status = asyncio.run(ToyEngine().status())
    with terminal(monkeypatch) as shown, loading.start_view() as view:
        configure_logs()
        view.status("127.0.0.1:5", status)
        view.refresh()
        structlog.get_logger().info("a line of the log")
        view.refresh()
    _before, line, after = shown[0].partition("a line of the log")
    assert line
    assert "127.0.0.1:5" in after, "the table is drawn again below the line"


def test_stages_are_lines_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with loading.start_view() as view:
        view.stage("starting Ray")
        view.stage("reading the weights")
    assert capsys.readouterr().err == "starting Ray\nreading the weights\n"


def test_weights_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with loading.loading_bar() as show:
        for _ in range(17):
            show(7, 7)
    assert capsys.readouterr().err == "read 7 B of 7 B of weights\n"


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


def test_the_bar_of_a_prompt_has_its_total_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown, prefill_bar(keep=True) as show:
        show(Accepted("request", 32_768))
    assert "waiting for the server" not in shown[0].rpartition("\r")[2]
    assert "0 of 32,768 tokens" in shown[0]
