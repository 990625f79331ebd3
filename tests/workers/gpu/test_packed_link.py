"""The engine over packed blocks that its device expands: the same tokens, for fewer bytes on the link."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from moorage.workers.gpu.positions import rotary_tables
from moorage.workers.kv.formats import format_of
from moorage.workers.spec import HeadSelectMode, KvType, MemorySpec, Positions, Segment, StepPlan
from tests.engine_driver import FULL, Driver
from tests.packed_link import InterpretedPackedCopies
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.test_packed_formats import SELECTED, SIZE, prompt_of, quantizer_of, tokens_of

pytest.importorskip("triton")
FORMATS = [
    pytest.param(kind, marks=[] if kind in (KvType.NF4, KvType.NUQ2) else [pytest.mark.slow])
    for kind in KvType
    if not format_of(kind).is_native
]


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


def test_the_same_tokens_over_several_stores(model: TinyModel) -> None:
    prompt, quantizer, count = prompt_of(model, 120), quantizer_of(model, 3), SIZE + 4
    want = driver_of(model, KvType.NUQ3, quantizer=quantizer, num_shards=3).generate(
        prompt, SELECTED, [64, 50], num_tokens=count
    )
    driver = driver_of(model, KvType.NUQ3, 1 << 40, quantizer=quantizer, num_shards=3)
    found = driver.generate(prompt, SELECTED, [64, 50], num_tokens=count)
    assert tokens_of(found) == tokens_of(want)
    assert driver.worker.engine.copies.num_expanded > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("axes", "kv_type", "dma_bytes"),
    [
        (FULL, KvType.NUQ3, 0),
        (FULL.replace(scheme=Positions.DCA, pretraining_length=60, dca_chunk=48), KvType.NUQ4, 1 << 40),
        (FULL.replace(head_select_mode=HeadSelectMode.SEPARATE), KvType.INT8, 0),
    ],
    ids=["full-dma", "dca-kernel", "separate-dma"],
)
def test_streamed_blocks_are_attended_as_they_are_packed(
    model: TinyModel, axes: MemorySpec, kv_type: KvType, dma_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU generated tokens attend what lies before the window piece by piece, and no piece is expanded."""
    prompt = prompt_of(model, 110)
    want = tokens_of(driver_of(model, kv_type).generate(prompt, axes, num_tokens=3))
    monkeypatch.setattr(rotary_tables, "uses_tables", lambda _device: True)
    driver = driver_of(model, kv_type, dma_bytes)
    opens = (driver.open(1, prompt, axes, 4),)
    (result,) = driver.step(opens=opens, segments=(Segment(1, 0, prompt, sample=True),))
    found, copies = [result], driver.worker.engine.copies
    expanded = copies.num_expanded  # type: ignore[attr-defined]
    for place in range(len(prompt), len(prompt) + 2):
        assert result.token_id is not None
        (result,) = driver.step(segments=(Segment(1, place, (result.token_id,), sample=True),))
        found.append(result)
    assert tokens_of(found) == want
    pieces = copies.num_streamed  # type: ignore[attr-defined]
    assert pieces == 2 * model.spec.num_stored_layers
    window = copies.num_expanded - expanded  # type: ignore[attr-defined]
    assert window <= 3 * model.spec.num_stored_layers


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
