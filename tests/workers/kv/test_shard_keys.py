"""Selections of single keys and their rows: every way to the stores gives what one store of everything does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from moorage.kernels.key_codes import reference as key_codes
from moorage.kernels.key_select.cpu import key_values
from moorage.kernels.key_select.reference import best_keys, complete, unpack_codes
from moorage.kernels.merge_lse import reference as merge_lse
from moorage.workers.errors import InvalidRequest, NotFound
from moorage.workers.kv.link import Link, LocalLink
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import AnchorRotation, KeyRequest, KeyRowsRequest
from moorage.workers.kv.operation import Operation
from moorage.workers.kv.operations import KeyRows, Open
from moorage.workers.kv.shard_keys import FoundKeys
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorSpace, AnchorType, KvLayout, KvType

LAYOUT = KvLayout(2, 2, 32, 16, KvType.FP16, AnchorType.KEY_CODES, 1, AnchorSpace.ROTATED)
INV_FREQ = np.array([1.0, 0.3, 0.05])
NUM_TOKENS, HEADS = 325, 4
MakeKv = Callable[..., ShardedKv]


class FarLink(LocalLink):
    """A store as if it were on another host; counts what it is asked and waits for."""

    def __init__(self, store: KvStore) -> None:
        super().__init__(store)
        self.shard = None
        self.asked: list[str] = []

    def submit(self, operation: Operation[Any]) -> Callable[[], Any]:
        self.asked.append(type(operation).__name__)
        return super().submit(operation)

    def call(self, operation: Operation[Any]) -> Any:
        return self.submit(operation)()


@pytest.fixture(params=["mapped", "far", "mailbox", "mailbox scores here"])
def make_kv(request: pytest.FixtureRequest) -> Iterator[MakeKv]:
    with ExitStack() as stack:

        def make(num_shards: int) -> ShardedKv:
            links: list[Link] = []
            for _ in range(num_shards):
                store = KvStore(LAYOUT, 64)
                stack.callback(store.close)
                if not request.param.startswith("mailbox"):
                    links.append(FarLink(store) if request.param == "far" else LocalLink(store))
                    continue
                server = MailboxServer(store)
                stack.callback(server.close)
                links.append(MailboxLink(server.address))
            kv = ShardedKv(links, LAYOUT, 2, score_here=request.param.endswith("here"))
            stack.callback(kv.close)
            return kv

        yield make


def rows_of(seed: int) -> np.ndarray:
    """Keys and values [2, L, T, Hkv, D] of a session, in fp16."""
    shape = 2, LAYOUT.num_layers, NUM_TOKENS, LAYOUT.num_kv_heads, LAYOUT.head_dim
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def fill(kv: ShardedKv, session_id: int, first_shard: int = 0) -> None:
    keys, values = rows_of(session_id)
    kv.open(session_id, LAYOUT.num_blocks(NUM_TOKENS), INV_FREQ, first_shard)
    for layer in range(LAYOUT.num_layers):
        for start, end in ((0, 200), (200, 201), (201, NUM_TOKENS)):
            kv.append(session_id, layer, start, keys[layer, start:end], values[layer, start:end])


def request_of(session_id: int, **changes: Any) -> KeyRequest:
    """Its candidates are met by two rotations of the query."""
    queries = np.random.default_rng(session_id + 99).standard_normal((2, HEADS, LAYOUT.head_dim), np.float32)
    near = np.random.default_rng(session_id).standard_normal(HEADS, np.float32)
    bounds = np.array([1, 7, 18], np.int32)
    request = KeyRequest(session_id, 1, queries, bounds, near, num_keys=24, scale=0.3)
    if "bounds" in changes:
        changes["bounds"] = np.array(changes["bounds"], np.int32)
    return request._replace(**changes)


def check(request: KeyRequest, found: FoundKeys) -> None:
    """Against the rows that were stored, by the definitions of codes, choice and completion."""
    size, num_sealed = LAYOUT.block_size, NUM_TOKENS // LAYOUT.block_size
    stored = rows_of(request.session_id)[:, request.layer]
    blocks = stored[:, : num_sealed * size].reshape(2, num_sealed, size, LAYOUT.num_kv_heads, -1)
    kv = np.ascontiguousarray(blocks.transpose(1, 0, 3, 2, 4)).view(np.uint16)
    means = np.zeros((num_sealed, LAYOUT.num_kv_heads, 1, LAYOUT.head_dim), np.uint16)
    codes = np.zeros((num_sealed, LAYOUT.code_bytes), np.uint8)
    angles = np.multiply.outer(np.arange(num_sealed * size), INV_FREQ).reshape(num_sealed, size, -1)
    turns = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    key_codes.encode_keys(kv, means, codes, np.arange(num_sealed, dtype=np.int32), turns)
    bounds = np.minimum(request.bounds, num_sealed)
    runs = [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
    how = {"block_size": size, "scale": request.scale}
    centres = means[:, :, 0].view(np.float16)
    total = sum(run.stop - run.start for run in runs) * size
    values, begin = np.zeros((LAYOUT.num_kv_heads, total), np.float32), 0
    for run, queries in zip(runs, request.queries, strict=True):
        key_values(
            means, codes, np.arange(run.start, run.stop, dtype=np.int32), queries, request.near,
            scale=request.scale, block_size=size, out=values, first=begin,
        )  # fmt: skip
        begin += (run.stop - run.start) * size
    positions = np.full((LAYOUT.num_kv_heads, request.num_keys), -1)
    for into, of_head in zip(positions, values, strict=True):
        best = best_keys(of_head, request.num_keys)
        into[: len(best)] = bounds[0] * size + best
    np.testing.assert_array_equal(found.positions, positions)
    mean_values = unpack_codes(codes, LAYOUT.num_kv_heads, size, LAYOUT.head_dim).mean_values
    rests = [
        complete(centres[run], mean_values[run], queries, positions, **how, first=int(run.start) * size)
        for run, queries in zip(runs, request.queries, strict=True)
    ]
    expected_outs, expected_lses = (np.array(each) for each in zip(*rests, strict=True))
    expected, expected_lse = merge_lse.merge_lse(expected_outs, expected_lses)
    np.testing.assert_allclose(found.rest_lse, expected_lse, rtol=1e-5)
    np.testing.assert_allclose(found.rest_out, expected, rtol=1e-4, atol=1e-5)
    for part, head, place in np.ndindex(2, *positions.shape):
        at = positions[head, place]
        row = stored[part, at, head] if at >= 0 else np.zeros(LAYOUT.head_dim)
        np.testing.assert_array_equal(found.rows[part, head, place].view(np.float16), row)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bounds": [0, 2, 99], "layer": 0},
        {"bounds": [3, 3, 4]},
        {"bounds": [5, 5, 5]},
        {"bounds": [30, 40, 50]},
    ],
)
def test_the_best_keys_and_their_rows_are_those_of_one_store(
    make_kv: MakeKv, num_shards: int, changes: dict[str, Any]
) -> None:
    kv = make_kv(num_shards)
    fill(kv, 1, first_shard=num_shards - 1)
    request = request_of(1, **changes)
    (found,) = kv.keys.select([request])
    check(request, found)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_sessions_that_ask_together_get_what_each_gets_alone(make_kv: MakeKv, num_shards: int) -> None:
    kv = make_kv(num_shards)
    requests = [request_of(1), request_of(2, bounds=[2, 4, 9], num_keys=7), request_of(3)]
    for shard, request in enumerate(requests):
        fill(kv, request.session_id, shard)
    for request, found in zip(requests, kv.keys.select(requests), strict=True):
        check(request, found)
    assert kv.keys.select([]) == []


@pytest.mark.parametrize("num_shards", [1, 2])
def test_a_session_that_is_not_there_fails_and_the_others_go_on(make_kv: MakeKv, num_shards: int) -> None:
    kv = make_kv(num_shards)
    fill(kv, 1)
    with pytest.raises(NotFound, match="9999"):
        kv.keys.select([request_of(1), request_of(9999)])
    (found,) = kv.keys.select([request_of(1)])
    check(request_of(1), found)


def test_equal_keys_are_taken_from_the_first_on(make_kv: MakeKv) -> None:
    kv, ones = make_kv(3), np.ones((NUM_TOKENS, LAYOUT.num_kv_heads, LAYOUT.head_dim), np.float32)
    kv.open(1, LAYOUT.num_blocks(NUM_TOKENS), np.zeros(3))
    kv.append(1, 0, 0, ones, ones)
    queries = np.ones((2, HEADS, LAYOUT.head_dim), np.float32)
    (found,) = kv.keys.select([request_of(1, layer=0, num_keys=70, queries=queries)])
    assert found.positions.tolist() == [list(range(16, 86))] * LAYOUT.num_kv_heads


@pytest.mark.parametrize(("num_shards", "rounds"), [(1, ["SelectKeys"]), (2, ["SelectKeys", "KeyRows"])])
def test_how_often_a_store_of_another_host_is_waited_for(num_shards: int, rounds: list[str]) -> None:
    """Once where it has everything; once a round for all sessions where there are several."""
    links = [FarLink(KvStore(LAYOUT, 64)) for _ in range(num_shards)]
    kv = ShardedKv(links, LAYOUT, 2)
    for session_id in (1, 2):
        fill(kv, session_id)
    for link in links:
        link.asked.clear()
    kv.keys.select([request_of(1), request_of(2)])
    assert [link.asked for link in links] == [rounds] * num_shards


def test_what_does_not_fit_is_refused() -> None:
    link = LocalLink(KvStore(LAYOUT, 64))
    kv = ShardedKv([link], LAYOUT)
    fill(kv, 1)
    with pytest.raises(InvalidRequest, match="queries of shape"):
        kv.keys.select([request_of(1, queries=np.zeros((2, 3, LAYOUT.head_dim), np.float32))])
    with pytest.raises(InvalidRequest, match="no layer 7"):
        kv.keys.select([request_of(1, layer=7)])
    with pytest.raises(InvalidRequest, match="near"):
        kv.keys.select([request_of(1, near=np.zeros(HEADS - 1, np.float32))])
    with pytest.raises(InvalidRequest, match="not ascending"):
        kv.keys.select([request_of(1, bounds=[3, 2, 9])])
    far = KeyRowsRequest(request_of(1), np.zeros(1, np.int32), np.array([NUM_TOKENS + 99], np.int32))
    with pytest.raises(InvalidRequest, match="are written"):
        link.call(KeyRows([far]))
    with pytest.raises(InvalidRequest, match="of 2 heads"):
        link.call(KeyRows([far._replace(heads=np.array([2], np.int32))]))
    bounds = LocalLink(KvStore(KvLayout(1, 2, 32, 16), 4))
    bounds.call(Open(1, 1, AnchorRotation(INV_FREQ)))
    with pytest.raises(InvalidRequest, match="KEY_CODES"):
        ShardedKv([bounds], KvLayout(1, 2, 32, 16)).keys.select([request_of(1, layer=0)])
