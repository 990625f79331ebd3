"""Saves idle sessions, and loads them again, while the server goes on with its work.

A save holds all full blocks of a session for itself, as a fork does, and a copy of the last one, so that the session
may go on meanwhile. A load reserves memory first; the session is there for requests once every file was read and its
checksum was right.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.session_cache import IdleSession, SessionCache, StoredKv
from moorage.runtime.serving.sessions.block_files import BlockFiles
from moorage.runtime.serving.sessions.eviction import evictions
from moorage.runtime.serving.sessions.forking import check_can_share, forked
from moorage.runtime.serving.sessions.keys import tenant_and_name, unnamed_key
from moorage.runtime.serving.sessions.snapshots import (
    BlockFile,
    Manifest,
    Snapshots,
    Store,
    check_same,
    layout_fields,
    read_manifest,
    sizes,
)
from moorage.runtime.serving.step_loop import StepLoop
from moorage.runtime.text.quoting import quoted
from moorage.workers.errors import FailedPrecondition, NotFound, ResourceExhausted
from moorage.workers.spec import RestoreSession
from moorage.workers.token_ids import TokenIds

_OPEN_LOOK_S = 0.002
"""How often a save or load looks whether the worker has opened its session."""


@dataclass(frozen=True, slots=True)
class Served:
    """What saved sessions are of, and how their blocks get into files."""

    model: str
    fingerprint: str
    files: BlockFiles


@dataclass(frozen=True, slots=True)
class Saved:
    """Where sessions are saved."""

    folder: Path
    max_bytes: int | None
    served: Served


class SavedSessions:
    """Saves and loads for one step loop. One save or load runs at a time."""

    def __init__(
        self,
        loop: StepLoop,
        capacity: Capacity,
        served: Served,
        snapshots: Snapshots,
        new_id: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._loop, self._capacity, self._served, self.snapshots = loop, capacity, served, snapshots
        self._new_id, self._clock = new_id, clock
        self._store = Store(
            served.fingerprint,
            layout_fields(capacity.layout),
            capacity.stripe_blocks,
            len(capacity.total.pages),
        )
        self._one_at_a_time = asyncio.Lock()
        self._saving: str | None = None
        """The session that is being written; None again once it was deleted or renamed."""

    async def save(self, held: IdleSession) -> None:
        """Writes the blocks of an idle session to files; what was saved of it before is replaced.

        Where no memory is free to copy a last block that is not full, the tokens of that block are left out.
        """
        check_can_share(self._capacity)
        async with self._one_at_a_time:
            # The session may have gone on or ended while another one was saved.
            current = self._idle.get(held.name)
            if current is None:
                name = tenant_and_name(held.name)[1]
                raise NotFound(f"session: {quoted(name)} is not held any longer; send its prompt again")
            copy, self._saving = self._hold_copy(current), current.name
            try:
                await self._write(current.name, copy)
            finally:
                self._saving = None
                self._discard(copy)

    def forget(self, key: str, new_name: str | None = None) -> None:
        """A session was deleted, or has another name now, and so have its files. What is being written of it is not
        kept."""
        if self._saving == key:
            self._saving = None
        if new_name is None:
            self.snapshots.remove(key)
        else:
            self.snapshots.rename(key, tenant_and_name(key)[0], new_name)

    async def load(
        self,
        key: str,
        digests_of: Callable[[StoredKv, str], tuple[bytes, ...]],
        check_free: Callable[[], None],
    ) -> IdleSession:
        """Makes a saved session an idle one. Raises InvalidRequest, with the field, where its files are damaged or
        of another model, and ResourceExhausted where there is no memory for it. `check_free` raises when a request
        has begun a session of its name meanwhile."""
        async with self._one_at_a_time:
            tenant, name = tenant_and_name(key)
            found = self.snapshots.held.get(key)
            if found is None:
                raise NotFound(
                    f"session: {quoted(name)} was not saved; `runtime session list` shows those that were"
                )
            check_free()
            place = found[0]
            manifest = await asyncio.to_thread(read_manifest, place)
            check_same(manifest.store, self._store)
            session = self._reserve(manifest)
            try:
                await self._opened(session.session_id)
                files = [place / file.name for file in manifest.files]
                checksums = [file.checksum for file in manifest.files]
                await self._served.files.load(session.session_id, files, checksums)
                check_free()
            except BaseException:
                self._discard(session)
                raise
            return self._named(session, key, digests_of(session.stored, tenant))

    @property
    def _idle(self) -> SessionCache:
        return self._loop.scheduler.idle

    def _hold_copy(self, held: IdleSession) -> IdleSession:
        """A session of the blocks of `held`, which no request finds or evicts."""
        number = self._new_id()
        name = unnamed_key(tenant_and_name(held.name)[0], number)
        held, copy = forked(held, name, number, self._capacity, self._clock(), self._idle)
        if not copy.stored.token_ids:
            size = self._capacity.layout.block_size
            raise FailedPrecondition(
                f"the session has no full block of {size} tokens yet; save it when it is longer"
            )
        copy = self._with_rest(held, replace(copy, digests=()))
        self._idle.pinned.add(name)
        self._loop.fork(held, copy)
        return copy

    def _with_rest(self, held: IdleSession, copy: IdleSession) -> IdleSession:
        """The copy with the tokens after the full blocks, and with memory for them; without where none is free."""
        if self._capacity.layout.is_packed:  # An idle session has packed blocks alone.
            return copy
        rest = self._for_idle(held.stored.token_ids, held.first_actor).minus(
            self._for_idle(copy.stored.token_ids, held.first_actor)
        )
        if not self._loop.scheduler.free.holds(rest):
            return copy
        return replace(copy, stored=held.stored, resources=rest)

    def _for_idle(self, tokens: TokenIds, first_actor: int) -> Resources:
        """What the KV of an idle session holds, without its ring."""
        return replace(self._capacity.idle(len(tokens)), rings=0).starting_at(first_actor)

    async def _write(self, key: str, copy: IdleSession) -> None:
        tenant, name = tenant_and_name(key)
        await self._opened(copy.session_id)
        place = await asyncio.to_thread(self.snapshots.begin)
        try:
            names = [f"blocks-{actor}.safetensors" for actor in range(self._store.actors)]
            checksums = await self._served.files.save(copy.session_id, [place / one for one in names])
            found = zip(names, sizes(place, names), checksums, strict=True)
            manifest = Manifest(
                name,
                tenant,
                copy.used_s,
                self._served.model,
                self._store,
                copy.first_actor,
                copy.stored.prompt_tokens,
                copy.stored.memory,
                tuple(copy.stored.token_ids),
                tuple(BlockFile(*one) for one in found),
                copy.stored.draw,
            )
            if self._saving != key:
                raise FailedPrecondition(
                    f"session: {quoted(name)} was deleted or renamed while it was saved; save it under its new name"
                )
            self.snapshots.publish(place, manifest)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _reserve(self, manifest: Manifest) -> IdleSession:
        """A session with memory for the blocks of a saved one, which no request finds or evicts."""
        number, tokens = self._new_id(), TokenIds(manifest.token_ids)
        num_blocks, rest = divmod(len(tokens), self._capacity.layout.block_size)
        resources = self._for_idle(tokens, manifest.first_actor)
        self._make_room(resources)
        stored = StoredKv(tokens, manifest.prompt_tokens, manifest.memory, draw=manifest.draw)
        name = unnamed_key(manifest.tenant, number)
        session = IdleSession(name, number, stored, resources, manifest.first_actor, used_s=self._clock())
        self._idle.pinned.add(name)
        restoring = RestoreSession(
            number, num_blocks, manifest.prompt_tokens, manifest.memory, manifest.first_actor, rest
        )
        self._loop.restore(session, restoring)
        return session

    def _make_room(self, need: Resources) -> None:
        """Evicts idle sessions as admission does, so that there is memory; none where that is not enough."""
        scheduler = self._loop.scheduler
        awaited = {waiting.session_name for waiting in scheduler.waiting if waiting.session_name is not None}
        free = scheduler.free
        evicted = evictions(self._idle.evictable(None), awaited, (), free, lambda free: free.holds(need))
        if evicted is None:
            raise ResourceExhausted(
                "running requests and pinned sessions leave no memory for the saved session; try again later"
            )
        for victim in evicted:
            self._loop.discard(victim)

    async def _opened(self, session_id: int) -> None:
        """Waits until the worker has opened a session, which takes a step at most."""
        while self._loop.is_due(session_id):
            await asyncio.sleep(_OPEN_LOOK_S)

    def _discard(self, session: IdleSession) -> None:
        self._idle.pinned.discard(session.name)
        current = self._idle.get(session.name)
        if current is not None:
            self._loop.discard(current)

    def _named(self, session: IdleSession, key: str, digests: tuple[bytes, ...]) -> IdleSession:
        """The session under its own name, as requests find it."""
        self._idle.pinned.discard(session.name)
        self._idle.remove(session)
        named = replace(session, name=key, digests=digests)
        self._idle.add(named)
        return named
