"""The block cache against a plain dictionary, and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.settings import CacheStrategy
from moorage.workers.gpu.transfer.block_cache import BlockCache, SlotPool

NUM_LAYERS, PER_LAYER, MAX_BLOCKS = 3, 6, 40


class PlainCache:
    """Block -> last use, one layer; evicts the least, block by block."""

    def __init__(self, strategy: CacheStrategy) -> None:
        self.held: dict[int, int] = {}
        self.strategy = strategy
        self.tick = 0

    def ensure(self, blocks: list[int]) -> set[int]:
        self.tick += 1
        missing = {b for b in blocks if b not in self.held}
        room = PER_LAYER - len(self.held)
        leaving = sorted((b for b in self.held if b not in blocks), key=lambda b: self.held[b])
        for block in leaving[: max(0, len(missing) - room)]:
            del self.held[block]
        for block in blocks:
            if block in missing or self.strategy == "lru":
                self.held[block] = self.tick
        return missing


def new_cache(strategy: CacheStrategy = "lru") -> BlockCache:
    slots = SlotPool(100).allocate(NUM_LAYERS * PER_LAYER)
    return BlockCache(slots, NUM_LAYERS, MAX_BLOCKS, strategy)


@pytest.mark.parametrize("strategy", ["lru", "fifo"])
@pytest.mark.parametrize("seed", range(5))
def test_misses_equal_those_of_a_plain_cache(strategy: CacheStrategy, seed: int) -> None:
    """One new block per step, so that no two blocks ever share an age and the order is strict."""
    rng = np.random.default_rng(seed)
    cache, plain = new_cache(strategy), [PlainCache(strategy) for _ in range(NUM_LAYERS)]
    content: dict[int, tuple[int, int]] = {}
    for _ in range(300):
        layer = int(rng.integers(NUM_LAYERS))
        blocks = np.array([rng.integers(MAX_BLOCKS)], np.int32)
        slots, missing, into = cache.look_up(layer, blocks)
        assert set(missing.tolist()) == plain[layer].ensure(blocks.tolist())
        for block, slot in zip(missing.tolist(), into.tolist(), strict=True):
            content[slot] = (layer, block)
        assert [content[slot] for slot in slots.tolist()] == [(layer, b) for b in blocks.tolist()]
        cache.check_integrity()


def test_lru_s_keeps_what_received_most() -> None:
    cache = BlockCache(SlotPool(9).allocate(3), 1, MAX_BLOCKS, "lru-s", score_decay=0.5)
    for step, (block, received) in enumerate([(0, 8.0), (1, 1.0), (2, 1.0)]):
        cache.look_up(0, np.array([block], np.int32))
        cache.record(0, step, np.array([block], np.int32), np.array([received], np.float32))
    # Scores are now 8 / 4, 1 / 2 and 1.
    for block, leaves in [(3, 1), (4, 3), (5, 4)]:
        _, missing, _ = cache.look_up(0, np.array([block], np.int32))
        assert missing.tolist() == [block]
        assert cache.slot_of(0, leaves) == -1
        cache.check_integrity()
    # One step decays once, however often it is noted.
    cache.record(0, 9, np.array([0], np.int32), np.array([1.0], np.float32))
    cache.record(0, 9, np.array([2, 2], np.int32), np.array([0.25, 0.5], np.float32))
    cache.look_up(0, np.array([6], np.int32))
    cache.look_up(0, np.array([7], np.int32))
    assert cache.slot_of(0, 0) >= 0
    assert cache.slot_of(0, 2) >= 0


@pytest.mark.parametrize("seed", range(5))
def test_what_a_step_needs_never_leaves_in_that_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache = new_cache()
    content: dict[int, tuple[int, int]] = {}
    for _ in range(200):
        layer = int(rng.integers(NUM_LAYERS))
        count = int(rng.integers(PER_LAYER + 1))
        blocks = rng.choice(MAX_BLOCKS, count, replace=False).astype(np.int32)
        slots, missing, into = cache.look_up(layer, blocks)
        content.update({s: (layer, b) for b, s in zip(missing.tolist(), into.tolist(), strict=True)})
        assert [content[slot] for slot in slots.tolist()] == [(layer, b) for b in blocks.tolist()]
        cache.check_integrity()


def test_what_is_missing_is_left_once_and_then_fetched() -> None:
    cache = new_cache()
    cache.look_up(0, np.array([1, 2], np.int32))
    blocks = np.array([1, 2, 5, 7, 7, 9], np.int32)
    may = blocks != 9
    assert cache.leave_to_host(0, blocks, may).tolist() == [False, False, True, True, True, False]
    assert cache.num_misses == 2 + 2, "each block once"
    blocks = np.array([1, 5, 8], np.int32)
    assert cache.leave_to_host(0, blocks, blocks > 0).tolist() == [False, False, True]
    assert cache.leave_to_host(1, blocks, blocks > 0, kv_head=1).tolist() == [True, True, True]
    assert cache.leave_to_host(0, np.array([7], np.int32), np.array([True])).tolist() == [True], (
        "not in a row"
    )


def test_forgotten_blocks_are_fetched_again() -> None:
    cache = new_cache()
    cache.look_up(1, np.array([3, 4, 5], np.int32))
    cache.invalidate(1, 4, 6)
    assert cache.slot_of(1, 3) >= 0
    assert cache.slot_of(1, 4) == -1
    _, missing, _ = cache.look_up(1, np.array([3, 4, 5], np.int32))
    assert missing.tolist() == [4, 5]
    assert (cache.num_hits, cache.num_misses) == (1, 5)
    cache.check_integrity()


def test_the_pool_hands_out_each_slot_once_and_refuses_without_change() -> None:
    pool = SlotPool(10)
    first, second = pool.allocate(4), pool.allocate(6)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    with pytest.raises(ResourceExhausted, match="needs 1, 0 of 10 are free"):
        pool.allocate(1)
    pool.free(first)
    assert sorted(pool.allocate(4).tolist()) == sorted(first.tolist())
