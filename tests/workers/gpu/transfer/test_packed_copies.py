"""Packed blocks that a device expands, out of the stores' memory or out of its own, against the stores' copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from moorage.workers.gpu.transfer.packed_copies import PackedCopies
from moorage.workers.gpu.transfer.pinning import PinnedBlocks
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer, normal_levels
from moorage.workers.kv.formats.quantizer_array import digest_of
from moorage.workers.kv.store import KvStore
from moorage.workers.sizes import packed_staging_bytes, piece_blocks
from moorage.workers.spec import AnchorType, KvLayout, KvType
from tests.unpinned_memory import CountingMemory

pytest.importorskip("triton")

ENDS = np.full((2, 32), 2.5, np.float32)
MIXED = Quantizer(
    3, tuple(LayerQuantizer(each, each, ENDS, 0 * ENDS, -ENDS, ENDS) for each in map(normal_levels, (4, 2)))
)
PLAIN = KvLayout(2, 2, 32, 16, KvType.NUQ3, AnchorType.QUEST, 1)
LAYOUTS = {
    "one format": (PLAIN, None),
    "a format for each layer": (
        replace(PLAIN, quantizer=digest_of(MIXED), layer_kv_types=(KvType.NUQ4, KvType.NUQ2)),
        MIXED,
    ),
}
NUM_BLOCKS, LENGTH = 12, 12 * 16 - 5
CPU = torch.device("cpu")


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def store(rng: np.random.Generator, request: pytest.FixtureRequest) -> Iterator[KvStore]:
    """Of one session, whose last block is open and whose first tokens are read in fp16."""
    store = KvStore(request.param[0], 3 * NUM_BLOCKS + 8, request.param[1])
    store.open(7, NUM_BLOCKS)
    for layer in range(PLAIN.num_layers):
        keys, values = rng.standard_normal((2, LENGTH, 2, 32)).astype(np.float32)
        store.shard.write(7, layer, 0, keys, values)
        store.commit(7, layer, 0, LENGTH)
    yield store
    store.close()


@pytest.mark.parametrize("dma_bytes", [0, 1 << 40], ids=["dma", "kernel"])
@pytest.mark.parametrize("order", ["run", "scattered"])
def test_blocks_arrive_as_the_stores_decode_them(
    store: KvStore, rng: np.random.Generator, order: str, dma_bytes: int
) -> None:
    assert store.arena.codec is not None
    copies = PackedCopies(store.layout, store.arena.codec, CPU, 5, dma_bytes)
    pinned = PinnedBlocks(store.arena, CountingMemory(), slice_bytes=1)
    blocks = np.arange(NUM_BLOCKS, dtype=np.int32)
    into = np.arange(2, NUM_BLOCKS + 2, dtype=np.int32)
    if order == "scattered":
        blocks, into = rng.permutation(blocks), rng.permutation(into)
    shape = (NUM_BLOCKS + 3, 2, *PLAIN.block_shape)
    for layer in range(PLAIN.num_layers):
        out = torch.full(shape, torch.nan, dtype=torch.float16)
        done = copies.bring(store.shard, pinned, 7, layer, blocks, out, into)
        # The first block has the sinks, and the last one is open.
        assert done.tolist() == [0 < block < NUM_BLOCKS - 1 for block in blocks]
        expected = torch.full(shape, torch.nan, dtype=torch.float16)
        store.shard.gather(7, layer, blocks[done], expected.numpy().view(np.uint16), into[done])
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_a_session_that_has_no_sinks_here_has_its_first_block_packed(
    store: KvStore, rng: np.random.Generator
) -> None:
    store.open(8, 3, has_first=False)
    keys, values = rng.standard_normal((2, 32, 2, 32)).astype(np.float32)
    store.shard.write(8, 0, 0, keys, values)
    store.commit(8, 0, 0, 32)
    assert store.shard.packed is not None
    blocks, session = np.arange(2, dtype=np.int32), store.shard.session(8)
    assert store.shard.packed.is_packed(session, 0, blocks).tolist() == [True, False]
    store.close_block(8, 0)
    assert store.shard.packed.is_packed(session, 0, blocks).tolist() == [True, True]


def test_layers_of_different_formats_are_counted_each() -> None:
    layout, quantizer = LAYOUTS["a format for each layer"]
    store = KvStore(layout, 8, quantizer)
    assert store.arena.codec is not None
    copies = PackedCopies(layout, store.arena.codec, CPU, piece_blocks(layout, on_cpu=False), 0)
    tables = sum(part.nbytes for each in copies._operands for part in each.tables)
    assert copies._staging.nbytes + tables == packed_staging_bytes(layout, on_cpu=False)
    store.close()


@pytest.mark.parametrize("kv_type", [kind for kind in KvType if not format_of(kind).is_native])
def test_what_the_device_holds_is_what_sizing_counts(kv_type: KvType) -> None:
    layout = KvLayout(3, 2, 40, 32, kv_type, AnchorType.QUEST, 1)
    store = KvStore(layout, 2)
    assert store.arena.codec is not None
    blocks = piece_blocks(layout, on_cpu=False)
    copies = PackedCopies(layout, store.arena.codec, CPU, blocks, 0)
    tables = {id(each.tables): each.tables for each in copies._operands}.values()
    held = copies._staging.nbytes + sum(part.nbytes for each in tables for part in each)
    assert held == packed_staging_bytes(layout, on_cpu=False)
    assert packed_staging_bytes(layout, on_cpu=True) == 0
    store.close()


def test_nothing_is_counted_for_blocks_that_travel_as_they_are() -> None:
    assert packed_staging_bytes(KvLayout(3, 2, 40, 32, KvType.FP16, AnchorType.QUEST, 1), on_cpu=False) == 0
