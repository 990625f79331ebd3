"""`runtime top`: speeds between two snapshots, and a row for each request."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from moorage.client import ClusterStatus, RunningRequest
from moorage.runtime.cli.top_view import TopView
from tests.runtime.cli.terminal import terminal
from tests.runtime.cli.test_status import BUSY, REASON
from tests.toy_server import ToyServer

COMMAND = [sys.executable, "-c", "from moorage.runtime.cli import main; main()", "top"]


def shown(view: TopView, status: ClusterStatus, now_s: float, height: int = 24) -> list[str]:
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(view.of(status, now_s, height))
    return captured.get().splitlines()


def test_speeds_are_those_between_two_snapshots() -> None:
    view = TopView("127.0.0.1:1")
    first = shown(view, BUSY, 100.0)
    assert any("prompts - tokens/s  generated - tokens/s" in line for line in first)
    later = replace(
        BUSY,
        uptime_s=BUSY.uptime_s + 2,
        prompt_tokens_total=2007,
        generated_tokens_total=11,
        running_requests=(
            RunningRequest("request-r", 9, 131_072, 67_536, 0),
            RunningRequest("request-s", 10, 40, 40, 3),
        ),
    )
    lines = shown(view, later, 102.0)
    assert (
        "prompts 1,000.0 tokens/s  generated 1.5 tokens/s  1 running, 7 waiting  4 idle sessions" in lines[1]
    )
    reads, decodes = (
        next(line.split() for line in lines if name in line) for name in ("request-r", "request-s")
    )
    assert reads == ["request-r", "prefill", "52%", "131,072", "0", "1,000.0"]
    assert decodes == ["request-s", "decode", "40", "3", "-"], "it was not there before"
    started_anew = shown(view, replace(BUSY, uptime_s=1.0), 104.0)
    assert any("prompts - tokens/s" in line for line in started_anew)


def test_a_view_is_no_higher_than_its_terminal() -> None:
    view = TopView("127.0.0.1:1")
    lines = shown(view, BUSY, 1.0)
    assert all(len(line) <= 100 for line in lines)
    assert any("request-6" in line for line in lines)
    assert any(REASON[:20] in line and "waits 65 s" in line for line in lines)
    assert "not serving: kv-0 (pid 11) does not answer, up 1:01:01" in lines[0]
    assert any("8.59 of 17.18 GB, 3 sessions, unresponsive" in line for line in lines)
    short = shown(view, BUSY, 2.0, height=12)
    assert len(short) < 12
    assert any("and 4 more" in line for line in short)


def test_it_follows_the_cluster_until_a_key(server: ToyServer, tmp_path: Path) -> None:
    with terminal(tmp_path, "top", "--address", server.address, "--interval", "0.1") as top:
        top.wait_for("toy at 127.0.0.1")
        top.wait_for("q ends")
        top.keys("q")
        assert top.exit_code() == 0


def test_views_are_printed_where_there_is_no_terminal(server: ToyServer, tmp_path: Path) -> None:
    arguments = ["--count", "2", "--interval", "0.1", "--address", server.address]
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"MOORAGE_RUN_DIR": str(tmp_path)},
    )
    assert done.stdout.count("toy at 127.0.0.1") == 2
    assert "kv-0" in done.stdout
