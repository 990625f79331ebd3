"""Which problem a cluster tells, and who is woken by it."""

from __future__ import annotations

import asyncio

import pytest

from moorage.runtime.serving.health import ClusterHealth, Problem
from moorage.workers.errors import Unavailable


def test_all_is_well_until_a_problem_is_reported_and_again_once_it_is_cleared() -> None:
    health = ClusterHealth()
    health.check()
    health.report("kv-0", "kv-0 is stopped")
    with pytest.raises(Unavailable, match="kv-0 is stopped"):
        health.check()
    health.clear("worker")
    assert health.problem == Problem("kv-0 is stopped")
    health.clear("kv-0")
    assert health.problem is None


def test_a_fatal_problem_is_told_before_others_and_stays() -> None:
    health = ClusterHealth()
    health.report("kv-0", "kv-0 is stopped")
    health.report("worker", "the worker is gone", fatal=True)
    assert health.problem == Problem("the worker is gone", fatal=True)
    health.report("worker", "the worker is stopped")
    health.clear("worker")
    health.clear("kv-0")
    assert health.problem == Problem("the worker is gone", fatal=True)


def test_the_most_severe_problem_is_told() -> None:
    health = ClusterHealth()
    health.report("kv-0", "kv-0 is stopped")
    health.report("kv-1", "kv-1 is stopped")
    health.report("kv-1", "kv-1 is stopped for long", fails_requests=True)
    assert health.problem == Problem("kv-1 is stopped for long", fails_requests=True)
    health.clear("kv-1")
    assert health.problem == Problem("kv-0 is stopped")


def test_a_waiter_is_woken_by_every_change_even_by_one_that_came_before_it_waited() -> None:
    async def run() -> list[Problem | None]:
        health = ClusterHealth()
        health.report("kv-0", "stopped")
        heard = [await health.changed()]
        waiting = asyncio.create_task(health.changed())
        await asyncio.sleep(0)
        assert not waiting.done()
        health.clear("kv-0")
        return [*heard, await waiting]

    assert asyncio.run(run()) == [Problem("stopped"), None]
