"""Packed blocks in a store: the last block and the first tokens are read as given, all others as they are decoded."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest, NotFinite
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer, normal_levels
from moorage.workers.kv.formats.quantizer_array import digest_of, from_array, to_array
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.operations import CommitRow, Confirm
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorType, KvLayout, KvType

SIZE, HEADS, DIM, SINKS = 16, 2, 32, 5
LAYOUT = KvLayout(2, HEADS, DIM, SIZE, KvType.INT8, AnchorType.BLOCK_MEAN, n_fp16_sinks=SINKS)
PACKED = [KvType.INT8, KvType.NUQ2]


def sharded(layout: KvLayout, num_shards: int = 1, num_pages: int = 64) -> tuple[ShardedKv, list[KvStore]]:
    stores = [KvStore(layout, num_pages) for _ in range(num_shards)]
    return ShardedKv([LocalLink(store) for store in stores], layout, 2), stores


def random_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """K and V [2, T, Hkv, D] that fp16 holds exactly."""
    return rng.standard_normal((2, count, HEADS, DIM)).astype(np.float16).astype(np.float32)


def read(kv: ShardedKv, session_id: int, num_tokens: int, layer: int = 0) -> np.ndarray:
    """K and V [2, T, Hkv, D] of whole blocks."""
    blocks = np.arange(-(-num_tokens // SIZE), dtype=np.int32)
    out = np.full((len(blocks), 2, HEADS, SIZE, DIM), 60, np.uint16)
    kv.gather(session_id, layer, blocks, out, blocks)
    rows = out.view(np.float16).astype(np.float32)
    return rows.transpose(1, 0, 3, 2, 4).reshape(2, -1, HEADS, DIM)


def packed(rows: np.ndarray, layout: KvLayout) -> np.ndarray:
    """K and V of full blocks as they are decoded when all of them are stored at once, sinks in fp16."""
    kv, _ = sharded(layout)
    count = rows.shape[1]
    kv.open(1, count // SIZE + 1)
    more = np.concatenate((rows, rows[:, :1]), axis=1)
    kv.append(1, 0, 0, more[0], more[1])
    return read(kv, 1, count)


@pytest.mark.parametrize("kv_type", PACKED)
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("chunk", [1, 7, 16, 50, 200])
def test_only_the_last_block_and_the_sinks_are_read_as_given(
    rng: np.random.Generator, kv_type: KvType, num_shards: int, chunk: int
) -> None:
    layout, count = replace(LAYOUT, kv_type=kv_type), 7 * SIZE + 3
    rows = random_rows(rng, count)
    kv, stores = sharded(layout, num_shards)
    kv.open(1, 9, first_shard=1)
    for start in range(0, count, chunk):
        kv.append(1, 0, start, *rows[:, start : start + chunk])
    found, expected = read(kv, 1, count), packed(rows[:, : 7 * SIZE], layout)
    np.testing.assert_array_equal(found[:, : 7 * SIZE], expected)
    np.testing.assert_array_equal(found[:, 7 * SIZE : count], rows[:, 7 * SIZE :])
    assert not found[:, count:].any()
    np.testing.assert_array_equal(found[:, :SINKS], rows[:, :SINKS])
    assert np.abs(found[:, SINKS : 7 * SIZE] - rows[:, SINKS : 7 * SIZE]).max() > 1e-4
    for store in stores:
        store.check_integrity()


def test_a_full_block_is_read_as_given_until_the_next_one_begins(rng: np.random.Generator) -> None:
    rows = random_rows(rng, 2 * SIZE + 1)
    for num_shards in (1, 3):
        kv, _ = sharded(LAYOUT, num_shards)
        kv.open(1, 4)
        for start in range(2 * SIZE):
            kv.append(1, 0, start, *rows[:, start : start + 1])
        np.testing.assert_array_equal(read(kv, 1, 2 * SIZE)[:, SIZE:], rows[:, SIZE : 2 * SIZE])
        kv.append(1, 0, 2 * SIZE, *rows[:, 2 * SIZE :])
        np.testing.assert_array_equal(read(kv, 1, 2 * SIZE), packed(rows[:, : 2 * SIZE], LAYOUT))


def test_a_session_is_cut_in_its_open_block_or_between_blocks(rng: np.random.Generator) -> None:
    rows, kv = random_rows(rng, 60), sharded(LAYOUT)[0]
    kv.open(1, 5)
    for layer in range(2):
        kv.append(1, layer, 0, *rows)
    kv.truncate(1, 53)
    np.testing.assert_array_equal(read(kv, 1, 53)[:, 48:53], rows[:, 48:53])
    with pytest.raises(InvalidRequest, match="token 20 is in a packed block; go on at its beginning"):
        kv.truncate(1, 20)
    assert read(kv, 1, 53).any()
    kv.truncate(1, 32)
    kv.append(1, 0, 32, *rows[:, 32:])
    np.testing.assert_array_equal(read(kv, 1, 60)[:, :48], packed(rows[:, :48], LAYOUT))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_no_numbers_change_nothing(rng: np.random.Generator, bad: float) -> None:
    rows, kv = random_rows(rng, 20), sharded(LAYOUT)[0]
    kv.open(1, 5)
    kv.append(1, 0, 0, *rows)
    before, more = read(kv, 1, 20), random_rows(rng, 40)
    for count in (1, 3, 40):
        more[1, count - 1, 0, 3] = bad
        with pytest.raises(NotFinite, match="layer 0"):
            kv.append(1, 0, 20, *more[:, :count])
        kv.truncate(1, 20)
        np.testing.assert_array_equal(read(kv, 1, 20), before)
        more[1, count - 1, 0, 3] = 0


def test_idle_sessions_and_forks_hold_whole_blocks_and_sinks(rng: np.random.Generator) -> None:
    rows, (kv, (store,)) = random_rows(rng, 40), sharded(LAYOUT)
    kv.open(1, 4)
    used = LAYOUT.open_pages + LAYOUT.sink_pages
    assert store.stats().free_pages == 64 - 4 - used
    for layer in range(2):
        kv.append(1, layer, 0, *rows)
    kv.trim(1, 32)
    assert store.stats().free_pages == 64 - 2 - LAYOUT.sink_pages
    kv.fork(1, 2, 2)
    assert store.stats().free_pages == 64 - 2 - LAYOUT.sink_pages
    kv.drop(1)
    np.testing.assert_array_equal(read(kv, 2, 32), packed(rows[:, :32], LAYOUT))
    kv.grow(2, 4)
    kv.append(2, 0, 32, *rows[:, 32:])
    np.testing.assert_array_equal(read(kv, 2, 40)[:, 32:40], rows[:, 32:])
    store.check_integrity()
    kv.drop(2)
    assert store.stats().free_pages == 64


@pytest.mark.parametrize("anchor_type", [AnchorType.QUEST, AnchorType.KEY_CODES])
def test_a_worker_and_its_store_agree(rng: np.random.Generator, anchor_type: AnchorType) -> None:
    """A worker packs what it writes itself; rows that it puts into the open pages are packed by the store."""
    layout, rows = replace(LAYOUT, anchor_type=anchor_type), random_rows(rng, 3 * SIZE)
    alone, _ = sharded(layout)
    alone.open(1, 4)
    store = KvStore(layout, 64)
    server = MailboxServer(store)
    link = MailboxLink(server.address)
    kv = ShardedKv([link], layout, 2)
    kv.open(1, 4)
    for layer in range(2):
        alone.append(1, layer, 0, *rows)
        kv.append(1, layer, 0, *rows[:, : 2 * SIZE + 1])
    table = link.shard.session(1).table
    for position in range(2 * SIZE + 1, 3 * SIZE):
        page, row = divmod(position - 2 * SIZE, layout.raw_rows)
        bits = rows[:, position].astype(np.float16).view(np.uint16)
        for raw in link.shard.arena.raw:
            raw[table.raw.open_pages[page], :, :, row] = bits
        link.post(CommitRow(1, position))
    link.call(Confirm(np.array([1])))
    one, other = alone.links[0].shard, link.shard
    assert one is not None
    for name in ("stored", "anchors", "codes"):
        for layer in range(2):
            pairs = [getattr(x.arena, name)[layer][x.session(1).table.pages[:3]] for x in (one, other)]
            np.testing.assert_array_equal(*pairs)
    assert other.session(1).num_sealed == [3, 3] == store.shard.session(1).num_sealed
    np.testing.assert_array_equal(read(kv, 1, 3 * SIZE), read(alone, 1, 3 * SIZE))
    kv.close()
    server.close()
    store.close()


def test_a_worker_that_takes_a_session_over_goes_on_between_blocks(rng: np.random.Generator) -> None:
    """The worker before may have been lost while it overwrote the rows of the open block."""
    rows, (kv, (store,)) = random_rows(rng, 40), sharded(LAYOUT)
    kv.open(1, 4)
    for layer in range(2):
        kv.append(1, layer, 0, *rows)
    other = ShardedKv([LocalLink(store)], LAYOUT, 2)
    assert other.attach(1, 4) == 32
    np.testing.assert_array_equal(read(other, 1, 32), packed(rows[:, :32], LAYOUT))


def quantizer(rng: np.random.Generator, bits: int, layers: int) -> Quantizer:
    def one() -> LayerQuantizer:
        scale, zero = rng.uniform(0.5, 3, (2, HEADS, DIM)).astype(np.float32)
        return LayerQuantizer(
            normal_levels(bits), normal_levels(bits), scale, zero, zero - scale, zero + scale
        )

    return Quantizer(bits, tuple(one() for _ in range(layers)))


def test_layers_have_the_bits_that_their_quantizer_gives_them(rng: np.random.Generator) -> None:
    ends, levels = np.full((HEADS, DIM), 2.5, np.float32), (normal_levels(4), normal_levels(2))
    layers = [LayerQuantizer(each, each, ends, 0 * ends, -ends, ends) for each in levels]
    made, types = Quantizer(3, tuple(layers)), (KvType.NUQ4, KvType.NUQ2)
    layout = replace(LAYOUT, kv_type=KvType.NUQ3, quantizer=digest_of(made), layer_kv_types=types)
    alone = [replace(layout, num_layers=1, kv_type=each, layer_kv_types=()).block_bytes for each in types]
    assert layout.layer_bytes == tuple(alone)
    assert layout.page_kv_bytes == sum(alone) <= 2 * replace(layout, layer_kv_types=()).block_bytes
    store = KvStore(layout, 24, made)
    server = MailboxServer(store)
    link = MailboxLink(server.address)
    kv = ShardedKv([link], layout, 2)
    kv.open(1, 3)
    rows = random_rows(rng, 2 * SIZE + 5)
    for layer in range(2):
        kv.append(1, layer, 0, *rows)
    found = [read(kv, 1, 2 * SIZE + 5, layer)[:, : 2 * SIZE + 5] for layer in range(2)]
    errors = [np.abs(each[:, SINKS : 2 * SIZE] - rows[:, SINKS : 2 * SIZE]).mean() for each in found]
    assert errors[1] > 2 * errors[0] > 0
    for each in found:
        np.testing.assert_array_equal(each[:, 2 * SIZE :], rows[:, 2 * SIZE :])
    assert from_array(to_array(made), 3, 2, HEADS, DIM).layer_bits == (4, 2)
    assert layout.quantizer_bytes == to_array(made).nbytes
    kv.close()
    server.close()


def test_every_process_of_a_store_has_its_quantizer(rng: np.random.Generator) -> None:
    made = quantizer(rng, 3, 2)
    layout = replace(LAYOUT, kv_type=KvType.NUQ3, quantizer=digest_of(made))
    assert layout.quantizer_bytes == to_array(made).nbytes
    again = from_array(to_array(made), 3, 2, HEADS, DIM)
    assert digest_of(again) == digest_of(made) != digest_of(quantizer(rng, 3, 2))
    arena, blocks = Arena(layout, 4, made), rng.standard_normal((1, 2, HEADS, SIZE, DIM)).astype(np.float16)
    other, page, out = Arena.attach(os.dup(arena.fd), layout, 4), np.array([2], np.int32), []
    for one in (arena, other):
        assert one.codec is not None
        assert one.codec.encode(1, blocks.view(np.uint16), one.stored[1], page)
    for one in (arena, other):
        found = np.zeros((3, 2, HEADS, SIZE, DIM), np.uint16)
        one.decode(1, page, found, page)
        out.append(found[2].view(np.float16))
    np.testing.assert_array_equal(*out)
    assert np.abs(out[0].astype(np.float32) - blocks[0]).mean() < 0.5
    plain = replace(layout, quantizer=0)
    assert plain.block_bytes > layout.block_bytes
    other.close()
    arena.close()
