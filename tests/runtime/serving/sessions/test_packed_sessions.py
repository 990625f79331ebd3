"""Sessions over packed blocks: answers are those of a fresh server, and admission counts the pages that are held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from moorage.runtime.cluster.bringup import cluster_of
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.planning.launch_plan import plan_launch
from moorage.runtime.planning.worker_settings import worker_settings
from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.executor import LocalExecutor
from moorage.runtime.serving.protocol import Finished
from tests.counting_executor import collect, token_ids, until

LOCAL = Path(__file__).resolve().parents[4] / "deploy" / "local.yaml"
SETTINGS = ("kv_store.dram=8MiB", "kv_store.actors=2", "server.max_running=2", "gpu_workers.device=cpu")
DOCUMENT = [(7 * place) % 1000 for place in range(600)]


@asynccontextmanager
async def serving(folder: Path, *settings: str) -> AsyncIterator[tuple[Coordinator, LocalExecutor]]:
    """A server over real stores and a real model, which saves sessions in `folder`."""
    given = (*SETTINGS, f"sessions.path={folder}", "long_context.kv_type=NUQ3", *settings)
    plan = plan_launch(load_cluster_config(LOCAL, given))
    pages = [plan.pages_per_actor] * plan.config.kv_store.actors
    executor = LocalExecutor.start(worker_settings(plan.config, plan.deployment), pages)
    coordinator = Coordinator(cluster_of(plan, executor, plan.step_tokens))
    try:
        yield coordinator, executor
    finally:
        await coordinator.close()


async def ask(
    coordinator: Coordinator, prompt: list[int], session: str | None = None
) -> tuple[list[int], int]:
    """Greedy tokens, and how many of the prompt's were cached."""
    events = await collect(coordinator, prompt=prompt, max_new_tokens=40, session=session, ignore_eos=True)
    assert isinstance(events[-1], Finished)
    return token_ids(events), events[-1].usage.cached_tokens


async def pages_agree(coordinator: Coordinator, executor: LocalExecutor) -> None:
    """Once the worker has done what it was told last, it holds the pages that the coordinator counts."""

    def do() -> bool:
        free = coordinator._loop.scheduler.free.pages
        return tuple(store.stats().free_pages for store in executor.stores) == free

    await until(do)
    for store in executor.stores:
        store.check_integrity()


@pytest.mark.parametrize("preset", ["full", "moorage"])
async def test_turns_forks_and_prefixes_mean_what_fresh_prompts_mean(tmp_path: Path, preset: str) -> None:
    setting = f"memory.preset={preset}"
    questions = {name: [*DOCUMENT, n, n + 1, n + 2] for n, name in enumerate(("talk", "branch", "other"))}
    expected = {}
    for name, prompt in questions.items():
        async with serving(tmp_path / "fresh", setting) as (fresh, _):
            expected[name], _ = await ask(fresh, prompt)
    async with serving(tmp_path / "saved", setting) as (coordinator, executor):
        await ask(coordinator, DOCUMENT, "talk")
        await pages_agree(coordinator, executor)
        await coordinator.sessions.fork("talk", "branch")
        for name, prompt in questions.items():
            found, cached = await ask(coordinator, prompt, None if name == "other" else name)
            assert (found, cached >= 512) == (expected[name], True)
            await pages_agree(coordinator, executor)
        both = await asyncio.gather(*(ask(coordinator, questions[name], name) for name in ("talk", "branch")))
        assert [tokens for tokens, _ in both] == [expected["talk"], expected["branch"]]
        await pages_agree(coordinator, executor)
        for info in await coordinator.sessions.list():
            await coordinator.sessions.delete(info.name)
        await pages_agree(coordinator, executor)


async def test_after_a_restart_a_session_goes_on_with_the_same_tokens(tmp_path: Path) -> None:
    question = [*DOCUMENT, 5, 6, 7]
    async with serving(tmp_path) as (before, _):
        await ask(before, DOCUMENT, "talk")
        await before.sessions.save("talk")
        want = await ask(before, question, "talk")
    async with serving(tmp_path) as (after, executor):
        await after.sessions.load("talk")
        await pages_agree(after, executor)
        assert await ask(after, question, "talk") == want
        assert want[1] > 0


async def test_sessions_make_room_for_others(tmp_path: Path) -> None:
    """Prompts that take nearly all pages: idle sessions are evicted, and nothing is lost or counted twice."""
    async with serving(tmp_path, "kv_store.dram=1400KiB", "kv_store.actors=1") as (coordinator, executor):
        for turn in range(4):
            prompt = [(turn + 7 * place) % 1000 for place in range(600)]
            await ask(coordinator, prompt, f"s{turn}")
            await pages_agree(coordinator, executor)
        assert 1 <= len(await coordinator.sessions.list()) < 4
