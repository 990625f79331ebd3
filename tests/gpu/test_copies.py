"""Blocks that reach the device by DMA and by the gathering kernel, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from moorage.workers.gpu.transfer.cuda_copies import CudaCopies
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorType, KvLayout, KvType

LAYOUT = KvLayout(2, 8, 128, 32, KvType.FP16, AnchorType.QUEST, 1)
PACKED = KvLayout(2, 8, 128, 32, KvType.NUQ3, AnchorType.QUEST, 1)
NUM_PAGES = 16 * 1024
"""4 GiB of blocks: more than one registered slice."""


@pytest.fixture(scope="module")
def store() -> Iterator[KvStore]:
    store = KvStore(LAYOUT, NUM_PAGES)
    store.open(1, NUM_PAGES)
    rng = np.random.default_rng(0)
    for layer in range(LAYOUT.num_layers):
        store.arena.kv[layer] = rng.integers(0, 1 << 16, store.arena.kv[layer].shape, np.uint16)
    for layer in range(LAYOUT.num_layers):
        store.shard.sessions[1].table.num_tokens[layer] = NUM_PAGES * LAYOUT.block_size
    yield store
    store.close()


@pytest.mark.parametrize("dma_bytes", [0, 1 << 40], ids=["dma", "kernel"])
@pytest.mark.parametrize("order", ["run", "scattered", "across-slices"])
def test_blocks_arrive_as_they_are(store: KvStore, device: torch.device, dma_bytes: int, order: str) -> None:
    rng = np.random.default_rng(1)
    copies = CudaCopies.make(ShardedKv([LocalLink(store)], LAYOUT), LAYOUT, device, 64, dma_bytes)
    slice_blocks = (1 << 30) // LAYOUT.block_bytes
    blocks = {
        "run": np.arange(100, 356),
        "scattered": rng.permutation(NUM_PAGES)[:256],
        "across-slices": np.arange(slice_blocks - 128, slice_blocks + 128),
    }[order].astype(np.int32)
    out = torch.empty((300, *store.arena.kv.shape[2:]), dtype=torch.float16, device=device)
    into = (
        rng.permutation(300)[:256].astype(np.int32)
        if order == "scattered"
        else np.arange(256, dtype=np.int32)
    )
    copies.prepare()
    for layer in range(LAYOUT.num_layers):
        copies.copy(1, layer, blocks, out, into).wait()
        found = out.view(torch.int16).cpu().numpy().view(np.uint16)[into]
        want = store.arena.kv[layer][store.shard.sessions[1].table.pages[blocks]]
        assert np.array_equal(found, want)
    copies.close()


@pytest.mark.parametrize("dma_bytes", [0, 1 << 40], ids=["dma", "kernel"])
def test_packed_blocks_arrive_as_the_store_decodes_them(device: torch.device, dma_bytes: int) -> None:
    rng, length = np.random.default_rng(2), 64 * 32 - 7
    store = KvStore(PACKED, 96)
    store.open(1, 64)
    for layer in range(PACKED.num_layers):
        keys, values = rng.standard_normal((2, length, 8, 128)).astype(np.float32)
        store.shard.write(1, layer, 0, keys, values)
        store.commit(1, layer, 0, length)
    copies = CudaCopies.make(ShardedKv([LocalLink(store)], PACKED), PACKED, device, 24, dma_bytes)
    copies.prepare()
    blocks, into = np.arange(64, dtype=np.int32), rng.permutation(70)[:64].astype(np.int32)
    out = torch.empty((70, 2, *PACKED.block_shape), dtype=torch.float16, device=device)
    for layer in range(PACKED.num_layers):
        copies.copy(1, layer, blocks, out, into).wait()
        want = np.zeros((64, 2, *PACKED.block_shape), np.uint16)
        store.shard.gather(1, layer, blocks, want, np.arange(64, dtype=np.int32))
        found = out.view(torch.int16).cpu().numpy().view(np.uint16)[into]
        np.testing.assert_array_equal(found.view(np.float16), want.view(np.float16))
    packed = PACKED.num_layers * (62 * PACKED.block_bytes + 2 * PACKED.slot_bytes)
    assert copies.link_bytes == packed
    copies.close()
    store.close()
