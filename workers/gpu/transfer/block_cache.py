"""Which blocks of a session lie in device slots, per layer, and which leave when others come."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.settings import CacheStrategy

Int32 = NDArray[np.int32]


class SlotPool:
    """Hands out the device's slots; a slot has room for one block of one layer."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = np.arange(num_slots - 1, -1, -1, dtype=np.int32)
        self._num_free = num_slots

    @classmethod
    def beside(cls, num_slots: int, held: Int32) -> SlotPool:
        """A pool of `num_slots` of which those `held` are in use."""
        pool = cls(num_slots)
        free = np.setdiff1d(np.arange(num_slots, dtype=np.int32), held)[::-1]
        pool._num_free = len(free)
        pool._free[: len(free)] = free
        return pool

    @property
    def num_free(self) -> int:
        """Slots that no session holds."""
        return self._num_free

    def allocate(self, count: int) -> Int32:
        """`count` slots. If ResourceExhausted is raised, nothing has changed."""
        if count > self._num_free:
            raise ResourceExhausted(
                f"device slots: a session needs {count}, {self._num_free} of {self.num_slots} are free; "
                "lower server.max_running, memory.topk or long_context.local_windows_len"
            )
        self._num_free -= count
        return self._free[self._num_free : self._num_free + count].copy()

    def free(self, slots: Int32) -> None:
        """Takes back slots that `allocate` handed out."""
        self._free[self._num_free : self._num_free + len(slots)] = slots
        self._num_free += len(slots)


class SlotsFound(NamedTuple):
    """Where blocks lie on the device."""

    slots: Int32
    """The slots of all blocks."""
    missing: Int32
    """Blocks that must be fetched."""
    into: Int32
    """The slots to fetch them into."""


class BlockCache:
    """One session's slots: `per_layer` of them for each layer, on vectorised state.

    A session's quota is fixed, so what one session keeps never depends on its neighbours.
    """

    def __init__(
        self,
        slots: Int32,
        num_layers: int,
        max_blocks: int,
        strategy: CacheStrategy,
        score_decay: float = 0.1,
    ) -> None:
        self.slots = slots.reshape(num_layers, -1)
        per_layer = self.slots.shape[1]
        self._owner = np.full((num_layers, per_layer), -1, np.int32)
        self._worth = np.full((num_layers, per_layer), -1.0)
        """Tick of the last use (lru) or of the entry (fifo), or decayed score (lru-s); the least leaves first."""
        self._place = np.full((num_layers, max_blocks), -1, np.int32)
        self._refresh_on_hit = strategy == "lru"
        self.scores_blocks = strategy == "lru-s"
        """Whether `record` decides what leaves."""
        self._decay = score_decay
        self._recorded = np.full(num_layers, -1, np.int64)
        self._left: dict[tuple[int, int], Int32] = {}
        """Blocks by layer and KV head that the host attended in place of the device when these were last asked."""
        self._tick = 0
        self.num_hits = 0
        self.num_misses = 0
        self.num_left = 0
        """The misses that the host attended: they did not travel."""

    def look_up(self, layer: int, blocks: Int32, *, ahead: bool = False) -> SlotsFound:
        """Slots of all `blocks` (distinct ids); those that have none get one.

        The caller fetches the missing blocks at once: from here on the cache counts them as present. What is fetched
        `ahead` of its use is neither hit nor miss yet.
        """
        self._tick += 1
        place = self._place[layer, blocks]
        missing = place < 0
        num_missing = int(np.count_nonzero(missing))
        self.num_hits += 0 if ahead else len(blocks) - num_missing
        self.num_misses += num_missing
        if num_missing:
            place[missing] = self._admit(layer, place[~missing], blocks[missing])
        if self._refresh_on_hit:
            self._worth[layer, place] = self._tick
        slots = self.slots[layer, place]
        return SlotsFound(slots, blocks[missing], slots[missing])

    def leave_to_host(
        self, layer: int, blocks: Int32, may: NDArray[np.bool_], kv_head: int = 0
    ) -> NDArray[np.bool_]:
        """Which of `blocks` the host attends in its memory: those that `may` be, and have no slot.

        A block that the host attended the last time gets a slot instead.
        """
        left: NDArray[np.bool_] = may & (self._place[layer, blocks] < 0)
        before = self._left.get((layer, kv_head))
        if before is not None:
            left &= ~np.isin(blocks, before)
        self._left[layer, kv_head] = np.unique(blocks[left])
        self.num_left += len(self._left[layer, kv_head])
        self.num_misses += len(self._left[layer, kv_head])
        return left

    def _admit(self, layer: int, kept: Int32, blocks: Int32) -> Int32:
        """Places for `blocks`, taken from those of least worth that are not in `kept`."""
        worth = self._worth[layer].copy()
        worth[kept] = np.inf
        assert len(kept) + len(blocks) <= len(worth), "a step asks for more blocks than the session has slots"
        victims = np.argpartition(worth, len(blocks) - 1)[: len(blocks)].astype(np.int32)
        leaving = self._owner[layer, victims]
        self._place[layer, leaving[leaving >= 0]] = -1
        self._owner[layer, victims] = blocks
        self._place[layer, blocks] = victims
        self._worth[layer, victims] = 0 if self.scores_blocks else self._tick
        return victims

    def record(self, layer: int, step: int, blocks: Int32, received: NDArray[np.float32]) -> None:
        """Adds the attention that `blocks`, all present, received in `step`; scores decay once a step (InfLLM)."""
        if step != self._recorded[layer]:
            held = self._owner[layer] >= 0
            self._worth[layer, held] *= self._decay
            self._recorded[layer] = step
        np.add.at(self._worth[layer], self._place[layer, blocks], received)

    def slot_of(self, layer: int, block: int) -> int:
        """The slot that holds `block`, or -1."""
        place = self._place[layer, block]
        return int(self.slots[layer, place]) if place >= 0 else -1

    def slots_of(self, layer: int, first_block: int, end_block: int) -> Int32 | None:
        """The slots of blocks [first_block, end_block), or None where one of them is missing."""
        places = self._place[layer, first_block:end_block]
        return self.slots[layer, places] if (places >= 0).all() else None

    def invalidate(self, layer: int, first_block: int, end_block: int) -> None:
        """Drops blocks [first_block, end_block) of one layer: their rows in DRAM have changed."""
        places = self._place[layer, first_block:end_block]
        held = places[places >= 0]
        self._owner[layer, held] = -1
        self._worth[layer, held] = -1
        self._place[layer, first_block:end_block] = -1

    def check_integrity(self) -> None:
        """Raises if a block's place and a place's block disagree."""
        for layer in range(len(self.slots)):
            held = np.flatnonzero(self._place[layer] >= 0)
            if not np.array_equal(self._owner[layer, self._place[layer, held]], held):
                raise RuntimeError(f"layer {layer}: block places and slot owners disagree")
            if np.count_nonzero(self._owner[layer] >= 0) != len(held):
                raise RuntimeError(f"layer {layer}: a slot is owned by a block that does not know it")
