"""Processes that are stopped or killed under a running cluster: who hears of it, and what goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moorage.client import Client, ClusterStatus
from moorage.runtime.cluster.ray_environment import NICENESS_OF_WORKERS
from moorage.workers.errors import Unavailable
from tests.end_to_end.conftest import Cli, RunningCluster, cluster_config, launch

pytestmark = pytest.mark.ray
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def wait_until(condition: Callable[[], bool], timeout_s: float = 180.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def health_of(running: RunningCluster) -> int:
    with grpc.insecure_channel(running.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)


def status_of(running: RunningCluster) -> ClusterStatus:
    with Client(running.address) as client:
        return client.status()


def processes_of(running: RunningCluster) -> dict[int, psutil.Process]:
    """The server and everything below it."""
    server = psutil.Process(running.ready["pid"])
    return {process.pid: process for process in (server, *server.children(recursive=True))}


def log_of(running: RunningCluster) -> str:
    return Path(running.ready["log_file"]).read_text(encoding="utf-8")


def test_a_private_cluster_listens_on_loopback_alone_and_keeps_its_session_to_itself(
    cluster: RunningCluster,
) -> None:
    processes = processes_of(cluster)
    listening = [
        connection.laddr.ip
        for process in processes.values()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 4
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    (raylet,) = (process for process in processes.values() if process.name() == "raylet")
    session = Path(
        next(word for word in raylet.cmdline() if "--raylet_socket_name=" in word).partition("=")[2]
    )
    private = next(parent for parent in session.parents if parent.name.startswith("moorage-ray-"))
    assert private.stat().st_mode & 0o777 == 0o700
    pids = cluster.ready["pids"]
    workers = [processes[pid] for pid in (*pids["kv_actors"], *pids["workers"])]
    niceness = min(processes[pids["coordinator"]].nice() + NICENESS_OF_WORKERS, 19)
    assert {worker.nice() for worker in workers} == {niceness}


@pytest.mark.parametrize("who", ["kv_actors", "workers"])
def test_a_short_stop_is_told_at_once_and_costs_no_request(cluster: RunningCluster, who: str) -> None:
    pid = cluster.ready["pids"][who][0]
    options = {"max_new_tokens": 600, "temperature": 0.0, "ignore_eos": True}
    with Client(cluster.address) as client:
        alone = client.generate("Once upon a time", **options).result().token_ids
        stream = client.generate("Once upon a time", **options)
        next(iter(stream))
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: health_of(cluster) == NOT_SERVING, 10)
            status = status_of(cluster)
            assert status.state == "not serving"
            assert f"(pid {pid}) is stopped (state T)" in status.failure
            with pytest.raises(Unavailable, match=f"kill -CONT {pid}"):
                client.generate("Another", **options).result()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert stream.result().token_ids == alone
        wait_until(lambda: health_of(cluster) == SERVING, 10)
        assert status_of(cluster).failure == ""
        assert "process stopped" in log_of(cluster)
        assert len(client.generate("Another", max_new_tokens=3, ignore_eos=True).result().token_ids) == 3


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RunningCluster]:
    """A cluster that a test may break."""
    running = launch(tmp_path, kv_store={"actors": 1, "dram": "32MiB"})
    everything = processes_of(running)
    yield running
    for process in everything.values():
        if process.is_running():
            process.kill()


@pytest.mark.parametrize("who", ["KV actor", pytest.param("raylet", marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_cluster_with_a_word_to_everybody(small: RunningCluster, who: str) -> None:
    everything = processes_of(small)
    named = {process.name(): pid for pid, process in everything.items()}
    pid = named["raylet"] if who == "raylet" else small.ready["pids"]["kv_actors"][0]
    with Client(small.address) as client:
        stream = client.generate("Once upon a time", max_new_tokens=10000, ignore_eos=True)
        next(iter(stream))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match=rf"{who}.*\(pid {pid}\) is gone.* start the cluster again"):
            stream.result()
    wait_until(lambda: not any(process.is_running() for process in everything.values()))
    last = log_of(small).strip().splitlines()[-1]
    assert last.startswith("error: the cluster has failed: ")
    assert f"(pid {pid}) is gone" in last
    assert small.cli("status").returncode == 1


def test_a_launcher_that_is_told_to_end_leaves_no_starting_server(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "run")
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster_config()))
    launcher = subprocess.Popen(
        cli.command("launch", file, "--detach"), env=cli.environment, stderr=subprocess.DEVNULL
    )
    records = tmp_path / "run"
    wait_until(lambda: any(records.glob("cluster-*.json")))
    launcher.terminate()
    assert launcher.wait(60) == -signal.SIGTERM
    assert list(records.glob("cluster-*.json")) == []
    left = [process for process in psutil.process_iter() if _belongs_to(process, records)]
    assert left == []


def test_a_launcher_says_that_its_starting_server_was_stopped(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "run")
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster_config()))
    launcher = subprocess.Popen(
        cli.command("launch", file, "--detach"), env=cli.environment, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: any((tmp_path / "run").glob("cluster-*.json")))
    assert cli("stop").returncode == 0
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert said.splitlines()[-1].startswith("error: the server was stopped before it was ready; its log is ")


def _belongs_to(process: psutil.Process, run_dir: Path) -> bool:
    try:
        return process.environ().get("MOORAGE_RUN_DIR") == str(run_dir)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
