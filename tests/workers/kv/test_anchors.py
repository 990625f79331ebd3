"""Every kind of anchor, over every kind of link, against a slow store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moorage.kernels.key_codes import encode_keys
from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.link import Link, LocalLink
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.operations import Confirm
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorPool, AnchorSpace, AnchorType, HeadPool, KvLayout, KvType

SIZE, DIM, HEADS, NUM_BLOCKS = 16, 16, 4, 11
INV_FREQ = 1.0 / 100.0 ** (np.arange(6) / 6)
MakeKv = Callable[[KvLayout, int], ShardedKv]


@pytest.fixture(params=["local", "mailbox"])
def make_kv(request: pytest.FixtureRequest) -> Iterator[MakeKv]:
    with ExitStack() as stack:

        def make(layout: KvLayout, num_shards: int) -> ShardedKv:
            links: list[Link] = []
            for _ in range(num_shards):
                store = KvStore(layout, 32)
                stack.callback(store.close)
                if request.param == "local":
                    links.append(LocalLink(store))
                    continue
                server = MailboxServer(store)
                stack.callback(server.close)
                links.append(MailboxLink(server.address))
            kv = ShardedKv(links, layout, 2)
            stack.callback(kv.close)
            return kv

        yield make


def check(kv: ShardedKv, expected: Any, rng: np.random.Generator) -> None:
    queries = rng.standard_normal((2, HEADS, DIM), np.float32)
    limits = np.array([NUM_BLOCKS, 7], np.int32)
    for anchor_pool in AnchorPool:
        for shared, perhead in [(True, False), (False, False), (False, True)]:
            axes: dict[str, Any] = {"pooling": HeadPool.SUM, "anchor_pool": anchor_pool, "perhead": perhead}
            request = SelectRequest(1, 0, queries, 1, limits, 3, shared, 0.25, **axes)
            ids, scores = kv.select(request)
            expected_ids, expected_scores = expected.select(request)
            np.testing.assert_array_equal(ids, expected_ids)
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", list(AnchorSpace))
@pytest.mark.parametrize("anchor_type", list(AnchorType))
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_anchor_equals_its_definition(
    make_kv: MakeKv, reference: Any, anchor_type: AnchorType, space: AnchorSpace, num_shards: int
) -> None:
    for anchor_num in (1,) if anchor_type.codes_keys else (1, 2):
        layout = KvLayout(1, 2, DIM, SIZE, KvType.FP32, anchor_type, anchor_num, space, 4)
        kv, expected, rng = make_kv(layout, num_shards), reference(layout), np.random.default_rng(anchor_num)
        expected.inv_freq = INV_FREQ
        kv.open(1, NUM_BLOCKS + 1, INV_FREQ)
        start = 0
        for count in (3, 30, 1, 6, NUM_BLOCKS * SIZE + 2 - 40):
            rows = [rng.standard_normal((count, 2, DIM), np.float32) for _ in "kv"]
            kv.append(1, 0, start, *rows)
            expected.append(1, 0, start, *rows)
            start += count
        check(kv, expected, rng)
        if anchor_type.needs_importance:
            for first, end in [(0, 1), (2, 9), (5, NUM_BLOCKS)]:
                importance = rng.random((end - first, 2, SIZE)).astype(np.float32)
                kv.rebuild_anchors(1, 0, first, importance)
                expected.rebuild_anchors(1, 0, first, importance)
            check(kv, expected, rng)


def test_refuses_importance_that_does_not_fit(make_kv: MakeKv) -> None:
    layout = KvLayout(1, 2, DIM, SIZE, KvType.FP32, AnchorType.DYNAMIC)
    kv = make_kv(layout, 1)
    kv.open(1, 4)
    kv.append(1, 0, 0, *(np.zeros((2 * SIZE, 2, DIM), np.float32) for _ in "kv"))
    with pytest.raises(InvalidRequest, match="sealed"):
        kv.rebuild_anchors(1, 0, 1, np.zeros((2, 2, SIZE), np.float32))


def test_anchors_of_rotated_keys_need_angles(make_kv: MakeKv) -> None:
    kv = make_kv(KvLayout(1, 2, DIM, SIZE, anchor_space=AnchorSpace.ROTATED), 2)
    with pytest.raises(InvalidRequest, match="angles"):
        kv.open(1, 4)


def coded(layout: KvLayout, keys: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anchors [n, Hkv, 1, D], codes and centres [n, bytes] of blocks of keys [T, Hkv, D] from position `first` on."""
    blocks = keys.reshape(-1, SIZE, *keys.shape[1:]).swapaxes(1, 2)
    rows = np.ascontiguousarray(np.stack([blocks, blocks], axis=1))
    rows = rows.astype(np.float16).view(np.uint16) if layout.element == "float16" else rows
    anchors = np.empty((len(rows), layout.num_kv_heads, 1, DIM), rows.dtype)
    codes, centres = (
        np.empty((len(rows), size), np.uint8) for size in (layout.code_bytes, layout.centre_bytes)
    )
    angles = np.multiply.outer(first + np.arange(len(keys)), INV_FREQ).reshape(len(rows), SIZE, -1)
    turns = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    rotation = turns if layout.anchor_space is AnchorSpace.ROTATED else None
    encode_keys(rows, anchors, codes, np.arange(len(rows), dtype=np.int32), rotation, centres)
    return anchors, codes, centres


