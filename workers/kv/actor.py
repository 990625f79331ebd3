"""The KV actor: a store and its mailbox in a process of their own. The Ray shell adds nothing but a name."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import ray

from moorage.kernels.compile_lock import one_at_a_time
from moorage.kernels.numba_flags import always_parallel
from moorage.workers.errors import Unavailable
from moorage.workers.kv.binding import bind_to
from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.kv.jobs import Jobs, Outcome
from moorage.workers.kv.link import Link
from moorage.workers.kv.mailbox_channel import Patience
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import StoreStats
from moorage.workers.kv.operation import Operation
from moorage.workers.kv.ray_link import RayLink
from moorage.workers.kv.snapshot import load_session, save_session
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.warm_up import LOCK, warm_up, warm_up_keys
from moorage.workers.process import ProcessFacts, freeze_heap, host_key, own_facts, take_asked_priority
from moorage.workers.ray_process import RayProcess
from moorage.workers.spec import KvLayout

T = TypeVar("T")

_SHUTDOWN_S = 10.0
"""How long an actor may take to shut down before it is killed."""
_ANSWER_S = 60.0
"""How long an actor may give no sign before a call to it fails."""
_READY_S = 600.0
"""How long the first start of an actor may take."""


class Contact(NamedTuple):
    """How to reach a store."""

    host: str
    """`host_key` of its process."""
    address: str
    """The address of its mailbox, for workers of the same host."""
    layout: KvLayout


class KvActor:
    """What Ray runs. Workers of the same host use the mailbox; all others call these methods."""

    def __init__(
        self,
        layout: KvLayout,
        num_pages: int,
        num_threads: int,
        cpus: tuple[int, ...] = (),
        quantizer: Quantizer | None = None,
    ) -> None:
        """Compiles the kernels as well, so that an actor that answers is ready. `quantizer` is that of the layout.

        With `cpus`, its threads stay on these, and all its memory is taken at once, from their NUMA node.
        """
        take_asked_priority()
        if cpus:
            bind_to(cpus)
        numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))
        warm_up(layout)
        self._store = KvStore(layout, num_pages, quantizer)
        if cpus:
            self._store.arena.populate()
        self._lock = threading.Lock()
        self._jobs = Jobs()
        self._server = MailboxServer(self._store, lock=self._lock, num_threads=num_threads)
        freeze_heap()

    def contact(self) -> Contact:
        """How to reach the store."""
        return Contact(host_key(), self._server.address, self._store.layout)

    def pid(self) -> int:
        """The process."""
        return os.getpid()

    def facts(self) -> ProcessFacts:
        """Where it runs."""
        return own_facts()

    def call(self, operation: Operation[T]) -> T:
        """The reply of the store."""
        with self._lock:
            return writable(operation).answer(self._store)

    def warm_up_keys(self, group_size: int) -> None:
        """Compiles the selection of single keys, which the workers of the same host do themselves."""
        with one_at_a_time(LOCK):
            warm_up_keys(self._store.layout, group_size)
            with always_parallel():
                warm_up_keys(self._store.layout, group_size)

    def start_save(self, session_id: int, file: str) -> int:
        """Starts `save_session` in a thread; `outcome` of the number has the checksum."""
        return self._jobs.start(save_session, self._store, session_id, Path(file))

    def start_load(self, session_id: int, file: str, checksum: str) -> int:
        """Starts `load_session` in a thread."""
        return self._jobs.start(load_session, self._store, session_id, Path(file), checksum)

    def outcome(self, number: int) -> Outcome:
        """Whether such a thread is done, and what came of it; told once."""
        return self._jobs.outcome(number)

    def stats(self) -> StoreStats:
        """See `KvStore.stats`."""
        with self._lock:
            return self._store.stats()

    def check_integrity(self) -> None:
        """See `KvStore.check_integrity`."""
        with self._lock:
            self._store.check_integrity()

    def shutdown(self) -> None:
        """Ends the mailbox, whose workers see PeerDead, and gives the memory back. Idempotent."""
        self._server.close()
        with self._lock:
            self._store.close()


def start_kv_actor(
    process: RayProcess,
    layout: KvLayout,
    num_pages: int,
    num_threads: int,
    cpus: tuple[int, ...] = (),
    quantizer: Quantizer | None = None,
) -> Any:
    """Starts a KV actor as `process` and returns its handle at once; its first call waits until it is ready.

    `cpus` and `quantizer` are as in KvActor.
    """
    actor = ray.remote(KvActor).options(**process.options())
    return actor.remote(layout, num_pages, num_threads, cpus, quantizer)


def stop_kv_actor(handle: Any) -> None:
    """Shuts an actor down and ends its process, even if it does not answer. Idempotent."""
    with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        ray.get(handle.shutdown.remote(), timeout=_SHUTDOWN_S)
    ray.kill(handle, no_restart=True)


def connect(actor: Any, *, namespace: str | None = None, group_size: int = 1) -> Link:
    """A link to an actor, given as handle or name: the mailbox on the same host, else Ray.

    An actor that Ray reaches selects single keys itself, for `group_size` query heads to each KV head, and compiles
    what that takes before this returns.

    Raises Unavailable when there is no such actor, at once when it is dead, or when it is not ready within ten
    minutes: one that starts for the first time on a slow machine compiles its kernels for a minute or two.
    """
    try:
        handle = ray.get_actor(actor, namespace=namespace) if isinstance(actor, str) else actor
        contact: Contact = ray.get(handle.contact.remote(), timeout=_READY_S)
        here = contact.host == host_key()
        if not here and contact.layout.anchor_type.codes_keys:
            ray.get(handle.warm_up_keys.remote(group_size), timeout=_READY_S)
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        raise Unavailable(f"KV actor {actor}: {_first_line(error)}; see that it runs") from error
    if here:
        name = actor if isinstance(actor, str) else ""
        return MailboxLink(contact.address, patience=Patience(silent_s=_ANSWER_S), name=name)
    return RayLink(handle, contact.layout, timeout_s=_ANSWER_S)


def writable(record: T) -> T:
    """An operation with arrays that may be written: Ray hands out views of its object store that may not, and kernels
    are compiled for writable arrays only."""
    if isinstance(record, np.ndarray):
        return cast(T, np.require(record, requirements=["C", "W"]))
    if isinstance(record, tuple) and hasattr(record, "_fields"):
        return cast(T, type(record)(*map(writable, record)))
    if isinstance(record, list):
        return cast(T, [writable(part) for part in record])
    if is_dataclass(record) and not isinstance(record, type):
        names = [field.name for field in fields(record)]
        return replace(record, **{name: writable(getattr(record, name)) for name in names})
    return record


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
