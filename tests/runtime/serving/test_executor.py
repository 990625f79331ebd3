"""A coordinator over workers in this process: what a cluster serves, without Ray."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from moorage.runtime.cluster.bringup import cluster_of
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.planning.launch_plan import LaunchPlan, plan_launch
from moorage.runtime.planning.worker_settings import worker_settings
from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.executor import LocalExecutor
from moorage.runtime.serving.protocol import Finished
from tests.counting_executor import collect, token_ids

LOCAL = Path(__file__).resolve().parents[3] / "deploy" / "local.yaml"
SETTINGS = ("kv_store.dram=32MiB", "kv_store.actors=2", "server.max_running=4", "gpu_workers.device=cpu")


@pytest.fixture(scope="module")
def plan() -> LaunchPlan:
    return plan_launch(load_cluster_config(LOCAL, SETTINGS))


@pytest.fixture
async def coordinator(plan: LaunchPlan) -> AsyncIterator[Coordinator]:
    executor = LocalExecutor.start(worker_settings(plan.config, plan.deployment), [plan.pages_per_actor] * 2)
    coordinator = Coordinator(cluster_of(plan, executor, plan.step_tokens))
    try:
        yield coordinator
    finally:
        await coordinator.close()


async def test_a_request_gets_the_tokens_that_the_engine_alone_gives(
    plan: LaunchPlan, coordinator: Coordinator
) -> None:
    prompt = [(7 * place) % plan.spec.vocab_size for place in range(300)]
    events = await collect(coordinator, prompt=prompt, max_new_tokens=8)
    engine = LocalEngine(plan.config, 308)
    try:
        assert token_ids(events) == list(engine.generate(prompt, 8))
    finally:
        engine.close()


async def test_questions_about_one_document_share_its_blocks_and_get_the_same_tokens(
    plan: LaunchPlan, coordinator: Coordinator
) -> None:
    document = [(7 * place) % plan.spec.vocab_size for place in range(300)]
    prompts = [[*document, *question] for question in ([5, 6], [9], [11, 3, 8])]
    answers = [await collect(coordinator, prompt=prompt, max_new_tokens=6) for prompt in prompts]
    cached = [events[-1].usage.cached_tokens for events in answers if isinstance(events[-1], Finished)]
    assert cached[0] == 0
    assert cached[1:] == [256, 256], "up to the last execution block that was whole"
    engine = LocalEngine(plan.config, 320)
    try:
        for prompt, events in zip(prompts, answers, strict=True):
            assert token_ids(events) == list(engine.generate(prompt, 6))
    finally:
        engine.close()


async def test_status_names_this_process_and_what_each_store_holds(coordinator: Coordinator) -> None:
    before = await coordinator.status()
    await collect(coordinator, prompt=[5] * 100, max_new_tokens=2, session="talk")
    after = await coordinator.status()
    assert before.worker_pids == after.worker_pids == (os.getpid(),)
    assert [actor.name for actor in after.kv_actors] == ["kv-0", "kv-1"]
    assert sum(actor.used_bytes for actor in before.kv_actors) == 0
    assert sum(actor.used_bytes for actor in after.kv_actors) > 0
    assert max(actor.num_sessions for actor in after.kv_actors) == 1


async def test_a_worker_that_can_not_start_leaves_no_store(plan: LaunchPlan, tmp_path: Path) -> None:
    settings = replace(worker_settings(plan.config, plan.deployment), model_dir=tmp_path)
    held = memfds()
    with pytest.raises(Exception, match="safetensors"):
        LocalExecutor.start(settings, [plan.pages_per_actor])
    assert memfds() == held


def memfds() -> int:
    """Anonymous files that this process has open."""
    links = (link for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link))
    return sum("memfd:" in os.readlink(link) for link in links)
