"""Grammars through the whole service: a real coordinator and worker behind a real gRPC server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moorage.client import AsyncClient, InvalidRequest, Token
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.cluster.bringup import cluster_of, grammars_of
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.planning.launch_plan import plan_launch
from moorage.runtime.planning.worker_settings import worker_settings
from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.executor import LocalExecutor
from tests.runtime.text.test_grammar import BOMBS, WORK

LOCAL = Path(__file__).resolve().parents[4] / "deploy" / "local.yaml"
SETTINGS = ("kv_store.dram=32MiB", "kv_store.actors=1", "server.max_running=4", "gpu_workers.device=cpu")
PROMPT = [5, 6, 7, 8] * 10


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    plan = plan_launch(load_cluster_config(LOCAL, SETTINGS))
    executor = LocalExecutor.start(worker_settings(plan.config, plan.deployment), [plan.pages_per_actor])
    coordinator = Coordinator(cluster_of(plan, executor, plan.step_tokens, grammars=grammars_of(plan)))
    server = ApiServer()
    address = await server.start("127.0.0.1:0")
    await server.serve(coordinator)
    try:
        async with AsyncClient(address) as client:
            yield client
    finally:
        await server.stop()
        await coordinator.close()


async def test_answers_follow_their_grammars_beside_free_ones(client: AsyncClient) -> None:
    shape = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    options: Any = {"max_new_tokens": 200, "ignore_eos": True}
    free = await client.generate(PROMPT, **options).result()
    together = await asyncio.gather(
        client.generate(PROMPT, **options).result(),
        client.generate(PROMPT, regex="[0-9]{3}", **options).result(),
        client.generate(PROMPT, json_schema={**shape, "additionalProperties": False}, **options).result(),
        client.generate(PROMPT, lark='start: "x" "y"', **options).result(),
    )
    assert together[0].token_ids == free.token_ids
    assert re.fullmatch("[0-9]{3}", together[1].text)
    assert isinstance(json.loads(together[2].text)["ok"], bool)
    assert together[3].text == "xy"
    assert [answer.finish_reason for answer in together[1:]] == ["stop"] * 3


async def test_hostile_grammars_hold_up_no_one(client: AsyncClient) -> None:
    """Other tokens flow while each of them is refused, fails, or is followed."""

    async def ask(kind: str, text: str) -> str:
        try:
            asked: Any = {kind: text, "max_new_tokens": 4}
            await client.generate(PROMPT, **asked).result()
        except (InvalidRequest, TypeError) as error:
            return str(error)
        return "followed"

    tokens = 0
    async with client.generate(PROMPT, max_new_tokens=400, ignore_eos=True) as stream:
        asking = asyncio.gather(*(ask(one.kind, one.text) for one in (*BOMBS.values(), *WORK.values())))
        async for event in stream:
            tokens += isinstance(event, Token)
        outcomes = dict(zip((*BOMBS, *WORK), await asking, strict=True))
    assert tokens == 400
    assert not [name for name in BOMBS if outcomes[name] == "followed"]
    assert await client.generate(PROMPT, regex="a", max_new_tokens=4).result()


async def test_a_grammar_without_a_kind_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="regex is empty"):
        await client.generate(PROMPT, regex="").result()
