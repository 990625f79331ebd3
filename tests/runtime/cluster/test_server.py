"""The serving process from its start to its end, with the toy engine and a child of its own behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.client import Client
from moorage.runtime.cli.stop import Killed, end_cluster
from moorage.runtime.cluster import os_processes, registry
from moorage.runtime.cluster.os_processes import ProcessId
from moorage.workers.errors import NotFound, Unavailable

ROOT = Path(__file__).parents[3]
Start = Callable[[], "tuple[subprocess.Popen[bytes], dict[str, Any]]"]


@pytest.fixture(autouse=True)
def _own_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_RUN_DIR", str(tmp_path / "run"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a toy server as a process and waits for its ready file."""
    cluster = tmp_path / "cluster.yaml"
    model = ROOT / "deploy" / "models" / "moorage-pilot"
    cluster.write_text(f"model: {{path: {model}}}\nserver: {{grpc: '127.0.0.1:0', http: '127.0.0.1:0'}}\n")
    ready_file = tmp_path / "ready.json"
    started: list[subprocess.Popen[bytes]] = []

    def run() -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        process = subprocess.Popen([sys.executable, "-m", "tests.toy_server", cluster, ready_file], cwd=ROOT)
        started.append(process)
        until_s = time.monotonic() + 30
        while not ready_file.exists():
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.02)
        return process, json.loads(ready_file.read_text())

    yield run
    for process in started:
        for child in os_processes.descendants(process.pid):
            child.send(signal.SIGKILL)
        process.kill()
        process.wait()


def test_ready_file_and_record(start: Start) -> None:
    process, ready = start()
    assert ready["pid"] == ready["pids"]["coordinator"] == process.pid
    assert ready["pids"]["workers"] == [12]
    assert ready["kv_actors"] == [{"name": "kv-0", "pid": 11}]
    record = registry.find(None)
    assert (record.address, record.phase, record.server.pid) == (ready["address"], "serving", process.pid)
    assert len(record.processes) == 2
    assert registry.default_address() == ready["address"]
    assert registry.http_address(ready["address"]) == ready["http"]
    with Client(ready["address"]) as client:
        assert client.is_ready()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(start: Start, number: signal.Signals) -> None:
    process, _ = start()
    everything = registry.find(None).processes
    process.send_signal(number)
    assert process.wait(20) == 0
    assert not any(one.alive for one in everything)
    assert registry.running() == []


def test_a_request_may_end_before_the_server_does(start: Start) -> None:
    process, ready = start()
    with Client(ready["address"]) as client:
        stream = client.generate([65] * 8)
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        assert stream.result().usage.completion_tokens == 8
        assert process.wait(20) == 0
        with pytest.raises(Unavailable):
            client.generate([1]).result()


def test_a_second_signal_ends_at_once(start: Start) -> None:
    process, ready = start()
    everything = registry.find(None).processes
    with Client(ready["address"]) as client:
        stream = client.generate([1], session="endless")
        next(iter(stream))
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == 1
    assert os_processes.wait_gone(everything, 5) == []


def test_stop_ends_everything(start: Start) -> None:
    process, ready = start()
    everything = registry.find(ready["address"]).processes
    reaper = _reap(process)
    assert end_cluster(registry.find(ready["address"]), 20) == Killed(server=False, others=0)
    assert reaper() == 0
    assert not any(one.alive for one in everything)


def test_stop_sweeps_up_after_a_killed_server(start: Start) -> None:
    process, ready = start()
    everything = registry.find(None).processes
    process.kill()
    process.wait()
    assert everything[1].alive
    assert end_cluster(registry.find(ready["address"]), 1) == Killed(server=False, others=0)
    assert not any(one.alive for one in everything)
    with pytest.raises(NotFound, match="no cluster runs"):
        registry.find(None)


def test_stop_lets_a_stopped_server_go_on_and_end_itself(start: Start) -> None:
    process, _ = start()
    everything = registry.find(None).processes
    process.send_signal(signal.SIGSTOP)
    reaper = _reap(process)
    assert end_cluster(registry.find(None), 20) == Killed(server=False, others=0)
    assert reaper() == 0
    assert not any(one.alive for one in everything)


def test_stop_kills_what_hears_no_signal() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    children = [subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    server, other = (ProcessId.of(child.pid) for child in children)
    assert server is not None
    assert other is not None
    record = registry.ClusterRecord("127.0.0.1:1", "serving", "c.yaml", None, (server, other))
    assert end_cluster(record, 0.1) == Killed(server=True, others=1)
    for child in children:
        child.communicate()
        assert child.returncode == -signal.SIGKILL


def test_other_address_is_not_found(start: Start) -> None:
    _, ready = start()
    with pytest.raises(NotFound, match=ready["address"]):
        registry.find("127.0.0.1:1")


def test_two_clusters_must_be_told_apart() -> None:
    own = ProcessId.of(os.getpid())
    assert own is not None
    parent = ProcessId.of(os.getppid())
    assert parent is not None
    for port, process in ((1, own), (2, parent)):
        registry.save(registry.ClusterRecord(f"127.0.0.1:{port}", "serving", "c.yaml", None, (process,)))
    with pytest.raises(NotFound, match="choose one with --address"):
        registry.find(None)
    assert registry.find("127.0.0.1:2").server == parent


def test_a_record_of_a_reused_pid_is_forgotten() -> None:
    stale = ProcessId(os.getpid(), 1.0)
    assert not stale.alive
    registry.save(registry.ClusterRecord("127.0.0.1:1", "serving", "c.yaml", None, (stale,)))
    assert registry.running() == []
    assert registry.default_address() == registry.DEFAULT_ADDRESS
    assert list(registry.run_dir().iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"processes": []}', '{"processes": [{"pid": 1}]}'])
def test_a_broken_record_is_forgotten(content: str) -> None:
    (registry.run_dir() / "cluster-1.json").write_text(content)
    assert registry.running() == []


def test_run_dir_is_private(tmp_path: Path) -> None:
    assert registry.run_dir() == tmp_path / "run"
    assert registry.run_dir().stat().st_mode & 0o077 == 0


def _reap(process: subprocess.Popen[bytes]) -> Callable[[], int]:
    """The server is this test's child: its exit code, which `stop` leaves to be read."""
    return lambda: process.wait(20)
