"""Coordinators over real stores and a real model, one after the other, that save sessions in one folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from moorage.runtime.cluster.bringup import cluster_of
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.planning.launch_plan import plan_launch
from moorage.runtime.planning.worker_settings import worker_settings
from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.executor import LocalExecutor

LOCAL = Path(__file__).resolve().parents[4] / "deploy" / "local.yaml"
SETTINGS = ("kv_store.dram=16MiB", "kv_store.actors=2", "server.max_running=2", "gpu_workers.device=cpu")
Serving = Callable[..., AbstractAsyncContextManager[Coordinator]]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Starts a coordinator that saves in one folder; several may follow one another."""

    @asynccontextmanager
    async def start(*settings: str) -> AsyncIterator[Coordinator]:
        plan = plan_launch(
            load_cluster_config(LOCAL, (*SETTINGS, f"sessions.path={tmp_path / 'saved'}", *settings))
        )
        executor = LocalExecutor.start(
            worker_settings(plan.config, plan.deployment),
            [plan.pages_per_actor] * plan.config.kv_store.actors,
        )
        coordinator = Coordinator(cluster_of(plan, executor, plan.step_tokens))
        try:
            yield coordinator
        finally:
            await coordinator.close()

    return start
