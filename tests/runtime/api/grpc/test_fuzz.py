"""Drawn calls: no error of the server's own, nothing lost, and the server goes on.

MOORAGE_FUZZ_CALLS and MOORAGE_FUZZ_SEED give the slow tests other numbers.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice

import grpc
import pytest
import structlog

from moorage.client import AsyncClient, Progress, Token
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.serving.coordinator import Coordinator
from tests.runtime.api.grpc.conftest import Service
from tests.runtime.api.grpc.drawn_calls import Call, calls
from tests.runtime.api.http.real_server import coordinating

Code = grpc.StatusCode
OWN_FAULTS = {Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS, Code.UNAVAILABLE}
NUM_CALLS = int(os.environ.get("MOORAGE_FUZZ_CALLS", "1500"))
SEED = int(os.environ.get("MOORAGE_FUZZ_SEED", "1"))
AT_ONCE = 8
_OF_THE_CLIENT = "Internal error from Core"
"""What gRPC's client says, as INTERNAL, when its time limit passes while it sends."""


async def code_of(channel: grpc.aio.Channel, call: Call, timeout_s: float) -> Code:
    """The status of one call, whose answer is read to its end."""
    if call.streams:
        running = channel.stream_stream(call.method)(iter(call.messages), timeout=timeout_s)
    else:
        running = channel.unary_unary(call.method)(call.messages[0], timeout=timeout_s)
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        if call.streams:
            while await running.read() is not grpc.aio.EOF:
                pass
        else:
            await running
    code: Code = await running.code()
    return Code.DEADLINE_EXCEEDED if await running.details() == _OF_THE_CLIENT else code


async def codes_of(address: str, drawn: Iterator[Call], draw: random.Random) -> Counter[Code]:
    """All calls, some at once; fails where one ends, or is logged, as a fault of the server's own."""
    found: Counter[Code] = Counter()
    with structlog.testing.capture_logs() as logs:
        await _make(address, drawn, draw, found)
    assert [line for line in logs if line["log_level"] == "error"] == []
    return found


async def _make(address: str, drawn: Iterator[Call], draw: random.Random, found: Counter[Code]) -> None:
    async with grpc.aio.insecure_channel(address) as channel:

        async def work() -> None:
            for call in drawn:
                code = await code_of(channel, call, draw.choice((0.005, 0.02, 0.2, 5.0)))
                assert code not in OWN_FAULTS, (code, call)
                found[code] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())


async def test_drawn_calls_are_answered_or_refused(service: Service) -> None:
    found = await codes_of(service.address, islice(calls(SEED), 400), random.Random(SEED))
    assert sum(found.values()) == 400
    assert found[Code.OK] > 40
    assert found[Code.INVALID_ARGUMENT] > 40
    # Few deadlines are long enough for it where the machine is busy.
    assert len(service.engine.seen) > 5, "some of them reach the engine"


def test_a_seed_gives_the_same_calls() -> None:
    assert list(islice(calls(3), 20)) == list(islice(calls(3), 20)) != list(islice(calls(4), 20))


@dataclass
class Real:
    """A gRPC server with a real engine, and its coordinator."""

    address: str
    coordinator: Coordinator

    async def held(self) -> tuple[int, int]:
        """Sessions and pages that are held once no request runs."""
        async with asyncio.timeout(60):
            while (status := await self.coordinator.status()).running or status.waiting:
                await asyncio.sleep(0.01)
        assert status.failed_steps_total == 0
        assert status.state == "serving"
        actors = status.kv_actors
        return sum(actor.num_sessions for actor in actors), sum(actor.used_bytes for actor in actors)


@asynccontextmanager
async def real_service() -> AsyncIterator[Real]:
    async with coordinating() as coordinator:
        server = ApiServer()
        address = await server.start("127.0.0.1:0")
        await server.serve(coordinator)
        yield Real(address, coordinator)
        await coordinator.close()
        await server.stop()


@pytest.mark.slow
async def test_drawn_calls_leave_a_real_engine_whole() -> None:
    async with real_service() as real:
        found = await codes_of(real.address, islice(calls(SEED), NUM_CALLS), random.Random(SEED))
        print(NUM_CALLS, "calls:", {code.name: count for code, count in found.items()})
        assert sum(found.values()) == NUM_CALLS
        async with AsyncClient(real.address) as client:
            for session in await client.sessions.list():
                await client.sessions.delete(session.name)
            assert (await client.generate([1, 2, 3], max_new_tokens=3).result()).usage.completion_tokens == 3
        assert await real.held() == (0, 0)


@pytest.mark.slow
async def test_a_retry_after_a_cut_prefill_pays_only_the_rest() -> None:
    prompt = [random.Random(5).randrange(3, 500) for _ in range(6000)]
    async with real_service() as real, AsyncClient(real.address) as client:
        read = 0
        async with client.generate(prompt, max_new_tokens=4, session="cut") as stream:
            async for event in stream:
                assert not isinstance(event, Token), "the prompt is longer than one step reads"
                if isinstance(event, Progress):
                    read = event.prefilled_tokens
                    break
        assert 0 < read < len(prompt)
        await real.held()
        retried = await client.generate(prompt, max_new_tokens=4, session="cut").result()
        assert retried.usage.cached_tokens >= read - 128
        fresh = await client.generate(prompt, max_new_tokens=4).result()
        assert retried.token_ids == fresh.token_ids
