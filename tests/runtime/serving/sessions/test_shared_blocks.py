"""Blocks that several sessions hold are counted once, whatever is forked, shortened and dropped in which order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.session_cache import IdleSession, SessionCache, StoredKv
from moorage.runtime.serving.sessions.forking import share
from moorage.runtime.serving.sessions.shared_blocks import Freed, freed_by, held_by, shared_with_others
from moorage.workers.spec import KvLayout
from moorage.workers.token_ids import TokenIds
from tests.engine_driver import FULL

SIZE = 4
LAYOUT = KvLayout(num_layers=1, num_kv_heads=1, head_dim=16, block_size=SIZE)
NOTHING = Resources((0, 0), 0)
CAPACITY = Capacity(LAYOUT, Resources((99, 99), 0), 1, None)


@dataclass
class Model:
    """A session as one would write it down block by block."""

    blocks: list[object]


class Sharing(RuleBasedStateMachine):
    """Sessions by two actors, one block in turn, beside a list of all blocks of each."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = SessionCache(2)
        self.models: dict[str, Model] = {}
        self.count = 0

    def _add(self, resources: Resources, tokens: int, blocks: list[object], **fields: object) -> None:
        name = str(self.count)
        self.count += 1
        stored = StoredKv(TokenIds([0] * tokens), tokens, FULL)
        self.idle.add(replace(IdleSession(name, self.count, stored, resources), **fields))  # type: ignore[arg-type]
        self.models[name] = Model(blocks)

    def _drawn(self, data: st.DataObject) -> IdleSession:
        return data.draw(st.sampled_from(list(self.idle)))

    @rule(tokens=st.integers(1, 30), first_actor=st.integers(0, 1))
    def begins(self, tokens: int, first_actor: int) -> None:
        blocks: list[object] = [(object(), (first_actor + at) % 2) for at in range(-(-tokens // SIZE))]
        self._add(CAPACITY.idle(tokens).starting_at(first_actor), tokens, blocks, first_actor=first_actor)

    @rule(data=st.data())
    def forks(self, data: st.DataObject) -> None:
        if not len(self.idle):
            return
        held = self._drawn(data)
        tokens = data.draw(st.integers(0, len(held.stored.token_ids) // SIZE)) * SIZE
        held, chain = share(held, tokens, CAPACITY, self.idle)
        blocks = self.models[held.name].blocks[: tokens // SIZE]
        self._add(NOTHING, tokens, blocks, first_actor=held.first_actor, shared=chain)

    @rule(data=st.data(), more=st.integers(0, 9))
    def goes_on_from_a_token(self, data: st.DataObject, more: int) -> None:
        """As a request that keeps the first tokens and adds some, in blocks of its own after the whole ones."""
        if not len(self.idle):
            return
        held = self._drawn(data)
        kept = data.draw(st.integers(0, len(held.stored.token_ids)))
        chain = None if held.shared is None else held.shared.cut(kept)
        if chain is not None:
            chain.hold()
        blocks = self.models[held.name].blocks[: 0 if chain is None else chain.end]
        whole = CAPACITY.idle(kept + more).starting_at(held.first_actor)
        own = whole if chain is None else whole.minus(chain.first(kept + more))
        num_blocks = LAYOUT.num_blocks(kept + more)
        blocks += [(object(), (held.first_actor + at) % 2) for at in range(len(blocks), num_blocks)]
        self._drop(held)
        self._add(own, kept + more, blocks, first_actor=held.first_actor, shared=chain)

    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        if len(self.idle):
            self._drop(self._drawn(data))

    def _drop(self, held: IdleSession) -> None:
        expected = freed_by([held], NOTHING)
        self.idle.remove(held)
        freed = held.resources if held.shared is None else held.resources.plus(held.shared.release())
        assert freed == expected
        del self.models[held.name]

    @invariant()
    def every_block_is_counted_once(self) -> None:
        held = {block for model in self.models.values() for block in model.blocks}
        actors = [actor for _, actor in held]  # type: ignore[attr-defined]
        assert held_by(self.idle, NOTHING).pages == (actors.count(0), actors.count(1))

    @invariant()
    def what_any_of_them_would_free_is_known(self) -> None:
        for chosen in (list(self.idle)[::2], list(self.idle)[1::3], list(self.idle)):
            names = {one.name for one in chosen}
            stay = {
                block for name, model in self.models.items() if name not in names for block in model.blocks
            }
            gone = {block for name in names for block in self.models[name].blocks} - stay
            assert sum(freed_by(chosen, NOTHING).pages) == len(gone)

    @invariant()
    def what_goes_on_after_all_frees_nothing(self) -> None:
        chosen = list(self.idle)
        freed = Freed(NOTHING)
        for one in chosen:
            freed.add(one)
        for one in chosen[1::2]:
            freed.remove(one)
        assert freed.free == freed_by(chosen[::2], NOTHING)

    @invariant()
    def blocks_of_others_are_known(self) -> None:
        for held in self.idle:
            others = {b for name, model in self.models.items() if name != held.name for b in model.blocks}
            shared = [block in others for block in self.models[held.name].blocks]
            assert shared_with_others(held.shared) == sum(shared)


TestSharing = Sharing.TestCase
