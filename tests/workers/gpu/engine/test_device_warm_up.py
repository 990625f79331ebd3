from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moorage.workers.gpu.engine.device_warm_up import BATCHES, warm_up_device
from tests.engine_driver import Driver
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
