from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from moorage.workers.gpu.engine import device_warm_up
from moorage.workers.gpu.engine.device_warm_up import BATCHES, warm_up_device
from moorage.workers.gpu.positions import rotary_tables
from moorage.workers.spec import KvType
from tests.engine_driver import Driver
from tests.packed_link import InterpretedPackedCopies
from tests.tiny_models import build_tiny_checkpoint


@pytest.mark.parametrize(("num_pages", "batches"), [(128, len(BATCHES)), (8, 2), (1, 0)])
def test_it_runs_what_there_is_room_for_and_leaves_nothing(
    tmp_path: Path, num_pages: int, batches: int
) -> None:
    model = build_tiny_checkpoint("llama3", tmp_path)
    driver = Driver(model.directory, model.spec, num_pages=num_pages)
    engine = driver.worker.engine
    assert warm_up_device(engine, driver.stores[0].layout, model.spec, torch.device("cpu")) == batches
    assert engine.sessions == {}
    engine.check_integrity()
    for store in driver.stores:
        assert store.stats().num_sessions == 0
        assert store.stats().free_pages == num_pages


def test_packed_blocks_are_streamed_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the attention over them is compiled before a request with full attention comes."""
    pytest.importorskip("triton")
    monkeypatch.setattr(rotary_tables, "uses_tables", lambda _device: True)
    monkeypatch.setattr(device_warm_up, "BATCHES", (1,))
    model = build_tiny_checkpoint("llama3", tmp_path)
    copies = partial(InterpretedPackedCopies, device=torch.device("cpu"), dma_bytes=0)
    driver = Driver(model.directory, model.spec, kv_type=KvType.INT8, in_place=False, copies=copies)
    engine = driver.worker.engine
    assert warm_up_device(engine, driver.stores[0].layout, model.spec, torch.device("cpu")) == 1
    assert engine.copies.num_streamed >= model.spec.num_stored_layers  # type: ignore[attr-defined]
    assert engine.sessions == {}
