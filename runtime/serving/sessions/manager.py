"""What clients do with sessions: list, delete, rename, pin and fork them. Rules of time and memory drop idle ones."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.session_cache import IdleSession, SessionCache, StoredKv
from moorage.runtime.serving.sessions.autosave import Autosave
from moorage.runtime.serving.sessions.forking import check_can_share, forked
from moorage.runtime.serving.sessions.keys import session_key, tenant_and_name
from moorage.runtime.serving.sessions.prefixes import BlockChain, can_share
from moorage.runtime.serving.sessions.records import SessionInfo, SessionPolicy
from moorage.runtime.serving.sessions.saving import Saved, SavedSessions
from moorage.runtime.serving.sessions.shared_blocks import SharedBlocks, held_by, shared_with_others
from moorage.runtime.serving.sessions.snapshots import Snapshots
from moorage.runtime.serving.step_loop import StepLoop
from moorage.runtime.text.quoting import quoted
from moorage.workers.errors import FailedPrecondition, MoorageError, NotFound
from moorage.workers.spec import MemorySpec
from moorage.workers.token_ids import TokenIds

_SETTLE_LOOK_S = 0.002
"""How often an operation looks whether a session's last request has let it go."""
_SETTLE_S = 2.0
"""How long the end of the server waits for that."""

log = structlog.get_logger()


