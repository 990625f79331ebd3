"""Pinning in slices, with a runtime that counts instead of CUDA's."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.transfer.pinning import PAGE_BYTES, PinnedBlocks
from moorage.workers.kv.arena import Arena
from moorage.workers.spec import AnchorType, KvLayout, KvType
from tests.unpinned_memory import CountingMemory


@pytest.fixture(params=[(16, 64), (5, 24)], ids=["pages", "odd"])
def arena(request: pytest.FixtureRequest) -> Arena:
    """Blocks of 8 KiB, and blocks of 1920 bytes, which fill no page of memory."""
    block_size, head_dim = request.param
    layout = KvLayout(3, 2, head_dim, block_size, KvType.FP16, AnchorType.QUEST, 1)
    return Arena(layout, 257)


@pytest.mark.parametrize("slice_bytes", [1, 100_000, 1 << 30])
def test_slices_cover_the_arena_without_overlap(arena: Arena, slice_bytes: int) -> None:
    memory, seen = CountingMemory(), []
    pinned = PinnedBlocks(arena, memory, lambda done, total: seen.append((done, total)), slice_bytes)
    start = pinned.blocks[0].data_ptr()
    for address, num_bytes in sorted(memory.held.items()):
        assert address == start
        assert (address - pinned.blocks[0].data_ptr()) % PAGE_BYTES == 0
        start += num_bytes
    assert start == pinned.blocks[0].data_ptr() + arena.kv.nbytes
    assert seen[-1] == (arena.kv.nbytes,) * 2
    order = list(memory.held)
    pinned.close()
    pinned.close()
    assert memory.held == {}
    assert memory.released == order[::-1]


def test_a_refusal_leaves_nothing_pinned_and_no_error_behind(arena: Arena) -> None:
    memory = CountingMemory(limit=arena.kv.nbytes // 2)
    with pytest.raises(ResourceExhausted, match="ulimit -l"):
        PinnedBlocks(arena, memory, slice_bytes=100_000)
    assert memory.held == {}
    assert memory.errors == 0


@pytest.mark.parametrize("slice_bytes", [1, 100_000, 1 << 30])
def test_no_copy_crosses_a_slice_and_every_block_is_copied_once(
    arena: Arena, rng: np.random.Generator, slice_bytes: int
) -> None:
    memory = CountingMemory()
    pinned = PinnedBlocks(arena, memory, slice_bytes=slice_bytes)
    starts = np.array(sorted(memory.held))
    for layer in range(arena.layout.num_layers):
        pages = np.sort(rng.permutation(arena.num_pages)[:200]).astype(np.int32)
        into = np.arange(200, dtype=np.int32)
        copied = []
        for page, target, count in pinned.runs(layer, pages, into):
            assert count > 0
            copied += [(page + i, target + i) for i in range(count)]
            run = pinned.blocks[layer][page : page + count]
            first, last = run.data_ptr(), run.data_ptr() + run.nbytes - 1
            assert np.searchsorted(starts, first, "right") == np.searchsorted(starts, last, "right")
        assert copied == list(zip(pages.tolist(), into.tolist(), strict=True))
    pinned.close()


def test_of_packed_blocks_their_bytes_are_pinned() -> None:
    arena = Arena(KvLayout(2, 2, 64, 32, KvType.NUQ3, AnchorType.QUEST, 1), 65)
    memory = CountingMemory()
    pinned = PinnedBlocks(arena, memory, slice_bytes=20_000)
    assert [layer.shape for layer in pinned.blocks] == [(65, arena.layout.block_bytes)] * 2
    assert sum(memory.held.values()) == sum(layer.nbytes for layer in arena.stored)
    starts = np.array(sorted(memory.held))
    for layer, stored in zip(pinned.blocks, arena.stored, strict=True):
        assert layer.data_ptr() == stored.ctypes.data
        some = layer[3:60]
        parts = list(pinned.parts(some))
        assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])]
        assert parts[-1][1] == some.nbytes
        for begin, end in parts:
            first, last = some.data_ptr() + begin, some.data_ptr() + end - 1
            assert np.searchsorted(starts, first, "right") == np.searchsorted(starts, last, "right")
    pinned.close()
