"""The engine over packed blocks that its device expands: the same tokens, for fewer bytes on the link."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from moorage.workers.kv.formats import format_of
from moorage.workers.spec import KvType, MemorySpec, Segment, StepPlan
from tests.engine_driver import FULL, Driver
from tests.packed_link import InterpretedPackedCopies
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.test_packed_formats import SELECTED, SIZE, prompt_of, quantizer_of, tokens_of

pytest.importorskip("triton")
FORMATS = [kind for kind in KvType if not format_of(kind).is_native]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def driver_of(model: TinyModel, kv_type: KvType, dma_bytes: int | None = None, **options: object) -> Driver:
    """With the blocks expanded by the device if `dma_bytes` is given, else by the stores."""
    copies = dma_bytes is not None and partial(
        InterpretedPackedCopies, device=torch.device("cpu"), dma_bytes=dma_bytes
    )
    return Driver(
        model.directory,
        model.spec,
        block_size=SIZE,
        kv_type=kv_type,
        in_place=False,
        copies=copies or None,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kv_type", FORMATS)
def test_the_same_tokens_in_every_format(model: TinyModel, kv_type: KvType) -> None:
    prompt = prompt_of(model, 70)
    want = tokens_of(driver_of(model, kv_type).generate(prompt, SELECTED, num_tokens=SIZE))
    found = driver_of(model, kv_type, 1 << 40).generate(prompt, SELECTED, num_tokens=SIZE)
    assert tokens_of(found) == want


@pytest.mark.parametrize(
    ("axes", "dma_bytes", "count"),
    [(FULL, 0, 3), (SELECTED, 0, SIZE + 4), (SELECTED, 1 << 40, SIZE + 4)],
    ids=["full-dma", "selected-dma", "selected-kernel"],
)
def test_the_same_tokens_over_several_stores(
    model: TinyModel, axes: MemorySpec, dma_bytes: int, count: int
) -> None:
    prompt, quantizer = prompt_of(model, 120), quantizer_of(model, 3)
    want = driver_of(model, KvType.NUQ3, quantizer=quantizer, num_shards=3).generate(
        prompt, axes, [64, 50], num_tokens=count
    )
    driver = driver_of(model, KvType.NUQ3, dma_bytes, quantizer=quantizer, num_shards=3)
    found = driver.generate(prompt, axes, [64, 50], num_tokens=count)
    assert tokens_of(found) == tokens_of(want)
    assert driver.worker.engine.copies.num_expanded > 0  # type: ignore[attr-defined]


def test_the_link_carries_packed_blocks(model: TinyModel) -> None:
    prompt = prompt_of(model, 9 * SIZE)
    moved = []
    for dma_bytes in (None, 0):
        driver = driver_of(model, KvType.NUQ3, dma_bytes)
        opens = (driver.open(1, prompt, FULL, 8),)
        token = driver.step(opens=opens, segments=(Segment(1, 0, prompt, sample=True),))[0].token_id
        assert token is not None
        result = driver.worker.step(StepPlan(2, segments=(Segment(1, len(prompt), (token,), sample=True),)))
        moved.append(result.link_bytes)
    layout = driver.stores[0].layout
    # All blocks but the first, which holds the sinks, have been packed when the next token opens a block.
    saved = 8 * layout.num_layers * (layout.slot_bytes - layout.block_bytes)
    assert moved[0] - moved[1] == saved
