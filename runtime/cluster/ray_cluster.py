"""The Ray cluster of a server: a private one, or one that runs already and is joined."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import secrets
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from moorage.runtime.cluster import os_processes, ray_environment
from moorage.runtime.cluster.os_processes import ProcessId, ProcessState
from moorage.runtime.cluster.owner_thread import OwnerThread
from moorage.runtime.cluster.private_directory import PrivateDirectory, remove_leftovers
from moorage.runtime.cluster.process_watch import Watched
from moorage.runtime.config.schema import ClusterConfig
from moorage.workers.errors import Unavailable

log = structlog.get_logger()

START_ATTEMPTS = 3
GRACE_S = 5.0
"""Longest wait for the end of Ray's processes before they are killed."""
ABORT_S = 2.0
"""Longest wait for the failure of a start of Ray whose processes were killed."""
STOP_S = 20.0
"""Longest wait for Ray's own shutdown."""
_LOSS = "without which no process of the cluster can go on"
_HEAD = {"gcs_server": "Ray's control service gcs_server", "raylet": "Ray's node manager raylet"}
_PEER_CREDENTIALS = struct.Struct("3i")


class RayCluster:
    """Starts or joins Ray; `stop` leaves no process and no file of a private cluster."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self.private = config.ray.address == "local"
        self._thread = OwnerThread("ray")
        self._starting: asyncio.Future[None] | None = None
        self._directory: PrivateDirectory | None = None
        self._before: set[ProcessId] = set()
        """Descendants of this process that are not Ray's."""
        self._processes: list[ProcessId] = []
        """The processes of a private cluster without its actors."""
        self.watched: tuple[Watched, ...] = ()
        """The processes on this host that the cluster needs."""

    async def start(self) -> None:
        """Starts or joins Ray. Raises Unavailable when that fails."""
        ray_environment.prepare(private=self.private)
        self._starting = self._thread.call(self._start_private if self.private else self._join)
        await asyncio.shield(self._starting)
        self.watched = tuple(self._head())

    async def stop(self, actors: Sequence[Any], actor_processes: Sequence[ProcessId]) -> None:
        """Ends the actors and a private Ray. Kills the processes that do not end."""
        if self._starting is not None and not self._starting.done():
            _kill(self._started() if self.private else ())
            done, _ = await asyncio.wait((self._starting,), timeout=ABORT_S)
            if not done:
                atexit.register(_exit_without_ray, 0)
                await asyncio.to_thread(self._sweep, self._started() if self.private else ())
                return
        _kill(one for one in actor_processes if one.state is ProcessState.STOPPED)
        if all(one.process.state is ProcessState.RUNNING for one in self.watched):
            try:
                await asyncio.wait_for(self._thread.call(lambda: _leave(actors)), STOP_S)
            except TimeoutError:
                log.warning("Ray does not stop; its processes are killed", waited_s=STOP_S)
        else:
            _kill((*self._processes, *actor_processes))  # They hold nothing that a clean end would save.
            atexit.register(_exit_without_ray, 1)
        await asyncio.to_thread(self._sweep, tuple(actor_processes))

    def _start_private(self) -> None:
        for path in remove_leftovers():
            log.info("removed what a killed server left", path=str(path))
        directory = self._directory = PrivateDirectory()
        _use_own_token(directory.path)
        self._before = set(os_processes.descendants(os.getpid()))
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._init_private(directory)
            except Exception as error:
                os_processes.end(self._started(), GRACE_S)
                # Ray gives its processes 10 to 30 s each, which a busy host may exceed.
                if "timed out" not in str(error).lower() or attempt == START_ATTEMPTS:
                    raise Unavailable(f"Ray did not start: {' '.join(str(error).split())}") from error
                log.warning("Ray did not start in time and is started again", attempt=attempt)
            else:
                break
        self._processes = self._started()

    def _started(self) -> list[ProcessId]:
        """The descendants of this process since the start of Ray began."""
        return [one for one in os_processes.descendants(os.getpid()) if one not in self._before]

    def _init_private(self, directory: PrivateDirectory) -> None:
        import ray

        config = self._config
        ray.init(
            address="local",
            namespace=config.ray.namespace,
            num_cpus=config.kv_store.actors + config.gpu_workers.count,
            object_store_memory=config.ray.object_store_memory,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(directory.path / "r"),
        )

    def _join(self) -> None:
        import ray

        address = self._config.ray.address
        try:
            ray.init(
                address=address,
                namespace=self._config.ray.namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise Unavailable(f"ray.address: {address} can't be joined: {reason}") from error

    def _head(self) -> list[Watched]:
        if self.private:
            named = [(_name_of(one), one) for one in self._processes]
            return [Watched(_HEAD[name], one, _LOSS, in_steps=False) for name, one in named if name in _HEAD]
        raylet = _local_raylet()
        return [] if raylet is None else [Watched(_HEAD["raylet"], raylet, _LOSS, in_steps=False)]

    def _sweep(self, actor_processes: Sequence[ProcessId]) -> None:
        left = os_processes.wait_gone((*actor_processes, *self._processes), GRACE_S)
        _kill(left)
        os_processes.wait_gone(left, GRACE_S)
        if self._directory is not None:
            self._directory.remove()


def _kill(targets: Iterable[ProcessId]) -> None:
    for process in targets:
        process.send(signal.SIGKILL)


def _exit_without_ray(status: int) -> None:
    """Ends a server whose Ray has ended. Ray's exit handler would wait up to half a minute for those processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _leave(actors: Sequence[Any]) -> None:
    import ray

    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor)
        ray.shutdown()


def _use_own_token(directory: Path) -> None:
    """Sets a secret for this cluster, unless the user has set one."""
    if (
        os.environ["RAY_AUTH_MODE"] != "token"
        or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    ):
        return
    file = directory / "token"
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32), encoding="ascii")
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)


def _name_of(process: ProcessId) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/comm").read_text(encoding="utf-8").strip()
    return ""


def _local_raylet() -> ProcessId | None:
    """The process behind the raylet's socket of this host, of a cluster that was joined."""
    from ray._private.worker import global_worker

    path = getattr(global_worker.node, "raylet_socket_name", None)
    if not path:
        return None
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        return ProcessId.of(_PEER_CREDENTIALS.unpack(credentials)[0])
    return None
