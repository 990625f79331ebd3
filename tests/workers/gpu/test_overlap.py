"""The engine with copies that begin late and end in any order: the same tokens, and none when a wait is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from moorage.workers.errors import MoorageError
from moorage.workers.gpu.transfer.block_loader import storage_dtype
from moorage.workers.gpu.transfer.staging_ring import StagingRing
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.operations import CopyBlocks
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorType, HeadSelectMode, KvType, MemorySpec, Positions, Segment, StepPlan
from tests.emulated_copies import EmulatedCopies, Forgotten
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import oracle_greedy, prompt_of

CHOSEN = memory(topk=3, execution_block=32, sinks=16)


def chosen_at(positions: Positions, mode: HeadSelectMode = HeadSelectMode.SHARED) -> MemorySpec:
    """Three selected blocks, in the prompt as well, under any positions."""
    return memory(
        topk=3,
        execution_block=32,
        sinks=16,
        scheme=positions,
        head_select_mode=mode,
        pretraining_length=60,
        dca_chunk=48,
    )


class FarLink(LocalLink):
    """A store as if it were on another host: its memory is out of the device's reach."""

    def __init__(self, store: KvStore) -> None:
        super().__init__(store)
        self.shard = None


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def emulated(kv: ShardedKv, **options: object) -> EmulatedCopies:
    layout = kv.layout
    block = (2, layout.num_kv_heads, layout.block_size, layout.head_dim)
    return EmulatedCopies(kv, block, storage_dtype(layout.kv_type), **options)  # type: ignore[arg-type]


def check_same(driver: Driver, plain: Driver, prompt: list[int], axes: MemorySpec, count: int = 16) -> None:
    """The same tokens; parts merged in another order differ by rounding alone."""
    got, want = (each.generate(prompt, axes, (64,), count) for each in (driver, plain))
    assert [r.token_id for r in got] == [r.token_id for r in want]
    np.testing.assert_allclose([r.logprob for r in got], [r.logprob for r in want], atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_exact_attention_equals_transformers(llama: TinyModel, seed: int) -> None:
    driver = Driver(llama.directory, llama.spec, copies=partial(emulated, seed=seed))
    prompt = prompt_of(llama, 170, seed)
    found = [r.token_id for r in driver.generate(prompt, chunks=(50, 64), num_tokens=12)]
    assert found == oracle_greedy(llama, prompt, 12)


@pytest.mark.parametrize("link", [LocalLink, FarLink])
@pytest.mark.parametrize("mode", list(HeadSelectMode))
@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA])
def test_chosen_blocks(
    llama: TinyModel, link: Callable[[KvStore], LocalLink], mode: HeadSelectMode, positions: Positions
) -> None:
    axes = chosen_at(positions, mode)
    options = {"max_cached_block": 4, "cache_strategy": "lru-s" if mode is HeadSelectMode.SHARED else "fifo"}
    driver = Driver(llama.directory, llama.spec, copies=emulated, link=link, **options)  # type: ignore[arg-type]
    check_same(driver, Driver(llama.directory, llama.spec, **options), prompt_of(llama, 180), axes)  # type: ignore[arg-type]
    copies = driver.worker.engine.copies
    assert isinstance(copies, EmulatedCopies)
    assert (copies.num_staged > 0) == (link is FarLink)
    assert (copies.num_copies > copies.num_staged) == (link is LocalLink)


@pytest.mark.parametrize("anchor_type", list(AnchorType))
def test_anchors_that_read_rows_of_generated_tokens(llama: TinyModel, anchor_type: AnchorType) -> None:
    drivers = [
        Driver(llama.directory, llama.spec, anchor_type=anchor_type, kv_type=KvType.FP16, copies=copies)
        for copies in (emulated, None)
    ]
    check_same(drivers[0], drivers[1], prompt_of(llama, 150), CHOSEN, 40)


def test_sessions_that_share_slots_and_staging(llama: TinyModel) -> None:
    driver = Driver(llama.directory, llama.spec, copies=emulated, link=FarLink)
    plain = Driver(llama.directory, llama.spec)
    for turn in range(2):
        for number, length in enumerate((150, 33, 90)):
            check_same(driver, plain, prompt_of(llama, length, number + turn), CHOSEN, 6)


