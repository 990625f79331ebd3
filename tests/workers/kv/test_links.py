"""One suite for every way to a store: the results must be those of plain numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest, NotFound, StoreFull
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.messages import SelectRequest
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorType, HeadPool, KvLayout, KvType
from tests.workers.kv.asker import Asker

NUM_PAGES = 40
LAYOUTS = [
    KvLayout(2, 2, 16, 8, KvType.FP16, AnchorType.QUEST, 1),
    KvLayout(1, 1, 32, 4, KvType.FP32, AnchorType.QUEST, 2),
    KvLayout(2, 3, 48, 16, KvType.FP16, AnchorType.BLOCK_MEAN, 4),
]
CASES = [
    *itertools.product(("local", "mailbox-thread", "mailbox-process", "mailbox-scores-here"), LAYOUTS),
    pytest.param(("ray", LAYOUTS[0]), marks=pytest.mark.ray),
]
GROUP = 2
Reference = Any
session_ids = itertools.count(1)


@pytest.fixture(scope="module")
def ray_link(request: pytest.FixtureRequest) -> Iterator[Callable[[KvLayout], Asker]]:
    from moorage.workers.kv.actor import start_kv_actor, stop_kv_actor
    from moorage.workers.kv.ray_link import RayLink
    from moorage.workers.ray_process import RayProcess

    request.getfixturevalue("local_ray")
    actors = []

    def start(layout: KvLayout) -> Asker:
        handle = start_kv_actor(RayProcess("links", "test", num_cpus=0), layout, NUM_PAGES, num_threads=1)
        actors.append(handle)
        return Asker(RayLink(handle, layout))

    yield start
    for handle in actors:
        stop_kv_actor(handle)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1].anchor_type}")
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Asker, KvLayout]]:
    kind, layout = request.param
    if kind == "ray":
        yield request.getfixturevalue("ray_link")(layout), layout
        return
    if kind == "mailbox-process":
        address, _ = request.getfixturevalue("serve_process")(layout, NUM_PAGES)
        link = Asker(MailboxLink(address))
        yield link, layout
        link.close()
        return
    store = KvStore(layout, NUM_PAGES)
    if kind == "local":
        yield Asker(LocalLink(store)), layout
    else:
        server = MailboxServer(store)
        mailbox = MailboxLink(server.address)
        mailbox.scores_here = kind == "mailbox-scores-here"
        link = Asker(mailbox)
        yield link, layout
        link.close()
        server.close()
    store.check_integrity()
    assert store.stats().free_pages == NUM_PAGES
    store.close()


@pytest.fixture
def session(case: tuple[Asker, KvLayout]) -> Iterator[int]:
    session_id = next(session_ids)
    case[0].open(session_id, 12)
    yield session_id
    case[0].drop(session_id)


def draw_rows(rng: np.random.Generator, layout: KvLayout, count: int) -> np.ndarray:
    return rng.standard_normal((count, layout.num_kv_heads, layout.head_dim), np.float32)


def append(
    link: Asker, session_id: int, layer: int, start: int, keys: np.ndarray, values: np.ndarray
) -> None:
    link.write(session_id, layer, start, keys, values)
    link.commit(session_id, layer, start, start + len(keys))


def fill(
    link: Asker, reference: Reference, session_id: int, num_tokens: int, rng: np.random.Generator
) -> None:
    for layer in range(reference.layout.num_layers):
        keys, values = (draw_rows(rng, reference.layout, num_tokens) for _ in "kv")
        append(link, session_id, layer, 0, keys, values)
        reference.append(session_id, layer, 0, keys, values)


def check_blocks(link: Asker, reference: Reference, session_id: int, layer: int) -> None:
    layout = reference.layout
    num_tokens = len(reference.stored(session_id, layer)[0])
    blocks = np.random.default_rng(num_tokens).permutation(layout.num_blocks(num_tokens)).astype(np.int32)
    dtype = np.uint16 if layout.kv_type is KvType.FP16 else np.float32
    shape = (len(blocks) + 2, 2, layout.num_kv_heads, layout.block_size, layout.head_dim)
    out = np.full(shape, 0x7E00 if dtype == np.uint16 else np.nan, dtype)
    slots = (np.arange(len(blocks), dtype=np.int32) + 1)[::-1].copy()
    link.gather(session_id, layer, blocks, out, slots)
    as_float = out.view(np.float16).astype(np.float32) if dtype == np.uint16 else out
    assert np.isnan(as_float[[0, -1]]).all()
    for block, slot in zip(blocks, slots, strict=True):
        expected = reference.block(session_id, layer, block)
        np.testing.assert_array_equal(as_float[slot][:, :, : expected.shape[2]], expected)


def check_select(link: Asker, reference: Reference, request: SelectRequest) -> None:
    ids, scores = reference.select(request)
    reply = link.submit_select(request)()
    np.testing.assert_array_equal(reply.ids, ids)
    np.testing.assert_allclose(reply.scores, scores, rtol=2e-5, atol=2e-6)


def make_request(layout: KvLayout, session_id: int, seed: int, **changes: Any) -> SelectRequest:
    rng = np.random.default_rng(seed)
    shape = (changes.pop("rows", 1), GROUP * layout.num_kv_heads, layout.head_dim)
    values: dict[str, Any] = {
        "session_id": session_id,
        "layer": 0,
        "queries": rng.standard_normal(shape, np.float32),
        "first": 0,
        "limits": np.full(shape[0], 99, np.int32),
        "k": 3,
        "shared": True,
        "scale": layout.head_dim**-0.5,
    }
    return SelectRequest(**{**values, **changes})


@pytest.mark.parametrize("seed", range(3))
def test_random_work_agrees_with_numpy(case: tuple[Asker, KvLayout], reference: Reference, seed: int) -> None:
    link, layout = case
    expected, rng = reference(layout), np.random.default_rng(seed)
    size, session_id = layout.block_size, next(session_ids)
    link.open(session_id, 12)
    held = [0] * layout.num_layers
    for step in range(25):
        layer = int(rng.integers(layout.num_layers))
        if rng.random() < 0.15:
            cut = int(rng.integers(0, max(held) + 2))
            link.truncate(session_id, cut)
            expected.truncate(session_id, cut)
            held = [min(count, cut) for count in held]
        # A start before the end replaces what was stored from there on.
        start = held[layer] if rng.random() < 0.9 else int(rng.integers(0, held[layer] + 1))
        count = min(int(rng.choice([0, 1, size - 1, size, size + 1, 3 * size + 2])), 12 * size - start)
        keys, values = draw_rows(rng, layout, count), draw_rows(rng, layout, count)
        append(link, session_id, layer, start, keys, values)
        expected.append(session_id, layer, start, keys, values)
        held[layer] = start + count
        check_select(
            link, expected, make_request(layout, session_id, step, layer=layer, shared=step % 2 == 0)
        )
        check_blocks(link, expected, session_id, layer)
    assert link.attach(session_id) == min(held)
    link.drop(session_id)


@pytest.mark.parametrize("pooling", HeadPool)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_select(
    case: tuple[Asker, KvLayout],
    session: int,
    reference: Reference,
    pooling: HeadPool,
    shared: bool,
    rows: int,
) -> None:
    link, layout = case
    expected = reference(layout)
    fill(link, expected, session, 11 * layout.block_size + 1, np.random.default_rng(5))
    for first, limit, k in [
        (0, 11, 4),
        (2, 9, 3),
        (2, 9, 7),
        (0, 99, 20),
        (5, 5, 2),
        (9, 3, 2),
        (1, 2, 1),
        (0, 5, 0),
    ]:
        limits = np.array([limit, limit - 1, 0][:rows], np.int32)
        request = make_request(
            layout, session, k, rows=rows, first=first, limits=limits, k=k, shared=shared, pooling=pooling
        )
        check_select(link, expected, request)


@pytest.mark.parametrize("pooling", [HeadPool.SUM, HeadPool.SOFTMAX])
@pytest.mark.parametrize("shared", [True, False])
def test_sessions_that_select_together_get_what_each_gets_alone(
    case: tuple[Asker, KvLayout], session: int, reference: Reference, shared: bool, pooling: HeadPool
) -> None:
    link, layout = case
    expected, rng = reference(layout), np.random.default_rng(3)
    other = next(session_ids)
    link.open(other, 9)
    fill(link, expected, session, 11 * layout.block_size + 1, rng)
    fill(link, expected, other, 8 * layout.block_size, rng)
    more = 60
    for count in (1, 2, 3, more):
        requests = [
            make_request(
                layout,
                (session, other)[i % 2],
                i,
                first=i % 3,
                limits=np.array([4 + i % 7], np.int32),
                shared=shared,
                pooling=pooling,
            )
            for i in range(count)
        ]
        replies = link.submit_together(requests)()
        assert len(replies) == count
        for request, reply in zip(requests, replies, strict=True):
            ids, scores = expected.select(request)
            np.testing.assert_array_equal(reply.ids, ids)
            np.testing.assert_allclose(reply.scores, scores, rtol=2e-5, atol=2e-6)
    link.drop(other)


def test_a_failure_among_several_is_told_to_all_and_the_link_goes_on(
    case: tuple[Asker, KvLayout], session: int, reference: Reference
) -> None:
    link, layout = case
    expected = reference(layout)
    fill(link, expected, session, 5 * layout.block_size, np.random.default_rng(1))
    good = make_request(layout, session, 0)
    with pytest.raises(NotFound, match="9999"):
        link.submit_together([good, make_request(layout, 9999, 1), good])()
    check_select(link, expected, good)


def test_select_without_rows(case: tuple[Asker, KvLayout], session: int) -> None:
    link, layout = case
    request = make_request(layout, session, 0, rows=0, shared=False)
    assert link.submit_select(request)().ids.shape == (0, layout.num_kv_heads, 3)


@pytest.mark.parametrize("shared", [True, False])
def test_two_rounds_equal_one(
    case: tuple[Asker, KvLayout], session: int, reference: Reference, shared: bool
) -> None:
    link, layout = case
    expected = reference(layout)
    fill(link, expected, session, 9 * layout.block_size, np.random.default_rng(1))
    request = make_request(layout, session, 3, rows=2, first=1, shared=shared)
    lse = link.submit_score(request)()
    logits = request.scale * expected.logits(request)[:, :, 1:]
    np.testing.assert_allclose(lse, np.log(np.exp(logits).sum(-1)), rtol=1e-5)
    reply, once = link.submit_choose(session, lse)(), link.submit_select(request)()
    np.testing.assert_array_equal(reply.ids, once.ids)
    np.testing.assert_array_equal(reply.scores, once.scores)


def test_only_kept_blocks_are_chosen(
    case: tuple[Asker, KvLayout], session: int, reference: Reference
) -> None:
    link, layout = case
    expected = reference(layout)
    fill(link, expected, session, 10 * layout.block_size, np.random.default_rng(2))
    kept = np.array([1, 2, 5, 8], np.int32)
    link.preselect(session, 0, kept, 9)
    expected.kept[session, 0] = (kept, 9)
    for first, limit in [(0, 99), (2, 8), (3, 5)]:
        limits = np.array([limit], np.int32)
        for use in (True, False):
            request = make_request(layout, session, 7, first=first, limits=limits, k=2, use_preselected=use)
            check_select(link, expected, request)
    link.truncate(session, 10 * layout.block_size)
    check_select(link, expected, make_request(layout, session, 8, use_preselected=True))
    # Blocks are gone, so the selection made among them is gone as well.
    link.truncate(session, 9 * layout.block_size)
    expected.truncate(session, 9 * layout.block_size)
    del expected.kept[session, 0]
    check_select(link, expected, make_request(layout, session, 8, use_preselected=True))


def test_rows_of_every_type_are_the_same_rows(
    case: tuple[Asker, KvLayout], session: int, reference: Reference
) -> None:
    link, layout = case
    expected, rng = reference(layout), np.random.default_rng(4)
    halves = draw_rows(rng, layout, 3 * layout.block_size).astype(np.float16)
    start = 0
    for part in (halves.astype(np.float32), halves, halves.view(np.uint16)):
        append(link, session, 0, start, part, part)
        start += len(part)
    for place in range(3):
        expected.append(session, 0, place * len(halves), halves, halves)
    check_blocks(link, expected, session, 0)


def test_no_rows_of_another_session_show(case: tuple[Asker, KvLayout]) -> None:
    link, layout = case
    secret, session_id = (next(session_ids) for _ in "ab")
    ones = np.ones((NUM_PAGES * layout.block_size, layout.num_kv_heads, layout.head_dim), np.float32)
    link.open(secret, NUM_PAGES)
    append(link, secret, 0, 0, ones, ones)
    link.drop(secret)
    link.open(session_id, 4)
    append(link, session_id, 0, 0, ones[:1] * 2, ones[:1] * 2)
    append(link, session_id, 0, 1, *(ones[: 2 * layout.block_size] * 2,) * 2)
    blocks = np.arange(3, dtype=np.int32)
    dtype = np.uint16 if layout.kv_type is KvType.FP16 else np.float32
    out = np.zeros((3, 2, layout.num_kv_heads, layout.block_size, layout.head_dim), dtype)
    link.gather(session_id, 0, blocks, out, blocks)
    as_float = out.view(np.float16) if dtype == np.uint16 else out
    assert set(np.unique(as_float)) == {0, 2}
    with pytest.raises(InvalidRequest, match="3 are written"):
        link.gather(session_id, 0, blocks + 1, out, blocks)
    link.drop(session_id)


def test_a_full_store_changes_nothing(case: tuple[Asker, KvLayout], session: int) -> None:
    link, _ = case
    before = link.stats()
    with pytest.raises(StoreFull, match=f"needs {NUM_PAGES} more blocks, {NUM_PAGES - 12} of {NUM_PAGES}"):
        link.open(next(session_ids), NUM_PAGES)
    with pytest.raises(StoreFull):
        link.resize(session, NUM_PAGES + 1)
    assert link.stats() == before


def test_a_session_grows_and_shrinks(
    case: tuple[Asker, KvLayout], session: int, reference: Reference
) -> None:
    link, layout = case
    expected = reference(layout)
    fill(link, expected, session, 12 * layout.block_size, np.random.default_rng(3))
    row = np.zeros((1, layout.num_kv_heads, layout.head_dim), np.float32)

    def write_beyond() -> None:
        append(link, session, 0, 12 * layout.block_size, row, row)
        link.attach(session)

    with pytest.raises(InvalidRequest, match="grow the session"):
        write_beyond()
    link.resize(session, 13)
    assert link.stats().free_pages == NUM_PAGES - 13
    append(link, session, 0, 12 * layout.block_size, row, row)
    expected.append(session, 0, 12 * layout.block_size, row, row)
    check_blocks(link, expected, session, 0)
    with pytest.raises(InvalidRequest, match="truncate before"):
        link.resize(session, 12)
    link.truncate(session, layout.block_size)
    link.resize(session, 1)
    assert link.stats().free_pages == NUM_PAGES - 1


def test_stats(case: tuple[Asker, KvLayout], session: int, reference: Reference) -> None:
    link, layout = case
    fill(link, reference(layout), session, 2 * layout.block_size + 1, np.random.default_rng(3))
    stats = link.stats()
    assert (stats.num_pages, stats.free_pages, stats.num_sessions) == (NUM_PAGES, NUM_PAGES - 12, 1)
    assert stats.num_sealed == 2
    assert stats.used_bytes == 12 * layout.page_bytes
    assert stats.capacity_bytes == NUM_PAGES * layout.page_bytes
    assert stats.anchor_bytes == NUM_PAGES * layout.page_anchor_bytes


def test_drop_is_idempotent(case: tuple[Asker, KvLayout]) -> None:
    link, _ = case
    session_id = next(session_ids)
    link.drop(session_id)
    link.open(session_id, 0)
    assert link.attach(session_id) == 0
    link.drop(session_id)
    link.drop(session_id)
    with pytest.raises(NotFound, match=f"session {session_id}"):
        link.attach(session_id)


def test_bad_requests_are_refused_and_the_link_goes_on(
    case: tuple[Asker, KvLayout], session: int, reference: Reference
) -> None:
    link, layout = case
    expected = reference(layout)
    fill(link, expected, session, 3 * layout.block_size, np.random.default_rng(3))
    row = np.zeros((1, layout.num_kv_heads, layout.head_dim), np.float32)

    def hole() -> None:
        append(link, session, 0, 3 * layout.block_size + 1, row, row)
        link.attach(session)

    bad: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (InvalidRequest, "is open already", lambda: link.open(session, 1)),
        (InvalidRequest, "none or more", lambda: link.open(10**6, -1)),
        (InvalidRequest, "hole", hole),
        (InvalidRequest, "layer 7", lambda: link.submit_select(make_request(layout, session, 0, layer=7))()),
        (NotFound, "open it first", lambda: link.submit_select(make_request(layout, 10**6, 0))()),
        (
            InvalidRequest,
            "nothing negative",
            lambda: link.submit_select(make_request(layout, session, 0, first=-1))(),
        ),
        (InvalidRequest, "ascending", lambda: link.preselect(session, 0, np.array([1, 0], np.int32), 2)),
        (InvalidRequest, "blocks", lambda: link.preselect(session, 0, np.array([3], np.int32), 4)),
        (InvalidRequest, "none or more", lambda: link.truncate(session, -1)),
    ]
    for error, message, call in bad:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        check_select(link, expected, make_request(layout, session, 1))
