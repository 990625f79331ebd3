"""Sessions over packed blocks: what a request means depends neither on its chunks nor on what was cached.

Log-probabilities agree but for rounding, which may give a number the next code. Being seen in fp16 or not, as the
blocks that packing changes are, moves them ten times as far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer, normal_levels
from moorage.workers.kv.link import Link
from moorage.workers.kv.mailbox_link import MailboxLink
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.snapshot import load_session, save_session
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import (
    AnchorType,
    ForkSession,
    KvType,
    MemorySpec,
    RestoreSession,
    Segment,
    SegmentResult,
)
from tests.engine_driver import FULL, Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint

SIZE, LENGTH = 16, 150
SELECTED = memory(topk=2, sinks=16, window=24, dense_until=0)
KEYS = memory(sinks=16, window=24, topk_keys=16, dense_until=0)
SELECTED_PREFILL = SELECTED.replace(execution_block=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def maker(model: TinyModel, kv_type: KvType) -> Callable[..., Driver]:
    def made(**options: Any) -> Driver:
        standard = {"block_size": SIZE, "kv_type": kv_type, "num_pages": 128}
        return Driver(model.directory, model.spec, **(standard | options))

    return made


@pytest.fixture(params=[KvType.INT8, KvType.NUQ3])
def new(model: TinyModel, request: pytest.FixtureRequest) -> Callable[..., Driver]:
    return maker(model, request.param)


@pytest.fixture(params=[each for each in KvType if not format_of(each).is_native])
def new_of_each(model: TinyModel, request: pytest.FixtureRequest) -> Callable[..., Driver]:
    return maker(model, request.param)


def prompt_of(model: TinyModel, length: int = LENGTH, seed: int = 0) -> tuple[int, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(2, model.spec.vocab_size, length).tolist())


def tokens_of(results: list[SegmentResult]) -> list[tuple[int | None, float]]:
    return [(result.token_id, pytest.approx(result.logprob, abs=0.1)) for result in results]


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
    assert (found - expected).abs().mean() < 1.5e-3


KEPT = pytest.mark.parametrize(
    ("axes", "anchors"),
    [(FULL, AnchorType.QUEST), (SELECTED, AnchorType.QUEST), (KEYS, AnchorType.KEY_CODES)],
    ids=["full", "blocks", "keys"],
)
"""What a session attends that is kept for later, and what its blocks are summarised by."""
ANY_CHUNKS = ([1, 31, 64], [SIZE], [40, 7, 1, 50])


@pytest.mark.parametrize(
    ("axes", "chunkings"),
    [(FULL, ANY_CHUNKS), (SELECTED, ANY_CHUNKS), (SELECTED_PREFILL, ([32], [64, 32, 96]))],
    ids=["full", "selected", "selected prefill"],
)
def test_chunks_change_nothing(
    new: Callable[..., Driver], model: TinyModel, axes: MemorySpec, chunkings: Sequence[Sequence[int]]
) -> None:
    prompt = prompt_of(model)
    whole = new().prompt_logprobs(prompt, axes, [LENGTH])
    for chunks in chunkings:
        assert_alike(new().prompt_logprobs(prompt, axes, chunks), whole)


@pytest.mark.parametrize(
    ("axes", "chunkings"), [(SELECTED, ANY_CHUNKS), (SELECTED_PREFILL, ([32], [64, 32, 96]))]
)
def test_chunks_change_nothing_where_attention_makes_anchors(
    new: Callable[..., Driver], model: TinyModel, axes: MemorySpec, chunkings: Sequence[Sequence[int]]
) -> None:
    """Keys receive attention as each query sees them: those of its own block in fp16, all others as packed."""
    prompt, anchors = prompt_of(model), AnchorType.REPR_TOPK
    whole = tokens_of(new(anchor_type=anchors).generate(prompt, axes, num_tokens=20))
    for chunks in chunkings:
        found = new(anchor_type=anchors).generate(prompt, axes, chunks, num_tokens=20)
        assert tokens_of(found) == whole


def test_chunks_change_nothing_in_any_format(new_of_each: Callable[..., Driver], model: TinyModel) -> None:
    prompt = prompt_of(model)
    found, whole = (new_of_each().prompt_logprobs(prompt, FULL, chunks) for chunks in ([1, 31, 64], [LENGTH]))
    assert_alike(found, whole)


def test_generated_tokens_mean_what_a_prompt_of_them_means(
    new_of_each: Callable[..., Driver], model: TinyModel
) -> None:
    prompt, count = prompt_of(model), 2 * SIZE + 5
    driver = new_of_each(num_shards=3)
    found = driver.generate(prompt, num_tokens=count)
    ids = [result.token_id for result in found if result.token_id is not None]
    expected = new_of_each(num_shards=1).prompt_logprobs((*prompt, *ids), FULL, [LENGTH + count])[
        LENGTH - 1 :
    ]
    logprobs = torch.tensor([result.logprob for result in found])
    assert_alike(logprobs, expected)


def test_blocks_are_seen_as_they_are_packed(new_of_each: Callable[..., Driver], model: TinyModel) -> None:
    prompt = prompt_of(model)
    packed, exact = new_of_each(), new_of_each(kv_type=KvType.FP16)
    found, expected = (each.prompt_logprobs(prompt, FULL, [LENGTH]) for each in (packed, exact))
    assert_alike(found[: SIZE - 1], expected[: SIZE - 1])
    assert (found[SIZE:] - expected[SIZE:]).abs().mean() > 3e-3
    assert packed.stores[0].layout.page_kv_bytes < exact.stores[0].layout.page_kv_bytes


@KEPT
def test_a_session_goes_on_as_a_fresh_one_would(
    new: Callable[..., Driver], model: TinyModel, axes: MemorySpec, anchors: AnchorType
) -> None:
    first, second = prompt_of(model), (*prompt_of(model)[:100], *prompt_of(model, 60, seed=1))
    fresh = tokens_of(new(anchor_type=anchors).generate(second, axes, num_tokens=20))
    driver = new(anchor_type=anchors)
    driver.generate(first, axes, num_tokens=8, keep=True)
    driver.step(idles=(1,))
    for _ in range(2):
        kept = 100 // SIZE * SIZE
        assert tokens_of(driver.generate(second, axes, num_tokens=20, continued=kept, keep=True)) == fresh
        driver.step(idles=(1,))
    driver.step(drops=(1,))
    assert all(store.stats().free_pages == store.stats().num_pages for store in driver.stores)


@KEPT
def test_forks_go_their_own_ways(
    new: Callable[..., Driver], model: TinyModel, axes: MemorySpec, anchors: AnchorType
) -> None:
    def alone(prompt: tuple[int, ...]) -> list[tuple[int | None, float]]:
        return tokens_of(new(anchor_type=anchors).generate(prompt, axes, num_tokens=20))

    first = prompt_of(model)
    whole = LENGTH // SIZE * SIZE
    others = {
        2: (*first[:whole], *prompt_of(model, 30, seed=2)),
        3: (*first[:whole], *prompt_of(model, 40, seed=3)),
    }
    driver = new(anchor_type=anchors)
    driver.generate(first, axes, num_tokens=4, keep=True)
    driver.step(idles=(1,))
    used = [store.stats().free_pages for store in driver.stores]
    driver.step(forks=tuple(ForkSession(1, session_id, whole // SIZE) for session_id in others))
    assert [store.stats().free_pages for store in driver.stores] == used, "a fork takes no page"
    for session_id, prompt in others.items():
        found = driver.generate(
            prompt, axes, continued=whole, session_id=session_id, keep=True, num_tokens=20
        )
        assert tokens_of(found) == alone(prompt)
    again = driver.generate(first, axes, continued=whole, num_tokens=20)
    assert tokens_of(again) == alone(first)


@KEPT
def test_a_session_comes_back_from_files(
    new: Callable[..., Driver], model: TinyModel, tmp_path: Any, axes: MemorySpec, anchors: AnchorType
) -> None:
    prompt, whole = prompt_of(model), LENGTH // SIZE * SIZE
    driver, other, fresh = (new(anchor_type=anchors) for _ in range(3))
    driver.generate(prompt, axes, num_tokens=4, keep=True)
    driver.step(idles=(1,))
    checksums = [save_session(store, 1, tmp_path / str(at)) for at, store in enumerate(driver.stores)]
    other.step(restores=(RestoreSession(7, whole // SIZE, LENGTH, axes, 0),))
    for at, store in enumerate(other.stores):
        load_session(store, 7, tmp_path / str(at), checksums[at])
    found = other.generate(prompt, axes, continued=whole, session_id=7, num_tokens=20)
    assert tokens_of(found) == tokens_of(fresh.generate(prompt, axes, num_tokens=20))


def test_verified_drafts_are_the_tokens_of_full_attention(
    new: Callable[..., Driver], model: TinyModel
) -> None:
    prompt, count = prompt_of(model), 3 * SIZE
    expected = new().generate(prompt, num_tokens=count)
    driver, axes = new(), SELECTED.replace(verify=4)
    driver.step(opens=(driver.open(1, prompt, axes, count),))
    results = driver.step(segments=(Segment(1, 0, prompt, sample=True),))
    ids = [token.token_id for token in results[0].tokens]
    while len(ids) < count:
        (result,) = driver.step(segments=(Segment(1, LENGTH + len(ids) - 1, (ids[-1],), sample=True),))
        ids += [token.token_id for token in result.tokens]
    assert ids[:count] == [result.token_id for result in expected]


@pytest.fixture
def mailbox() -> Iterator[Callable[[KvStore], Link]]:
    with ExitStack() as stack:

        def link(store: KvStore) -> Link:
            server = MailboxServer(store)
            stack.callback(server.close)
            made = MailboxLink(server.address)
            stack.callback(made.close)
            return made

        yield link


@pytest.mark.parametrize(
    ("axes", "anchor_type"),
    [(FULL, AnchorType.QUEST), (SELECTED, AnchorType.QUEST), (KEYS, AnchorType.KEY_CODES)],
)
def test_every_link_and_number_of_stores_gives_the_same(
    new: Callable[..., Driver],
    model: TinyModel,
    mailbox: Callable[[KvStore], Link],
    axes: MemorySpec,
    anchor_type: AnchorType,
) -> None:
    prompt = prompt_of(model)
    alone = tokens_of(new(num_shards=1, anchor_type=anchor_type).generate(prompt, axes, num_tokens=20))
    for options in ({"num_shards": 3}, {"num_shards": 2, "link": mailbox}):
        driver = new(anchor_type=anchor_type, **options)
        assert tokens_of(driver.generate(prompt, axes, [64, 50], num_tokens=20)) == alone


def test_sessions_of_a_step_do_not_meet(new: Callable[..., Driver], model: TinyModel) -> None:
    prompts = {1: prompt_of(model), 2: prompt_of(model, 97, seed=4)}
    alone = {at: tokens_of(new().generate(prompt, num_tokens=1)) for at, prompt in prompts.items()}
    driver = new()
    opens = tuple(driver.open(at, prompt) for at, prompt in prompts.items())
    segments = tuple(Segment(at, 0, prompt, sample=True) for at, prompt in prompts.items())
    for result in driver.step(opens=opens, segments=segments):
        assert tokens_of([replace(result)]) == alone[result.session_id]


def quantizer_of(model: TinyModel, bits: int) -> Quantizer:
    """Of keys between -3 and 3."""
    shape = model.spec.num_kv_heads, model.spec.head_dim
    scale, zero = np.full(shape, 3, np.float32), np.zeros(shape, np.float32)
    layer = LayerQuantizer(normal_levels(bits), normal_levels(bits), scale, zero, zero - 3, zero + 3)
    return Quantizer(bits, (layer,) * model.spec.num_stored_layers)


def test_a_quantizer_reaches_every_process(model: TinyModel, mailbox: Callable[[KvStore], Link]) -> None:
    new = maker(model, KvType.NUQ4)
    prompt, kinds = prompt_of(model), {"quantizer": quantizer_of(model, 4)}
    found = [new(**kinds, **link).prompt_logprobs(prompt, FULL, [64]) for link in ({}, {"link": mailbox})]
    assert_alike(*found)
    own_keys, exact = (
        new(kv_type=kind).prompt_logprobs(prompt, FULL, [64]) for kind in (KvType.NUQ4, KvType.FP16)
    )
    assert (found[0] - own_keys).abs().mean() > 1e-3
    assert (found[0] - exact).abs().mean() < 1
