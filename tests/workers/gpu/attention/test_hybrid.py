"""Selected blocks that the device does not hold, attended by the host: the same tokens, and fewer copies."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from moorage.workers.gpu.attention import hybrid
from moorage.workers.gpu.attention.host_blocks import attend_on_host
from moorage.workers.gpu.positions import rotary_tables
from moorage.workers.gpu.settings import CacheStrategy
from moorage.workers.kv.formats import format_of
from moorage.workers.spec import AnchorType, HeadSelectMode, KvType, Positions
from tests.emulated_copies import EmulatedCopies
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of
from tests.workers.gpu.test_overlap import CHOSEN, FarLink, check_same, chosen_at, emulated


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of entries of each call of the host's attention."""
    counts: list[int] = []

    def count(*arguments: object, **options: object) -> object:
        counts.append(len(arguments[4].blocks))  # type: ignore[attr-defined]
        return attend_on_host(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hybrid, "attend_on_host", count)
    return counts


@pytest.mark.parametrize("strategy", ["lru", "lru-s"])
@pytest.mark.parametrize("mode", list(HeadSelectMode))
@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA])
def test_the_same_tokens_as_from_slots(
    llama: TinyModel,
    attended: list[int],
    positions: Positions,
    mode: HeadSelectMode,
    strategy: CacheStrategy,
) -> None:
    axes = chosen_at(positions, mode)
    new = partial(Driver, llama.directory, llama.spec, max_cached_block=4, cache_strategy=strategy)
    aside, fetching = new(copies=emulated, attend_on="cpu"), new(copies=emulated)
    check_same(aside, fetching, prompt_of(llama, 180), axes)
    assert attended
    assert max(attended) <= 2 * 3, "the window and the sinks are the device's"
    aside.worker.engine.check_integrity()


@pytest.mark.parametrize("kv_type", [KvType.FP16, KvType.FP32, KvType.NUQ3])
def test_without_copies_under_way(llama: TinyModel, attended: list[int], kv_type: KvType) -> None:
    new = partial(Driver, llama.directory, llama.spec, kv_type=kv_type, in_place=False)
    check_same(new(attend_on="cpu"), new(), prompt_of(llama, 150), CHOSEN)
    # Packed blocks are decoded on their way to the device.
    assert bool(attended) == format_of(kv_type).is_native


def test_every_block_beyond_the_window(llama: TinyModel, attended: list[int]) -> None:
    """A budget that covers them all: the first step leaves them to the host, the second has them in slots."""
    axes = memory(topk=64, execution_block=32, sinks=16)
    new = partial(Driver, llama.directory, llama.spec, max_cached_block=64, copies=emulated)
    check_same(new(attend_on="cpu"), new(), prompt_of(llama, 180), axes, 6)
    assert len(attended) < 6 * llama.spec.num_layers


def test_blocks_of_another_host_are_fetched(llama: TinyModel, attended: list[int]) -> None:
    def unmapped(*_: object) -> None:
        return None

    def far(store: object) -> FarLink:
        link = FarLink(store)  # type: ignore[arg-type]
        link.pages = unmapped  # type: ignore[method-assign, assignment]
        return link

    driver = Driver(llama.directory, llama.spec, copies=emulated, link=far, attend_on="cpu")
    plain = Driver(llama.directory, llama.spec, in_place=False)
    check_same(driver, plain, prompt_of(llama, 150), CHOSEN)
    assert not attended


def test_what_is_chosen_once_never_travels(llama: TinyModel) -> None:
    """Fewer blocks are copied than when every missing one is."""
    axes, copied = memory(topk=2, execution_block=32, sinks=16), []
    for attend_on in ("cpu", "device"):
        driver = Driver(
            llama.directory,
            llama.spec,
            block_size=4,
            max_cached_block=2,
            copies=emulated,
            attend_on=attend_on,  # type: ignore[arg-type]
        )
        driver.generate(prompt_of(llama, 250, 1), axes, (64,), 40)
        assert isinstance(driver.worker.engine.copies, EmulatedCopies)
        copied.append(driver.worker.engine.copies.num_copies)
    assert 0 < copied[0] < copied[1]


def test_anchors_that_read_rows_of_generated_tokens(llama: TinyModel, attended: list[int]) -> None:
    new = partial(Driver, llama.directory, llama.spec, anchor_type=AnchorType.DYNAMIC, copies=emulated)
    check_same(new(attend_on="cpu"), new(), prompt_of(llama, 150), CHOSEN, 24)
    assert attended


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA])
def test_beside_attention_from_tables(
    llama: TinyModel, attended: list[int], positions: Positions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device turns the query by its tables, the host by the entries' angles."""
    pytest.importorskip("triton")
    axes = chosen_at(positions)
    prompt = prompt_of(llama, 110)
    plain = Driver(llama.directory, llama.spec).generate(prompt, axes, (64,), 5)
    attended.clear()
    monkeypatch.setattr(rotary_tables, "uses_tables", lambda _device: True)
    driver = Driver(llama.directory, llama.spec, copies=emulated, attend_on="cpu")
    found = driver.generate(prompt, axes, (64,), 5)
    assert attended
    assert [r.token_id for r in found] == [r.token_id for r in plain]
    np.testing.assert_allclose([r.logprob for r in found], [r.logprob for r in plain], atol=2e-4)  # type: ignore[arg-type]
