"""Generated tokens attended from tables, as on a GPU, by the Triton kernels under their interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.gpu.positions import rotary_tables
from moorage.workers.gpu.positions.rotary import BlockRanges, RotaryCache
from moorage.workers.spec import HeadSelectMode, KvType, MemorySpec, Positions
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of
from tests.workers.gpu.test_overlap import emulated

pytest.importorskip("triton")

SCHEMES = {
    "rope": memory(topk=2, execution_block=32),
    "clamped": memory(topk=2, execution_block=32, sinks=16, scheme=Positions.CLAMPED),
    "dca": memory(topk=2, scheme=Positions.DCA, pretraining_length=60, dca_chunk=48),
    "rolling": memory(topk=0, sinks=4, scheme=Positions.ROLLING),
    "per head": memory(topk=2, head_select_mode=HeadSelectMode.SEPARATE),
    "streamed": memory(),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture
def _tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary_tables, "uses_tables", lambda _device: True)


@pytest.mark.parametrize("axes", SCHEMES.values(), ids=SCHEMES)
def test_the_same_tokens_as_on_a_cpu(
    llama: TinyModel, axes: MemorySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(llama, 110)
    plain = Driver(llama.directory, llama.spec, cache_strategy="lru-s").generate(prompt, axes, (64,), 5)
    monkeypatch.setattr(rotary_tables, "uses_tables", lambda _device: True)
    driver = Driver(llama.directory, llama.spec, cache_strategy="lru-s", copies=emulated)
    found = driver.generate(prompt, axes, (64,), 5)
    assert [r.token_id for r in found] == [r.token_id for r in plain]
    np.testing.assert_allclose([r.logprob for r in found], [r.logprob for r in plain], atol=2e-4)  # type: ignore[arg-type]


def test_half_slots(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, axes = prompt_of(llama, 110), SCHEMES["rope"]
    plain = Driver(llama.directory, llama.spec, kv_type=KvType.FP16, in_place=False).generate(
        prompt, axes, (64,), 4
    )
    monkeypatch.setattr(rotary_tables, "uses_tables", lambda _device: True)
    found = Driver(llama.directory, llama.spec, kv_type=KvType.FP16, in_place=False).generate(
        prompt, axes, (64,), 4
    )
    np.testing.assert_allclose([r.logprob for r in found], [r.logprob for r in plain], atol=2e-2)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize("position", [3, 130, 4_000_001])
@pytest.mark.parametrize("axes", list(SCHEMES.values())[:4], ids=list(SCHEMES)[:4])
def test_tables_hold_the_angles_of_the_entries(axes: MemorySpec, position: int) -> None:
    """Also far out, where an angle computed in fp32 would be nonsense."""
    view = RopeView(torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64), 1.0)
    rotations = RotaryCache(view, axes, 4, torch.device("cpu"))
    span = BlockRanges.at(position, axes, 4)
    entries = rotations.window_blocks(span).joined(
        rotations.distant_blocks(span, np.arange(2, dtype=np.int32))
    )
    assert entries.angle_cos.shape[1] == 0
    tables = rotations.tables
    assert tables is not None
    query_cos, query_sin = (part.numpy() for part in tables._query_turns(position))
    base_cos, base_sin = (part.numpy() for part in tables._base_tables())
    turned = (query_cos + 1j * query_sin)[entries.variant] * (base_cos + 1j * base_sin)[entries.base]
    full = rotations.with_angles(position, entries)
    np.testing.assert_allclose(turned, full.angle_cos + 1j * full.angle_sin, atol=1e-6)
