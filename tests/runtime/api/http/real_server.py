"""A real HTTP server with the real coordinator, worker, stores and text process of an embedded model behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from openai import AsyncOpenAI

from moorage.runtime.api.http.server import HttpServer
from moorage.runtime.cluster.bringup import cluster_of, grammars_of, text_of
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.planning.launch_plan import plan_launch
from moorage.runtime.planning.worker_settings import worker_settings
from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.executor import LocalExecutor

LOCAL = Path(__file__).resolve().parents[4] / "deploy" / "local.yaml"
SETTINGS = (
    "kv_store.dram=32MiB",
    "kv_store.actors=2",
    "server.max_running=4",
    "gpu_workers.device=cpu",
    "sessions.prefixes=false",
)


@dataclass
class Served:
    """A client of the server, and the coordinator behind it."""

    openai: AsyncOpenAI
    coordinator: Coordinator

    async def idle(self) -> None:
        """Waits until no request runs and no session is held."""
        async with asyncio.timeout(20):
            while (status := await self.coordinator.status()).running or status.kv_actors[0].num_sessions:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def coordinating(*settings: str) -> AsyncIterator[Coordinator]:
    """A coordinator with a served model, with `settings` above those of the example."""
    plan = plan_launch(load_cluster_config(LOCAL, (*SETTINGS, *settings)))
    text = text_of(plan)
    assert text is not None
    await text.start()
    executor = LocalExecutor.start(worker_settings(plan.config, plan.deployment), [plan.pages_per_actor] * 2)
    coordinator = Coordinator(cluster_of(plan, executor, plan.step_tokens, text, grammars_of(plan)))
    yield coordinator
    await coordinator.close()


@asynccontextmanager
async def serving(*settings: str) -> AsyncIterator[Served]:
    """A served model behind the HTTP server."""
    async with coordinating(*settings) as coordinator:
        server = HttpServer()
        address = await server.start("127.0.0.1:0")
        server.serve(coordinator)
        async with AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
            yield Served(client, coordinator)
        await coordinator.close()
        await server.stop()
