"""A Ray cluster that was started elsewhere, without any of our settings, and is joined."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil
import pytest

from moorage.client import Client
from moorage.runtime.cluster.ray_environment import NICENESS_OF_WORKERS
from tests.end_to_end.conftest import launch

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def head() -> Iterator[str]:
    """The address of a Ray cluster of this test's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="mray", ignore_cleanup_errors=True) as directory:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=3"]
        command += [f"--port={port}", f"--temp-dir={directory}", "--include-dashboard=false"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        subprocess.run(command, env=environment | {"RAY_AUTH_MODE": "token"}, check=True, capture_output=True)
        yield f"127.0.0.1:{port}"
        for process in psutil.process_iter():
            try:
                if any(directory in word for word in process.cmdline()):
                    process.kill()
            except psutil.Error:
                continue


def test_actors_get_the_launcher_s_variables_and_priority_and_end_with_the_server(
    head: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    running = launch(tmp_path_factory.mktemp("joined"), ray={"address": head})
    pids = running.ready["pids"]
    workers = [psutil.Process(pid) for pid in (*pids["kv_actors"], *pids["workers"])]
    niceness = min(psutil.Process(pids["coordinator"]).nice() + NICENESS_OF_WORKERS, 19)
    if os.geteuid() == 0:  # Nobody else may take a better priority than Ray gave.
        assert [worker.nice() for worker in workers] == [niceness] * 3
    assert [worker.environ().get("OMP_WAIT_POLICY") for worker in workers] == ["passive"] * 3
    with Client(running.address) as client:
        assert len(client.generate("a b c", max_new_tokens=3, ignore_eos=True).result().token_ids) == 3
    os.kill(pids["coordinator"], signal.SIGKILL)
    until_s = time.monotonic() + 30
    while any(worker.is_running() for worker in workers):
        assert time.monotonic() < until_s
        time.sleep(0.1)
