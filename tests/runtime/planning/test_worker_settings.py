"""A launch and an evaluation in one process start the same worker for one configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moorage.runtime.cluster.hooks import Hooks
from moorage.runtime.cluster.processes import ClusterProcesses
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.planning.launch_plan import LaunchPlan, plan_launch
from moorage.workers.errors import InvalidConfig
from moorage.workers.gpu import actor
from moorage.workers.gpu.settings import WorkerSettings

LOCAL = Path(__file__).resolve().parents[3] / "deploy" / "local.yaml"
SETTINGS = (
    "kv_store.dram=64MiB",
    "kv_store.stripe_blocks=4",
    "memory.cache_strategy=lru-s",
    "memory.score_decay=0.3",
    "memory.max_cached_block=40",
    "gpu_workers.device=cpu",
    "gpu_workers.device_memory=900MiB",
    "gpu_workers.score_on=cpu",
    "gpu_workers.attend_on=cpu",
    "gpu_workers.dma_bytes=64KiB",
    "gpu_workers.prefetch=true",
    "gpu_workers.num_threads=1",
)


@pytest.fixture
def plan() -> LaunchPlan:
    return plan_launch(load_cluster_config(LOCAL, SETTINGS))


def launched_settings(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> WorkerSettings:
    """The settings with which a launch would start the worker's actor."""
    started: list[WorkerSettings] = []
    monkeypatch.setattr(actor, "start_gpu_worker", lambda **given: started.append(given["settings"]))
    monkeypatch.setattr("moorage.runtime.cluster.processes._has_gpu", lambda _device: False)
    ClusterProcesses(plan, Hooks(lambda _ready: None))._start_worker()
    return started[0]


def test_evaluation_in_process_starts_the_worker_of_a_launch(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the number of slots differs, with the device memory that they leave for anchors."""
    launched = launched_settings(plan, monkeypatch)
    engine = LocalEngine(plan.config, 64)
    own = engine._settings
    engine.close()
    assert own.engine.num_slots < launched.engine.num_slots
    assert own.engine.anchor_bytes is not None
    assert launched.engine.anchor_bytes is not None
    fewer_slots_bytes = (launched.engine.num_slots - own.engine.num_slots) * plan.layout.block_bytes
    assert own.engine.anchor_bytes - launched.engine.anchor_bytes >= fewer_slots_bytes
    engine = replace(launched.engine, num_slots=own.engine.num_slots, anchor_bytes=own.engine.anchor_bytes)
    assert own == replace(launched, engine=engine)


def test_every_setting_of_the_worker_is_the_configurations(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = launched_settings(plan, monkeypatch)
    assert (settings.stripe_blocks, settings.num_threads, settings.device) == (4, 1, "cpu")
    engine = settings.engine
    assert engine.num_slots == plan.capacity.total.slots
    assert (engine.cache_strategy, engine.score_decay, engine.max_cached_block) == ("lru-s", 0.3, 40)
    assert (engine.score_on, engine.attend_on) == ("cpu", "cpu")
    assert (engine.dma_bytes, engine.prefetch) == (64 * 1024, True)


def test_an_evaluation_refuses_device_memory_that_holds_no_session() -> None:
    config = load_cluster_config(LOCAL, ["gpu_workers.device_memory=1MiB"])
    with pytest.raises(InvalidConfig, match=r"gpu_workers\.device_memory: 1\.00 MiB is too little"):
        LocalEngine(config, 64)
