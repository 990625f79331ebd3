"""The KV actor: a store and its mailbox in a process of their own. The Ray shell adds nothing but a name."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any

import numba
import numpy as np
import ray
from numpy.typing import NDArray

from moorage.workers.errors import Unavailable
from moorage.workers.kv.binding import bind_to
from moorage.workers.kv.link import Link
from moorage.workers.kv.mailbox_channel import Patience
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import (
    AnchorRotation,
    Float32,
    Int32,
    SelectReply,
    SelectRequest,
    Storage,
    StoreStats,
)
from moorage.workers.kv.ray_link import RayLink
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.warm_up import warm_up
from moorage.workers.process import ProcessFacts, host_key, own_facts, take_asked_priority
from moorage.workers.ray_process import RayProcess
from moorage.workers.spec import KvLayout


class KvActor:
    """What Ray runs. Workers of the same host use the mailbox; all others call these methods."""

    def __init__(
        self, layout: KvLayout, num_pages: int, num_threads: int, cpus: tuple[int, ...] = ()
    ) -> None:
        """Compiles the kernels as well, so that an actor that answers is ready.

        With `cpus`, its threads stay on these, and all its memory is taken at once, from their NUMA node.
        """
        take_asked_priority()
        if cpus:
            bind_to(cpus)
        numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))
        warm_up(layout)
        self._store = KvStore(layout, num_pages)
        if cpus:
            self._store.arena.populate()
        self._lock = threading.Lock()
        self._server = MailboxServer(self._store, lock=self._lock, num_threads=num_threads)

    def contact(self) -> tuple[str, str, KvLayout]:
        """(host key, mailbox address, layout) for `connect`."""
        return host_key(), self._server.address, self._store.layout

    def pid(self) -> int:
        """The process."""
        return os.getpid()

    def facts(self) -> ProcessFacts:
        """Where it runs."""
        return own_facts()

    def open(self, session_id: int, num_blocks: int, rotation: AnchorRotation | None = None) -> None:
        """As `KvStore.open`."""
        with self._lock:
            self._store.open(session_id, num_blocks, rotation)

    def resize(self, session_id: int, num_blocks: int) -> None:
        """As `KvStore.resize`."""
        with self._lock:
            self._store.resize(session_id, num_blocks)

    def attach(self, session_id: int) -> int:
        """As `Link.attach`."""
        with self._lock:
            return min(self._store.attach(session_id)[1])

    def write(self, session_id: int, layer: int, start: int, keys: Storage, values: Storage) -> None:
        """As `KvStore.write`."""
        with self._lock:
            self._store.write(session_id, layer, start, _own(keys), _own(values))

    def commit(self, session_id: int, layer: int, start: int, end: int) -> None:
        """As `KvStore.commit`."""
        with self._lock:
            self._store.commit(session_id, layer, start, end)

    def truncate(self, session_id: int, num_tokens: int) -> None:
        """As `KvStore.truncate`."""
        with self._lock:
            self._store.truncate(session_id, num_tokens)

    def select(self, request: SelectRequest) -> SelectReply:
        """As `KvStore.select`."""
        with self._lock:
            return self._store.select(_owned(request))

    def select_together(self, requests: list[SelectRequest]) -> list[SelectReply]:
        """As `KvStore.select_together`."""
        with self._lock:
            return self._store.select_together([_owned(request) for request in requests])

    def score(self, request: SelectRequest) -> Float32:
        """As `KvStore.score`."""
        with self._lock:
            return self._store.score(_owned(request))

    def choose(self, session_id: int, lse: Float32) -> SelectReply:
        """As `KvStore.choose`."""
        with self._lock:
            return self._store.choose(session_id, _own(lse))

    def keep(self, session_id: int, layer: int, blocks: Int32, limit: int) -> None:
        """As `KvStore.keep`."""
        with self._lock:
            self._store.keep(session_id, layer, _own(blocks), limit)

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Float32) -> None:
        """As `KvStore.rebuild_anchors`."""
        with self._lock:
            self._store.rebuild_anchors(session_id, layer, first, _own(importance))

    def gather(self, session_id: int, layer: int, blocks: Int32) -> Storage:
        """[n, 2, Hkv, B, D]: copies of `blocks`."""
        layout, kv = self._store.layout, self._store.arena.kv
        out = np.empty((len(blocks), 2, layout.num_kv_heads, layout.block_size, layout.head_dim), kv.dtype)
        with self._lock:
            slots = np.arange(len(blocks), dtype=np.int32)
            self._store.gather(session_id, layer, _own(blocks), out, slots)
        return out

    def drop(self, session_id: int) -> None:
        """As `KvStore.drop`."""
        with self._lock:
            self._store.drop(session_id)

    def stats(self) -> StoreStats:
        """As `KvStore.stats`."""
        with self._lock:
            return self._store.stats()

    def check_integrity(self) -> None:
        """As `KvStore.check_integrity`."""
        with self._lock:
            self._store.check_integrity()

    def shutdown(self) -> None:
        """Ends the mailbox, whose workers see PeerDead, and gives the memory back. Idempotent."""
        self._server.close()
        with self._lock:
            self._store.close()


def start_kv_actor(
    process: RayProcess, layout: KvLayout, num_pages: int, num_threads: int, cpus: tuple[int, ...] = ()
) -> Any:
    """Starts a KV actor as `process` and returns its handle at once; its first call waits until it is ready.

    `cpus` are as in KvActor.
    """
    return ray.remote(KvActor).options(**process.options()).remote(layout, num_pages, num_threads, cpus)


def stop_kv_actor(handle: Any, *, timeout_s: float = 10.0) -> None:
    """Shuts an actor down and ends its process, even if it does not answer. Idempotent."""
    with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        ray.get(handle.shutdown.remote(), timeout=timeout_s)
    ray.kill(handle, no_restart=True)


def connect(
    actor: Any, *, namespace: str | None = None, timeout_s: float = 60.0, ready_s: float = 600.0
) -> Link:
    """A link to an actor, given as handle or name: the mailbox on the same host, else Ray.

    Raises Unavailable when there is no such actor, at once when it is dead, or when it is not ready within `ready_s`:
    one that starts for the first time on a slow machine compiles its kernels for a minute or two.
    """
    try:
        handle = ray.get_actor(actor, namespace=namespace) if isinstance(actor, str) else actor
        key, address, layout = ray.get(handle.contact.remote(), timeout=ready_s)
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        raise Unavailable(f"KV actor {actor}: {_first_line(error)}; see that it runs") from error
    if key == host_key():
        name = actor if isinstance(actor, str) else ""
        return MailboxLink(address, patience=Patience(silent_s=timeout_s), name=name)
    return RayLink(handle, layout, timeout_s=timeout_s)


def _own(array: NDArray[Any]) -> NDArray[Any]:
    # Ray hands out read-only views of its object store; the kernels are compiled for writable arrays only.
    return np.require(array, requirements=["C", "W"])


def _owned(request: SelectRequest) -> SelectRequest:
    refine = None if request.refine is None else _own(request.refine)
    return request._replace(queries=_own(request.queries), limits=_own(request.limits), refine=refine)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