def check_codes(kv: ShardedKv, layer: int, keys: np.ndarray) -> None:
    """Anchors and codes of all full blocks of session 1 are those of `keys` [T, Hkv, D]."""
    for link in kv.links:
        link.call(Confirm(np.array([1])))  # a commit is not waited for
    whole = len(keys) // SIZE
    anchors, codes, centres = coded(kv.layout, keys[: whole * SIZE], 0)
    for link, local, places in kv.parts(1, np.arange(whole, dtype=np.int32)):
        assert link.shard is not None
        pages = link.shard.pages_of(1, layer, local)
        np.testing.assert_array_equal(link.shard.arena.anchors[layer][pages], anchors[places])
        np.testing.assert_array_equal(link.shard.arena.codes[layer][pages], codes[places])
        np.testing.assert_array_equal(link.shard.arena.centres[layer][pages], centres[places])


def key_codes(kv_type: KvType, space: AnchorSpace) -> KvLayout:
    return KvLayout(2, 2, DIM, SIZE, kv_type, AnchorType.KEY_CODES, 1, space, keeps_centres=True)


@pytest.mark.parametrize("space", list(AnchorSpace))
@pytest.mark.parametrize("kv_type", [KvType.FP16, KvType.FP32, KvType.NUQ3])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_sealing_codes_single_keys(
    make_kv: MakeKv, kv_type: KvType, space: AnchorSpace, num_shards: int
) -> None:
    """Also after the end of a session was cut off and written anew."""
    kv, rng = make_kv(key_codes(kv_type, space), num_shards), np.random.default_rng(num_shards)
    kv.open(1, NUM_BLOCKS + 1, INV_FREQ)
    keys = rng.standard_normal((2, NUM_BLOCKS * SIZE + 5, 2, DIM), np.float32)
    for start, end in [(0, 3), (3, 70), (70, 71), (71, keys.shape[1])]:
        for layer in range(2):
            kv.append(1, layer, start, keys[layer, start:end], keys[layer, start:end])
    for layer in range(2):
        check_codes(kv, layer, keys[layer])
    cut = 2 * SIZE + (0 if kv.layout.is_packed else 7)  # the rows of a packed block can't be written singly
    kv.truncate(1, cut)
    keys[:, cut:] = rng.standard_normal(keys[:, cut:].shape, np.float32)
    for layer in range(2):
        kv.append(1, layer, cut, keys[layer, cut:], keys[layer, cut:])
        check_codes(kv, layer, keys[layer])


@pytest.mark.parametrize("num_shards", [1, 2])
def test_codes_stay_for_a_worker_that_takes_a_session_over(num_shards: int) -> None:
    """It cuts the session back to what all layers hold, and goes on."""
    layout, rng = key_codes(KvType.FP16, AnchorSpace.ROTATED), np.random.default_rng(num_shards)
    with ExitStack() as stack:
        servers = [MailboxServer(KvStore(layout, 16)) for _ in range(num_shards)]
        for server in servers:
            stack.callback(server.close)
        first, second = (
            ShardedKv([MailboxLink(server.address) for server in servers], layout, 2) for _ in range(2)
        )
        stack.callback(second.close)
        keys = rng.standard_normal((2, 6 * SIZE, 2, DIM), np.float32)
        first.open(1, NUM_BLOCKS, INV_FREQ)
        first.append(1, 0, 0, keys[0], keys[0])
        first.append(1, 1, 0, keys[1, : 4 * SIZE + 3], keys[1, : 4 * SIZE + 3])
        for link in first.links:
            link.call(Confirm(np.array([1])))
        first.close()
        held = second.attach(1, NUM_BLOCKS)
        assert held == 4 * SIZE + 3
        keys[:, held:] = rng.standard_normal(keys[:, held:].shape, np.float32)
        for layer in range(2):
            second.append(1, layer, held, keys[layer, held:], keys[layer, held:])
            check_codes(second, layer, keys[layer])


def test_layers_may_rotate_differently(make_kv: MakeKv) -> None:
    layout = replace(key_codes(KvType.FP32, AnchorSpace.ROTATED), num_layers=1)
    one, two = (make_kv(replace(layout, num_layers=count), 1) for count in (1, 2))
    keys = np.random.default_rng(0).standard_normal((3 * SIZE, 2, DIM), np.float32)
    one.open(1, 4, INV_FREQ / 3)
    two.open(1, 4, np.stack([INV_FREQ, INV_FREQ / 3]))
    one.append(1, 0, 0, keys, keys)
    for layer in range(2):
        two.append(1, layer, 0, keys, keys)
    check_codes(two, 0, keys)
    one.links[0].call(Confirm(np.array([1])))
    wanted, found = one.links[0].shard, two.links[0].shard
    assert wanted is not None
    assert found is not None
    np.testing.assert_array_equal(found.arena.codes[1][:3], wanted.arena.codes[0][:3])
