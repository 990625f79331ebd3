"""The serving process: binds the port, starts the cluster, serves until a signal, and ends all of its processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from moorage.runtime.api.engine import Engine
from moorage.runtime.cluster import os_processes, registry
from moorage.runtime.cluster.background_tasks import essential, log_stray_errors, repeated
from moorage.runtime.cluster.front_ends import Addresses, FrontEnds
from moorage.runtime.cluster.heap import LOOK_EVERY_S, HeapTrimmer
from moorage.runtime.cluster.hooks import Hooks
from moorage.runtime.cluster.os_processes import ProcessId
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.serving.protocol import ClusterStatus
from moorage.workers.errors import Unavailable
from moorage.workers.process import freeze_heap

log = structlog.get_logger()

DRAIN_S = 3.0
"""Longest time that running requests may continue after the first signal."""
_WATCH_S = 2.0
_SIGNALS_S = 0.1
_SWEEP_GRACE_S = 5.0


StartEngine = Callable[[ClusterConfig, Hooks], Coroutine[Any, Any, Engine]]


@dataclass(frozen=True, slots=True)
class Launch:
    """The configuration of one launch, and its files."""

    config: ClusterConfig
    config_file: Path
    ready_file: Path | None = None
    log_file: Path | None = None


async def start_cluster(config: ClusterConfig, hooks: Hooks) -> Engine:
    """Starts the coordinator and all processes behind it. Ray and torch are imported here and not before."""
    from moorage.runtime.cluster.bringup import start_coordinator

    return await start_coordinator(config, hooks)


async def serve(launch: Launch, hooks: Hooks, start: StartEngine = start_cluster) -> None:
    """Serves until SIGTERM or SIGINT; a second signal ends everything at once.

    Raises the error that keeps the cluster from starting, and Unavailable when it fails later.
    """
    os_processes.adopt_orphans()
    log_stray_errors(asyncio.get_running_loop())
    stop = asyncio.Event()
    _catch_signals(stop)
    server = FrontEnds(launch.config.server)
    addresses = await server.start()
    _record(launch, addresses, "starting")
    try:
        engine = await _started(start(launch.config, hooks), stop)
        if engine is not None:
            try:
                await _serve_engine(launch, hooks, server, addresses, engine, stop)
            finally:
                await engine.close()
    finally:
        await server.stop()
        await asyncio.to_thread(_sweep)
        registry.remove(os.getpid())


async def _started(start: Coroutine[Any, Any, Engine], stop: asyncio.Event) -> Engine | None:
    """The engine, or None when a signal came before it was ready."""
    starting = asyncio.create_task(start)
    signalled = asyncio.create_task(stop.wait())
    while not starting.done() and not signalled.done():
        await asyncio.wait((starting, signalled), timeout=_SIGNALS_S, return_when=asyncio.FIRST_COMPLETED)
        _catch_signals(stop)  # When it starts, Ray installs handlers that print a stack.
    signalled.cancel()
    if not starting.done():
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        return None
    return await starting


async def _serve_engine(
    launch: Launch, hooks: Hooks, server: FrontEnds, addresses: Addresses, engine: Engine, stop: asyncio.Event
) -> None:
    freeze_heap()
    await server.serve(engine)
    ready = _ready_message(launch, addresses, await engine.status())
    _record(launch, addresses, "serving")
    if launch.ready_file is not None:
        registry.write_atomically(launch.ready_file, ready)
    hooks.on_ready(ready)
    try:
        await _watch(engine, server, addresses.grpc, hooks, stop)
    finally:
        await server.drain(DRAIN_S)


async def _watch(engine: Engine, server: FrontEnds, address: str, hooks: Hooks, stop: asyncio.Event) -> None:
    """Waits until `stop` is set. Raises Unavailable when the cluster can't serve any longer."""

    async def show() -> None:
        hooks.on_status(address, await engine.status())

    stopped = asyncio.create_task(stop.wait())
    tasks = [
        stopped,
        asyncio.create_task(essential("the watch over the cluster's health", _report_health(engine, server))),
        asyncio.create_task(server.closed()),
        asyncio.create_task(repeated("the status view", show, _WATCH_S)),
        asyncio.create_task(repeated("giving memory back", HeapTrimmer().look, LOOK_EVERY_S)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopped}:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _report_health(engine: Engine, server: FrontEnds) -> None:
    """Reports the engine's problems in health checks and the log. Raises the first fatal one as Unavailable."""
    reported = None
    while True:
        problem = await engine.health.changed()
        await server.set_health(serving=problem is None)
        if problem is None:
            log.info("the cluster serves again")
        elif problem != reported:
            log.error("the cluster does not serve", problem=problem.message)
        if problem is not None and (problem.fatal or problem.fails_requests):
            engine.fail_requests(Unavailable(problem.message))
        if problem is not None and problem.fatal:
            raise Unavailable(f"the cluster has failed: {problem.message}")
        reported = problem


def _catch_signals(stop: asyncio.Event) -> None:
    def caught() -> None:
        if stop.is_set():
            for process in os_processes.descendants(os.getpid()):
                process.send(signal.SIGKILL)
            os._exit(1)
        stop.set()
        log.info("stopping", drain_s=DRAIN_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, caught)


def _sweep() -> None:
    """Ends every descendant of this process."""
    killed = os_processes.end(os_processes.descendants(os.getpid()), _SWEEP_GRACE_S)
    if killed:
        log.warning("processes had to be killed", pids=[process.pid for process in killed])


def _record(launch: Launch, addresses: Addresses, phase: str) -> None:
    own = ProcessId.own()
    registry.save(
        registry.ClusterRecord(
            address=addresses.grpc,
            http=addresses.http,
            phase=phase,
            config_file=str(launch.config_file.resolve()),
            log_file=None if launch.log_file is None else str(launch.log_file),
            processes=(own, *os_processes.descendants(own.pid)),
        )
    )


def _ready_message(launch: Launch, addresses: Addresses, status: ClusterStatus) -> dict[str, Any]:
    actors = [{"name": actor.name, "pid": actor.pid} for actor in status.kv_actors]
    return {
        "address": addresses.grpc,
        "http": addresses.http,
        "pid": os.getpid(),
        "pids": {
            "coordinator": os.getpid(),
            "workers": list(status.worker_pids),
            "kv_actors": [actor["pid"] for actor in actors],
        },
        "kv_actors": actors,
        "model": status.model.name,
        "has_chat_template": status.model.has_chat_template,
        "log_file": None if launch.log_file is None else str(launch.log_file),
    }