def test_recall_streams_past_the_slots(llama: TinyModel) -> None:
    driver = Driver(llama.directory, llama.spec, copies=emulated)
    axes = memory(topk=2, recall_every=1)
    recalls = [r.recall for r in driver.generate(prompt_of(llama, 200), axes, (64,), 12)]
    found = [recall for recall in recalls if recall is not None]
    assert len(found) == 11
    assert 0 < min(found) <= max(found) <= 1 + 1e-5


@pytest.mark.parametrize("chunks", [(200,), (7, 130)])
def test_chunks_that_choose_blocks_of_their_own(llama: TinyModel, chunks: tuple[int, ...]) -> None:
    """Their rows must lie in DRAM before they attend."""
    prompt = prompt_of(llama, 200)
    got, want = (
        Driver(llama.directory, llama.spec, copies=copies).prompt_logprobs(prompt, CHOSEN, chunks)
        for copies in (emulated, None)
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [HeadSelectMode.SHARED, HeadSelectMode.SEPARATE])
@pytest.mark.parametrize("max_cached_block", [3, None])
def test_blocks_that_travel_ahead_of_their_layer(
    llama: TinyModel, mode: HeadSelectMode, max_cached_block: int | None
) -> None:
    axes = memory(topk=3, execution_block=32, sinks=16, head_select_mode=mode)
    options = {"max_cached_block": max_cached_block}
    driver = Driver(llama.directory, llama.spec, prefetch=True, copies=emulated, **options)  # type: ignore[arg-type]
    check_same(driver, Driver(llama.directory, llama.spec, **options), prompt_of(llama, 180), axes, 36)  # type: ignore[arg-type]


def test_the_first_token_finds_its_window_on_the_device_when_it_is_fetched_ahead(llama: TinyModel) -> None:
    """Every layer but the first: there is nothing before it to travel beside."""
    prompt, first_hits = prompt_of(llama, 180), []
    for prefetch in (False, True):
        driver = Driver(llama.directory, llama.spec, prefetch=prefetch, copies=emulated)
        driver.step(opens=(driver.open(1, prompt, CHOSEN),))
        driver.step(segments=(Segment(1, 0, tuple(prompt), sample=False),))
        result = driver.worker.step(StepPlan(9, segments=(Segment(1, len(prompt), (5,), sample=True),)))
        first_hits.append(result.cache_hits)
    assert first_hits[0] == 0
    assert first_hits[1] > 0


@pytest.mark.parametrize("axes", [memory(), CHOSEN], ids=["streamed", "selected"])
def test_a_missing_wait_shows_as_a_wrong_token(llama: TinyModel, axes: MemorySpec) -> None:
    prompt = prompt_of(llama, 180)
    assert Driver(llama.directory, llama.spec, copies=emulated).generate(prompt, axes, (64,), 6)
    racing = Driver(llama.directory, llama.spec, copies=partial(emulated, handle=Forgotten, delay_s=0.05))
    with pytest.raises(MoorageError, match="not a finite number"):
        racing.generate(prompt, axes, (64,), 6)


def test_a_half_of_the_ring_is_free_again_before_it_takes_more(llama: TinyModel) -> None:
    """Copies that read the ring late would bring blocks that came after their own."""
    del llama
    order: list[str] = []

    class Link:
        shard = None

        def call(self, operation: CopyBlocks) -> np.ndarray:
            order.append(f"in {operation.blocks.tolist()}")
            return operation.blocks[:, None, None, None, None]

    ring = StagingRing(torch.zeros(2, 2, 2, 1, 4, 8))
    blocks = np.arange(5, dtype=np.int32)
    for part, staged, busy in ring.pass_through(Link(), 1, 0, blocks):  # type: ignore[arg-type]
        assert staged[:, 0, 0, 0, 0].tolist() == blocks[part].tolist()
        busy(partial(order.append, f"out {blocks[part].tolist()}"))
    assert order == ["in [0, 1]", "in [2, 3]", "out [0, 1]", "in [4]"]