class Sessions:
    """Operations on the sessions of a step loop. A session belongs to a tenant, who sees no others."""

    def __init__(
        self,
        loop: StepLoop,
        capacity: Capacity,
        policy: SessionPolicy,
        new_id: Callable[[], int],
        saved: Saved | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`new_id` names a new session to the worker. Raises Unavailable where `saved` is no usable folder."""
        self._new_id = new_id
        self._loop, self._capacity, self._policy, self._clock = loop, capacity, policy, clock
        self.saved: SavedSessions | None = None
        """Sessions in files; None where none are saved."""
        if saved is not None:
            snapshots = Snapshots(saved.folder, saved.max_bytes)
            self.saved = SavedSessions(loop, capacity, saved.served, snapshots, new_id, clock)
        self._secret = secrets.token_bytes(32)
        self._shares = policy.prefixes and can_share(capacity)
        self._expiry: asyncio.TimerHandle | None = None
        self._autosave: Autosave | None = None
        if self.saved is not None and policy.save_after_s is not None and can_share(capacity):
            size, after_s = capacity.layout.block_size, policy.save_after_s
            self._autosave = Autosave(self.saved, lambda: self._idle, after_s, size, clock)
        loop.on_session = self._used

    def chain_of(self, tenant: str, memory: MemorySpec, prompt: TokenIds) -> BlockChain | None:
        """The hashes of a prompt's blocks; None where prefixes are not reused."""
        if not self._shares:
            return None
        return BlockChain(self._secret, tenant, memory, self._capacity.layout, prompt)

    async def list(self, tenant: str = "") -> tuple[SessionInfo, ...]:
        """Every named session of a tenant, the longest unused first, those of running requests last."""
        running = self._running.values()
        held = (*map(self._idle_info, self._idle), *map(self._running_info, running))
        return tuple(info for info in self._with_saved(held) if info.name and info.tenant == tenant)

    async def delete(self, name: str, tenant: str = "") -> None:
        """Drops a session, pinned or not, and its files. Raises FailedPrecondition while a request uses it."""
        key = session_key(tenant, name)
        if self._is_held(key) or self.saved is None or key not in self.saved.snapshots.held:
            held = await self._unused(key)
            self._idle.pinned.discard(held.name)
            self._loop.discard(held)
        if self.saved is not None:
            self.saved.forget(key)

    async def rename(self, name: str, new_name: str, tenant: str = "") -> SessionInfo:
        """Gives an idle session another name that is free."""
        held = await self._unused(session_key(tenant, name))
        self._check_free(new_name, tenant)
        if self.saved is not None:
            self.saved.forget(held.name, new_name)
        return self._idle_info(self._idle.rename(held, session_key(tenant, new_name)))

    async def pin(self, name: str, pinned: bool = True, tenant: str = "") -> SessionInfo:
        """Keeps a session from eviction by others and from the rules of the policy, or gives it free again."""
        key = session_key(tenant, name)
        held, request = self._idle.get(key), self._running.get(key)
        if held is None and request is None:
            raise _not_found(name)
        (self._idle.pinned.add if pinned else self._idle.pinned.discard)(key)
        self._used(key)
        held = self._idle.get(key)
        if held is not None:
            return self._idle_info(held)
        if request is not None:
            return self._running_info(request)
        raise _not_found(name)  # Its time had passed when it was given free.

    async def fork(self, name: str, new_name: str, tenant: str = "") -> SessionInfo:
        """Opens a session that shares all full blocks of another one; each goes its own way after them.

        Raises FailedPrecondition where the blocks of the cluster's settings can't be shared.
        """
        check_can_share(self._capacity)
        held = await self._unused(session_key(tenant, name))
        self._check_free(new_name, tenant)
        held, fork = forked(
            held, session_key(tenant, new_name), self._new_id(), self._capacity, self._clock(), self._idle
        )
        self._loop.fork(held, fork)
        self._used(fork.name)
        return self._idle_info(fork)

    async def save(self, name: str, tenant: str = "") -> SessionInfo:
        """Writes an idle session to files, which survive the server."""
        saved = self._files()
        held = await self._unused(session_key(tenant, name))
        await saved.save(held)
        return await self._info(name, tenant)

    async def load(self, name: str, tenant: str = "") -> SessionInfo:
        """Brings a saved session back to memory. Raises FailedPrecondition where one of its name is held."""
        saved, key = self._files(), session_key(tenant, name)
        self._check_not_held(key)
        await saved.load(key, self._digests_of, lambda: self._check_not_held(key))
        self._used(key)
        return await self._info(name, tenant)

    async def wake(self, name: str | None, tenant: str = "") -> None:
        """Loads a saved session that a request names, unless memory holds it.

        What can't be loaded is logged, and the request reads its prompt anew.
        """
        if self.saved is None or name is None:
            return
        key = session_key(tenant, name)
        if key in self.saved.snapshots.held and not self._is_held(key):
            try:
                await self.load(name, tenant)
            except FailedPrecondition:
                return  # Another request has loaded or begun it.
            except MoorageError as error:
                log.warning("a saved session was not loaded", reason=str(error))

    async def close(self) -> None:
        """Ends the rules of time, and saves what they would have saved. Safe to call twice."""
        if self._autosave is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_S):
                    await self._settled(lambda _: True)
            await self._autosave.close()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    async def _info(self, name: str, tenant: str) -> SessionInfo:
        """One of the list. Raises NotFound where another call has deleted it."""
        for info in await self.list(tenant):
            if info.name == name:
                return info
        raise _not_found(name)

    @property
    def _idle(self) -> SessionCache:
        return self._loop.scheduler.idle

    @property
    def _running(self) -> dict[str, Request]:
        """The running request of each named session that has one."""
        running = (self._loop.requests[request_id] for request_id in self._loop.scheduler.running)
        return {one.scheduled.session_name: one for one in running if one.scheduled.session_name is not None}

    @property
    def _awaited(self) -> set[str | None]:
        """Names of sessions that requests wait for."""
        return {waiting.session_name for waiting in self._loop.scheduler.waiting}

    async def _unused(self, key: str) -> IdleSession:
        """The idle session of that name, once requests that have ended have let it go. Raises where there is none."""
        await self._settled(lambda ended: ended.scheduled.session_name == key)
        held = self._idle.get(key)
        _, name = tenant_and_name(key)
        if key in self._running or key in self._awaited:
            raise FailedPrecondition(
                f"session: {quoted(name)} is in use by a request; wait for its end, or cancel it"
            )
        if held is None:
            raise _not_found(name)
        return held

    async def _settled(self, concerned: Callable[[Request], bool]) -> None:
        """Waits until no such request that has ended holds its session any longer."""
        while any(map(concerned, self._loop.unsettled)):
            await asyncio.sleep(_SETTLE_LOOK_S)

    def _check_free(self, name: str, tenant: str) -> None:
        key = session_key(tenant, name)
        is_saved = self.saved is not None and key in self.saved.snapshots.held
        if self._is_held(key) or is_saved:
            raise FailedPrecondition(
                f"session: {quoted(name)} exists already; choose another name, or delete it"
            )

    def _check_not_held(self, key: str) -> None:
        if self._is_held(key):
            name = quoted(tenant_and_name(key)[1])
            raise FailedPrecondition(f"session: {name} is in memory already; delete or rename it first")

    def _is_held(self, key: str) -> bool:
        """Whether memory holds a session, or a request is about to make it."""
        return self._idle.get(key) is not None or key in self._running or key in self._awaited

    def _files(self) -> SavedSessions:
        if self.saved is None:
            raise FailedPrecondition("sessions.path: is not set, so no session is saved; name a folder there")
        return self.saved

    def _digests_of(self, stored: StoredKv, tenant: str) -> tuple[bytes, ...]:
        if not self._shares:
            return ()
        layout, length = self._capacity.layout, stored.prompt_tokens
        return BlockChain(self._secret, tenant, stored.memory, layout, stored.token_ids, length).digests

    def _with_saved(self, infos: Sequence[SessionInfo]) -> Sequence[SessionInfo]:
        """All of `infos`, after those of sessions that lie in files alone."""
        if self.saved is None:
            return infos
        sizes = {key: manifest.num_bytes for key, (_, manifest) in self.saved.snapshots.held.items()}
        found = [
            replace(info, saved_bytes=sizes.pop(session_key(info.tenant, info.name), 0)) for info in infos
        ]
        alone = [self.saved.snapshots.held[key][1] for key in sizes]
        return [
            *(
                SessionInfo(
                    one.name,
                    "saved",
                    len(one.token_ids),
                    0,
                    last_used_s=one.saved_s,
                    tenant=one.tenant,
                    saved_bytes=one.num_bytes,
                )
                for one in alone
            ),
            *found,
        ]

    def _used(self, key: str) -> None:
        """A request of a session has ended: its tenant's quota and the time of the next expiry may have changed."""
        if self._idle.get(key) is None and key not in self._running and key not in self._awaited:
            self._idle.pinned.discard(key)
        self._keep_quota(tenant_and_name(key)[0])
        self._expire()
        if self._autosave is not None:
            self._autosave.look()

    def _droppable(self) -> Iterator[IdleSession]:
        """Idle sessions that are neither pinned nor waited for, the longest unused first."""
        awaited = self._awaited
        return (held for held in self._idle.evictable(None) if held.name not in awaited)

    def _keep_quota(self, tenant: str) -> None:
        if self._policy.quota_bytes is None:
            return
        for victim in [held for held in self._droppable() if tenant_and_name(held.name)[0] == tenant]:
            own = [held for held in self._idle if tenant_and_name(held.name)[0] == tenant]
            if self._capacity.bytes_of(held_by(own, self._idle.nothing)) <= self._policy.quota_bytes:
                return
            self._loop.discard(victim)

    def _expire(self) -> None:
        """Drops the sessions whose time has passed, and comes again when that of the next one has."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._policy.ttl_s is None:
            return
        now_s, expiries = self._clock(), []
        for held in self._droppable():
            expires_s = held.used_s + self._policy.ttl_s
            if expires_s <= now_s:
                self._loop.discard(held)
            else:
                expiries.append(expires_s)
        if expiries:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(min(expiries) - now_s, self._expire)

    def _idle_info(self, held: IdleSession) -> SessionInfo:
        tenant, name = tenant_and_name(held.name)
        pinned, ttl_s = held.name in self._idle.pinned, self._policy.ttl_s
        return SessionInfo(
            name=name,
            state="waiting" if held.name in self._awaited else "idle",
            num_tokens=len(held.stored.token_ids),
            **self._bytes(held.resources, held.shared),
            pinned=pinned,
            last_used_s=held.used_s,
            expires_s=None if pinned or ttl_s is None else held.used_s + ttl_s,
            tenant=tenant,
        )

    def _bytes(self, own: Resources, shared: SharedBlocks | None) -> dict[str, int]:
        """Bytes of a session, and those of them that others hold as well."""
        page, bytes_of = self._capacity.layout.page_bytes, self._capacity.bytes_of
        in_chain = 0 if shared is None else shared.end * page
        return {
            "dram_bytes": bytes_of(own) + in_chain,
            "shared_bytes": shared_with_others(shared) * page,
        }

    def _running_info(self, request: Request) -> SessionInfo:
        key = request.scheduled.session_name
        assert key is not None
        tenant, name = tenant_and_name(key)
        return SessionInfo(
            name=name,
            state="running",
            num_tokens=request.scheduled.prefilled_tokens + len(request.generated),
            **self._bytes(request.scheduled.reservation, request.scheduled.shared),
            pinned=key in self._idle.pinned,
            last_used_s=self._clock(),
            tenant=tenant,
        )


def _not_found(name: str) -> NotFound:
    return NotFound(f"session: {quoted(name)} is not held here; `runtime session list` shows those that are")
