"""Starting and stopping: clear refusals before anything runs, and nothing left behind after it has."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from tests.end_to_end.conftest import PILOT, Cli, cluster_config, launch

pytestmark = pytest.mark.ray


def wait_until(condition: Callable[[], bool], timeout_s: float = 180.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def moorage_processes(run_dir: Path) -> list[psutil.Process]:
    """Every process that inherited the cluster's run directory: server, Ray's own, actors."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MOORAGE_RUN_DIR") == str(run_dir):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


@pytest.mark.parametrize(
    "ending",
    ["stop", pytest.param("SIGTERM", marks=pytest.mark.slow), pytest.param("SIGINT", marks=pytest.mark.slow)],
)
def test_nothing_is_left_after_the_end(tmp_path: Path, ending: str) -> None:
    before = shared_memory()
    running = launch(tmp_path)
    run_dir = running.cli.run_dir
    assert len(moorage_processes(run_dir)) > 3
    assert running.ready["pids"]["workers"]
    assert len(running.ready["pids"]["kv_actors"]) == 2
    if ending == "stop":
        assert running.cli("stop").returncode == 0
    else:
        os.kill(running.ready["pid"], getattr(signal, ending))
    wait_until(lambda: not moorage_processes(run_dir))
    left = {name for name in shared_memory() - before if "moorage" in name}
    assert not left
    assert running.cli("status", "--address", running.address).returncode == 1


def test_ctrl_c_ends_a_foreground_launch(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "run")
    file, ready = tmp_path / "cluster.yaml", tmp_path / "ready.json"
    file.write_text(yaml.safe_dump(cluster_config(long_context={"chunk_size": "auto"})))
    process = subprocess.Popen(
        cli.command("launch", file, "--ready-file", ready),
        env=cli.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_until(ready.exists)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    assert b"ready:" in out
    assert b"of weights" in err
    wait_until(lambda: not moorage_processes(cli.run_dir))


def test_a_killed_server_leaves_nothing_either(tmp_path: Path) -> None:
    running = launch(tmp_path)
    os.kill(running.ready["pid"], signal.SIGKILL)
    wait_until(lambda: not moorage_processes(running.cli.run_dir))


def broken_model(directory: Path, **changes: object) -> Path:
    model = directory / "model"
    shutil.copytree(PILOT, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))
    return model


def truncated(directory: Path) -> Path:
    model = broken_model(directory)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return model


REFUSALS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "a missing model",
        lambda d: cluster_config(model={"path": str(d / "none")}),
        "config.json|no such|not found",
    ),
    ("truncated weights", lambda d: cluster_config(model={"path": str(truncated(d))}), "safetensors"),
    (
        "an unknown architecture",
        lambda d: cluster_config(model={"path": str(broken_model(d, architectures=["GPT2LMHeadModel"]))}),
        "GPT2LMHeadModel",
    ),
    ("an unknown key", lambda _: cluster_config(memory={"presett": "full"}), "memory.presett.*preset"),
    (
        "a negative size",
        lambda _: cluster_config(long_context={"block_size": -32}),
        "long_context.block_size",
    ),
    ("a zero size", lambda _: cluster_config(kv_store={"actors": 0}), "kv_store.actors"),
    ("too much DRAM", lambda _: cluster_config(kv_store={"dram": "100TiB"}), "kv_store.dram"),
    ("no mapping", lambda _: "just words", "cluster.yaml"),
    ("no YAML", lambda _: b"model: {path: [", "cluster.yaml"),
]


@pytest.mark.parametrize(
    ("config", "says"), [rest for _, *rest in REFUSALS], ids=[case for case, *_ in REFUSALS]
)
def test_a_launch_that_can_not_work_says_so_in_one_line(
    tmp_path: Path, config: Callable[[Path], object], says: str
) -> None:
    content = config(tmp_path)
    file = tmp_path / "cluster.yaml"
    file.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    done = Cli(tmp_path / "run")("launch", file, "--detach")
    assert done.returncode == 1
    (line,) = done.stderr.decode().strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(says, line), line


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = tmp_path / "cluster.yaml"
        file.write_text(yaml.safe_dump(cluster_config(server={"grpc": f"127.0.0.1:{port}"})))
        done = Cli(tmp_path / "run")("launch", file, "--detach")
    assert done.returncode == 1
    assert str(port) in done.stderr.decode()
    assert "server.grpc" in done.stderr.decode()
