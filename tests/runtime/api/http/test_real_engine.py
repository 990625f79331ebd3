"""The routes over the real coordinator, worker, stores and text process, with the embedded model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
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
FACT = "The pass key is 48213. Remember it. 48213 is the pass key."


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


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    plan = plan_launch(load_cluster_config(LOCAL, SETTINGS))
    text = text_of(plan)
    assert text is not None
    await text.start()
    executor = LocalExecutor.start(worker_settings(plan.config, plan.deployment), [plan.pages_per_actor] * 2)
    cluster = cluster_of(plan, executor, plan.step_tokens, text, grammars_of(plan))
    coordinator, server = Coordinator(cluster), HttpServer()
    address = await server.start("127.0.0.1:0")
    server.serve(coordinator)
    async with AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
        yield Served(client, coordinator)
    await coordinator.close()
    await server.stop()


async def test_text_goes_in_text_comes_out_and_an_echo_tells_what_was_likeliest(served: Served) -> None:
    asked: dict[str, Any] = {"model": "", "temperature": 0, "logprobs": 1}
    answer = await served.openai.completions.create(**asked, prompt=FACT, max_tokens=6)
    said, logprobs = answer.choices[0].text, answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == said
    echo = await served.openai.completions.create(**asked, prompt=FACT + said, max_tokens=1, echo=True)
    scored = echo.choices[0].logprobs
    assert scored is not None
    assert scored.tokens is not None
    assert scored.token_logprobs is not None
    assert scored.top_logprobs is not None
    assert echo.choices[0].text.startswith(FACT + said)
    # The answer was greedy: each of its tokens is the likeliest one at its place, as likely as it was told.
    own = range(len(scored.tokens) - 1 - len(logprobs.tokens), len(scored.tokens) - 1)
    assert [scored.tokens[place] for place in own] == logprobs.tokens
    assert [len(scored.top_logprobs[place]) for place in own] == [1] * len(own)
    told = [scored.token_logprobs[place] for place in own]
    assert told == pytest.approx(logprobs.token_logprobs, abs=1e-3)
    best = [max(top.values()) for top in scored.top_logprobs[1:]]
    assert all(given <= most for given, most in zip(scored.token_logprobs[1:], best, strict=True))
    assert any(given < most for given, most in zip(scored.token_logprobs[1:], best, strict=True))


async def test_a_session_pays_only_for_what_is_new(served: Served) -> None:
    for cached in (False, True):
        answer = await served.openai.completions.create(
            model="", prompt=FACT * 4, max_tokens=2, extra_body={"session_id": "mine", "preset": "full"}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert bool(answer.usage.prompt_tokens_details.cached_tokens) is cached


async def test_leaving_a_stream_frees_all_that_it_held(served: Served) -> None:
    for text in (FACT, FACT * 40):
        stream = await served.openai.completions.create(
            model="", prompt=text, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        await stream.close()
        await served.idle()


async def test_answers_follow_a_schema_each_for_itself(served: Served) -> None:
    schema = {"type": "object", "properties": {"key": {"type": "integer"}}, "required": ["key"]}
    answer = await served.openai.completions.create(
        model="", prompt=FACT, max_tokens=40, n=2, extra_body={"guided_json": schema, "top_k": 50}
    )
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.text)["key"], int)
        else:
            assert choice.text.lstrip().startswith("{")
