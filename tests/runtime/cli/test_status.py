"""`runtime status`: what waits and why, and the live view."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from moorage.client import ClusterStatus, KvActorStatus, ModelInfo, RunningRequest, WaitingRequest
from moorage.runtime.cli.status_table import status_table
from tests.runtime.cli.terminal import terminal
from tests.toy_server import ToyServer, toy_server

REASON = "needs 3.00 GB of the KV actors' DRAM; 1.00 GB is free, running requests hold the rest [a] /tmp/b"
BUSY = ClusterStatus(
    model=ModelInfo("toy", "llama", "float32", 260, 4096, "full", warnings=("a warning of the model " * 5,)),
    state="not serving",
    uptime_s=3661.0,
    running=1,
    waiting=7,
    prefilling=0,
    kv_actors=(KvActorStatus("kv-0", 11, 1 << 33, 1 << 34, 3, "unresponsive"),),
    worker_pids=(12,),
    prompt_tokens_total=7,
    generated_tokens_total=8,
    cache_hit_rate=None,
    recall=None,
    waiting_requests=tuple(
        WaitingRequest(f"request-{number}", 1234, 65.0, "memory", REASON, 12.0 if number == 0 else None)
        for number in range(7)
    ),
    running_requests=(RunningRequest("request-r", 9, 131_072, 65_536, 0),),
    idle_sessions=4,
    failure="kv-0 (pid 11) does not answer",
    failed_steps_total=2,
    attention_dtype="bfloat16",
)


def shown(status: ClusterStatus, *, short: bool = False) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(status_table("127.0.0.1:1", status, short=short))
    return captured.get().splitlines()


def text_of(lines: list[str]) -> str:
    return " ".join(" ".join(line.partition("│")[2].split()) for line in lines)


@pytest.mark.parametrize("short", [False, True])
def test_who_waits_for_what_and_what_is_wrong(short: bool) -> None:
    lines = shown(BUSY, short=short)
    assert all(len(line) <= 80 for line in lines)
    text = text_of(lines)
    assert f"request-0, 1,234 tokens, since 0:01:05 (about 0:00:12 left): {REASON}" in text
    assert "request-r (session 9), 65,536 of 131,072 tokens read, 0 generated" in text
    assert "and 2 more" in text
    assert "request-5" not in text
    assert "kv-0 (pid 11) does not answer" in text
    assert "unresponsive; 8.59 of 17.18 GB, 3 sessions, pid 11" in text
    assert ("a warning of the model" in text) != short
    assert ("of prompts in bfloat16" in text) != short


def test_a_quiet_cluster_has_no_empty_rows() -> None:
    quiet = replace(BUSY, waiting_requests=(), failure="", failed_steps_total=0, state="serving")
    names = [line.partition("│")[0].strip() for line in shown(quiet)]
    assert not {"waiting", "problem", "failed steps"} & set(names)


@pytest.mark.parametrize("end", ["q", "\x03"])
def test_watch_follows_the_cluster_until_a_key(server: ToyServer, tmp_path: Path, end: str) -> None:
    with terminal(tmp_path, "status", "--watch", "--address", server.address) as watch:
        watch.wait_for("q ends")
        watch.keys("x")
        watch.wait_for("q ends")
        watch.keys(end)
        assert watch.exit_code() == 0


def test_watch_outlives_the_server(tmp_path: Path) -> None:
    with ExitStack() as first:
        address = first.enter_context(toy_server()).address
        with terminal(tmp_path, "status", "--watch", "--address", address) as watch:
            watch.wait_for("q ends")
            first.close()
            watch.wait_for("; ")
            with toy_server(at=address):
                watch.wait_for("serving")
                watch.keys("q")
                assert watch.exit_code() == 0


def test_watch_gives_machines_a_line_each(server: ToyServer, tmp_path: Path) -> None:
    code = "from moorage.runtime.cli import main; main()"
    command = [sys.executable, "-c", code, "status", "--watch", "--json", "--address", server.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={"MOORAGE_RUN_DIR": str(tmp_path)}) as process:
        assert process.stdout is not None
        snapshots = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.terminate()
    assert [snapshot["state"] for snapshot in snapshots] == ["serving"] * 2
    assert snapshots[0]["time_s"] < snapshots[1]["time_s"]
