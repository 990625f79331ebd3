"""The sessions of one worker: their slots on the device, their KV in the stores, and how they begin and end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from moorage.workers.errors import InvalidRequest, MoorageError
from moorage.workers.gpu.attention.window_rings import WindowRings
from moorage.workers.gpu.engine.idle_sessions import forked, restored
from moorage.workers.gpu.engine.output import OutputStage
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.positions.session_rotations import SessionRotations
from moorage.workers.gpu.selection.device_scorer import DeviceScorer
from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.gpu.transfer.block_cache import BlockCache, SlotPool
from moorage.workers.gpu.transfer.block_loader import BlockLoader
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import (
    AnchorSpace,
    AnchorType,
    ContinueSession,
    ForkSession,
    KvLayout,
    MemorySpec,
    ModelSpec,
    OpenSession,
    RestoreSession,
)


class SessionTable:
    """Opens, continues, idles and drops sessions. A session's slots come from one pool."""

    def __init__(
        self,
        spec: ModelSpec,
        layout: KvLayout,
        kv: ShardedKv,
        device: torch.device,
        settings: EngineSettings,
        reader: BlockLoader,
        rings: WindowRings,
        scorer: DeviceScorer | None,
        output: OutputStage,
    ) -> None:
        self._spec, self._layout, self._kv, self._device = spec, layout, kv, device
        self._settings, self._reader, self._scorer, self._output = settings, reader, scorer, output
        self._pool, self._rings = SlotPool(settings.num_slots), rings
        self._scale = spec.softmax_scale
        self._softcap = spec.attention_softcap or 0.0
        self._least_slots = False
        """Set when the device ran out of memory: sessions then get no more slots than a step needs."""
        self.rotations = SessionRotations(spec, layout, device)
        self.sessions: dict[int, WorkerSession] = {}

    @property
    def num_free_slots(self) -> int:
        """Slots that no session holds."""
        return self._pool.num_free

    @property
    def num_slots(self) -> int:
        """All slots."""
        return self._pool.num_slots

    def open(self, opening: OpenSession | ContinueSession) -> None:
        """Begins a session, or makes an open one ready for another prompt. If StoreFull or ResourceExhausted is
        raised for a new session, nothing has changed."""
        if isinstance(opening, ContinueSession):
            self._continue(opening)
            return
        rotations = self.rotations.of_session(opening.memory, opening.prompt_tokens)
        rotated = self._layout.anchor_space is AnchorSpace.ROTATED
        others = self.rotations.of_layers(opening.memory)
        inv_freq = self.rotations.anchor_angles(rotations, others) if rotated else None
        cache = self._new_cache(opening.memory, opening.max_tokens)
        blocks, ring = self._layout.num_blocks(opening.max_tokens), None
        try:
            ring = self._rings.allocate(opening.prompt_tokens)
            self._kv.open(opening.session_id, blocks, inv_freq, opening.first_shard)
        except MoorageError:
            self._pool.free(cache.slots.reshape(-1))
            self._rings.free(ring)
            raise
        self.sessions[opening.session_id] = WorkerSession(
            opening.session_id,
            rotations.memory,
            opening.sampling,
            opening.prompt_tokens,
            opening.max_tokens,
            cache,
            rotations,
            self._scale,
            self._softcap,
            others,
            ring,
            anchor_view=rotations.view if rotated else None,
        )
        self._mirror(opening)

    def _mirror(self, opening: OpenSession | ContinueSession) -> None:
        if self._scorer is not None:
            self._scorer.drop(opening.session_id)
            blocks = self._layout.num_blocks(opening.max_tokens)
            self._scorer.open(opening.session_id, blocks, opening.memory)

    def fork(self, fork: ForkSession) -> None:
        """Opens an idle session that shares the first blocks of another. Does nothing where it was done already, or
        where the other one is gone; then a request that goes on with the new one fails."""
        session = self.sessions.get(fork.session_id)
        if session is None or fork.new_id in self.sessions:
            return
        self._kv.fork(fork.session_id, fork.new_id, fork.num_blocks, fork.num_rest)
        num_tokens = fork.num_blocks * self._layout.block_size + fork.num_rest
        self.sessions[fork.new_id] = forked(session, fork.new_id, num_tokens, self._no_cache())

    def restore(self, restoring: RestoreSession) -> None:
        """Opens an idle session whose blocks are read from files. If StoreFull is raised, nothing has changed."""
        memory, num_blocks, rest = restoring.memory, restoring.num_blocks, restoring.num_rest
        rotations = self.rotations.of_session(memory, restoring.prompt_tokens)
        rotated, others = self._layout.anchor_space is AnchorSpace.ROTATED, self.rotations.of_layers(memory)
        inv_freq = self.rotations.anchor_angles(rotations, others) if rotated else None
        num_pages, first = num_blocks + bool(rest), restoring.first_shard
        self._kv.open(restoring.session_id, num_pages, inv_freq, first, is_written=False)
        self._kv.restore(restoring.session_id, num_blocks, rest)
        num_tokens, view = num_blocks * self._layout.block_size + rest, rotations.view if rotated else None
        self.sessions[restoring.session_id] = restored(
            restoring, num_tokens, self._no_cache(), rotations, others, (self._scale, self._softcap), view
        )

    def shorten(self, openings: Iterable[OpenSession | ContinueSession]) -> None:
        """Frees what sessions that are continued do not keep, before others of the step allocate."""
        for opening in openings:
            session = self.sessions.get(opening.session_id)
            if session is not None and isinstance(opening, ContinueSession):
                self._kv.trim(opening.session_id, min(opening.keep_tokens, session.verified_tokens))

    def _continue(self, opening: ContinueSession) -> None:
        """Keeps the first tokens of an open session, in DRAM, and makes it ready for another prompt."""
        if opening.keep_tokens == 0:
            self._open_anew(opening)
            return
        session, keep = self._held(opening), opening.keep_tokens
        self._kv.own(session.session_id, keep)
        self._kv.grow(session.session_id, self._layout.num_blocks(opening.max_tokens))
        if self._layout.anchor_type is AnchorType.DYNAMIC and opening.memory.selection.execution_block:
            # Anchors that followed an earlier prompt's end would select for this prompt's execution blocks.
            self._kv.reseal(session.session_id, keep)
        del self.sessions[opening.session_id]
        self._release_slots(session)
        rotations = self.rotations.of_session(opening.memory, opening.prompt_tokens)
        self.sessions[opening.session_id] = WorkerSession(
            opening.session_id,
            rotations.memory,
            opening.sampling,
            opening.prompt_tokens,
            opening.max_tokens,
            self._new_cache(opening.memory, opening.max_tokens),
            rotations,
            self._scale,
            self._softcap,
            self.rotations.of_layers(opening.memory),
            session.ring,
            num_tokens=keep,
            kept_tokens=keep,
            num_generated=opening.num_drawn,
            received=session.received_by(keep),
            anchor_view=session.anchor_view,
        )
        if keep == self.sessions[opening.session_id].resume_point:
            self.sessions[opening.session_id].received_at_resume = session.received_by(keep)
        self._output.count_tokens(self.sessions[opening.session_id], 0, opening.kept_ids, self._device)
        self._mirror(opening)

    def _held(self, opening: ContinueSession) -> WorkerSession:
        """The session that goes on. Raises InvalidRequest where it does not hold what is to be kept."""
        session, keep = self.sessions.get(opening.session_id), opening.keep_tokens
        if session is None or keep > session.verified_tokens:
            held = 0 if session is None else session.verified_tokens
            raise InvalidRequest(
                f"session {opening.session_id}: {keep} tokens are to be kept and {held} are held; send the prompt "
                "without a session"
            )
        if session.ring is not None and not self._rings.layout.continues_at(keep, session.ring.first_held):
            raise InvalidRequest(
                f"session {opening.session_id}: the window before token {keep} is no longer held; send the prompt "
                "without a session"
            )
        return session

    def _open_anew(self, opening: ContinueSession) -> None:
        """Nothing is kept, so that anchors may be made under another view of positions."""
        first_shard = self._kv.first_shard(opening.session_id)
        self.drop(opening.session_id)
        self.open(
            OpenSession(
                opening.session_id,
                opening.max_tokens,
                opening.prompt_tokens,
                opening.memory,
                opening.sampling,
                first_shard,
            )
        )

    def _new_cache(self, memory: MemorySpec, max_tokens: int) -> BlockCache:
        """An empty cache on slots of its own. If ResourceExhausted is raised, nothing has changed."""
        layout, settings = self._layout, self._settings
        max_cached = 0 if self._least_slots else settings.max_cached_block
        per_layer = slots_per_layer(memory, layout, max_cached)
        slots = self._pool.allocate(per_layer * layout.num_layers)
        return BlockCache(
            slots,
            layout.num_layers,
            layout.num_blocks(max_tokens),
            settings.cache_strategy,
            settings.score_decay,
        )

    def idle(self, session_id: int) -> None:
        """Leaves a session its KV in DRAM and nothing else. Does nothing for one that is idle or gone."""
        session = self.sessions.get(session_id)
        if session is None or session.idle:
            return
        self._release_slots(session)
        session.cache = self._no_cache()
        session.idle = True
        if self._scorer is not None:
            self._scorer.drop(session_id)
        # Packed blocks alone outlive a request: the rows of the last block, if it is not full, are computed again.
        rest = session.verified_tokens % self._layout.block_size if self._layout.is_packed else 0
        session.num_tokens, session.drafted = session.verified_tokens - rest, []
        self._kv.trim(session_id, session.num_tokens)

    def _release_slots(self, session: WorkerSession) -> None:
        """Returns a session's slots to the pool, once no copy is on its way into them."""
        session.await_ahead()
        self._pool.free(session.cache.slots.reshape(-1))

    def _no_cache(self) -> BlockCache:
        slots = np.empty(0, np.int32)
        return BlockCache(slots, self._layout.num_layers, 0, self._settings.cache_strategy)

    def drop(self, session_id: int) -> None:
        """Ends a session and frees all that it holds. Does nothing for one that is not known to the table."""
        session = self.sessions.pop(session_id, None)
        if session is not None:
            self._release_slots(session)
            self._rings.free(session.ring)
        if self._scorer is not None:
            self._scorer.drop(session_id)
        self._kv.drop(session_id)

    def make_room(self) -> bool:
        """Leaves each session the slots that one of its steps needs, and gives the rest of them back to the device.

        Nothing is lost, since slots only cache what lies in DRAM. False if there is nothing to give.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for session in self.sessions.values():
            session.await_ahead()
        least = {
            session_id: slots_per_layer(session.memory, self._layout, 0) * self._layout.num_layers
            for session_id, session in self.sessions.items()
            if not session.idle
        }
        needed = sum(least.values())
        if needed >= self._pool.num_slots or self._least_slots:
            return False
        self._least_slots = True
        num_slots = max(needed, self._pool.num_slots // 2)
        self._reader.resize(num_slots)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._pool = SlotPool(num_slots)
        for session in self.sessions.values():
            if not session.idle:
                session.cache = self._new_cache(session.memory, session.max_tokens)
        return True

    def recover(self, session_ids: Iterable[int]) -> None:
        """Drops sessions that a failed step may have left half-way, and makes the free slots anew."""
        for session_id in session_ids:
            self.drop(session_id)
        # What a session had taken before it was recorded is free again.
        held = [session.cache.slots.reshape(-1) for session in self.sessions.values()]
        taken = np.concatenate([np.empty(0, np.int32), *held])
        self._pool = SlotPool.beside(self._pool.num_slots, taken)
        self._rings.beside([session.ring for session in self.sessions.values()])

    def check_integrity(self) -> None:
        """Raises if slots or block maps disagree; for tests and idle times."""
        held = sum(s.cache.slots.size for s in self.sessions.values())
        if held + self._pool.num_free != self._pool.num_slots:
            raise RuntimeError(f"slots: {held} held and {self._pool.num_free} free of {self._pool.num_slots}")
        rings = [session.ring for session in self.sessions.values() if session.ring is not None]
        if len({ring.index for ring in rings}) + self._rings.num_free != self._rings.num_rings:
            raise RuntimeError(
                f"rings: {len(rings)} held and {self._rings.num_free} free of {self._rings.num_rings}"
            )
        for session in self.sessions.values():
            session.cache.check_integrity()
