"""Background tasks: whatever ends or troubles them is in the log, and their owner hears of it."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from moorage.runtime.cluster.background_tasks import essential, log_stray_errors, repeated
from moorage.workers.errors import PeerDead, Unavailable


async def broken() -> None:
    raise ZeroDivisionError("a secret")


async def test_work_that_the_server_needs_never_ends_silently() -> None:
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(Unavailable, match="the loop ended with Zero"),
    ):
        await essential("the loop", broken())
    assert logs[0]["kind"] == "ZeroDivisionError"
    assert "in broken: raise ZeroDivisionError" in logs[0]["exception"]
    with pytest.raises(Unavailable, match="the loop has ended"):
        await essential("the loop", asyncio.sleep(0))


async def test_an_error_with_a_message_of_its_own_is_passed_on() -> None:
    async def dead() -> None:
        raise PeerDead("kv-0 is gone")

    with pytest.raises(PeerDead, match="kv-0 is gone"):
        await essential("the loop", dead())


async def test_what_is_done_again_and_again_survives_and_is_logged_once_for_each_kind() -> None:
    calls = 0

    async def troubled() -> None:
        nonlocal calls
        calls += 1
        raise [KeyError, KeyError, OSError][min(calls, 3) - 1]()

    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(repeated("the view", troubled, 0))
        while calls < 6:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [entry["kind"] for entry in logs] == ["KeyError", "OSError"]


async def test_what_nobody_waits_for_is_logged_without_its_message() -> None:
    loop = asyncio.get_running_loop()
    log_stray_errors(loop)
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(broken())
        await asyncio.sleep(0.01)
        del task
        loop.call_soon(int, "a secret")
        await asyncio.sleep(0.01)
    assert [entry["kind"] for entry in logs] == ["ZeroDivisionError", "ValueError"]
    assert "secret" not in "".join(entry["exception"].rpartition("\n")[2] for entry in logs)
