"""Servers with the toy engine behind them: in a thread for clients, or as a process of its own to be launched.

python -m tests.toy_server CLUSTER_FILE READY_FILE [SECONDS_PER_TOKEN]
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.cluster.hooks import Hooks
from moorage.runtime.cluster.server import Launch, serve
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.schema import ClusterConfig
from tests.toy_engine import ToyEngine


@dataclass(frozen=True)
class ToyServer:
    """Where it listens, and its engine, whose events belong to another thread's loop."""

    address: str
    engine: ToyEngine


@contextmanager
def toy_server(
    *, ready: bool = True, engine: ToyEngine | None = None, at: str = "127.0.0.1:0"
) -> Iterator[ToyServer]:
    """A real gRPC server, on a free port by default, in a thread."""
    started: list[ToyServer] = []
    up, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def run() -> None:
        server, served = ApiServer(), engine or ToyEngine()
        address = await server.start(at)
        if ready:
            await server.serve(served)
        started.append(ToyServer(address, served))
        up.set()
        await over.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        assert up.wait(10)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


async def start_toy(_: ClusterConfig, _hooks: Hooks, step_s: float = 0.0) -> Engine:
    """In place of the coordinator: the toy, with a process of its own that must not outlive the server."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return ToyEngine(step_s=step_s)


if __name__ == "__main__":
    cluster_file, ready_file = Path(sys.argv[1]), Path(sys.argv[2])
    step_s = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    launch = Launch(load_cluster_config(cluster_file), cluster_file, ready_file)
    asyncio.run(serve(launch, Hooks(on_ready=lambda _: None), partial(start_toy, step_s=step_s)))
