"""The asyncio client against a real loopback server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator

import pytest

from moorage.client import Accepted, AsyncClient, Finished, Progress, Token
from moorage.workers.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    MoorageError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from tests.toy_engine import BOS
from tests.toy_server import ToyServer, toy_server


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server() as running:
        yield running


@pytest.fixture
async def client(server: ToyServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address, timeout_s=20) as opened:
        yield opened


async def test_events_then_result(client: AsyncClient) -> None:
    stream = client.generate("hé", max_new_tokens=8)
    events = [event async for event in stream]
    assert [type(event) for event in events] == [Accepted, *[Progress] * 2, *[Token] * 3, Finished]
    result = await stream.result()
    assert bytes(result.token_ids).decode() == "hé"


async def test_many_at_once(client: AsyncClient) -> None:
    prompts = [[1 + i, 2, 3] for i in range(16)]
    results = await asyncio.gather(*(client.generate(prompt).result() for prompt in prompts))
    assert [list(result.token_ids) for result in results] == prompts


async def test_score_and_unary_calls(client: AsyncClient) -> None:
    assert (await client.score([1, 2, 3])).num_tokens == 3
    assert await client.tokenize("a") == [BOS, 97]
    assert await client.detokenize([97]) == "a"
    assert [model.name for model in await client.models()] == ["toy"]
    assert (await client.status()).running == 1
    await client.wait_until_ready(5)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"temperature": math.nan}, InvalidRequest),
        ({"model": "other"}, NotFound),
        ({"preset": "busy"}, ResourceExhausted),
        ({"preset": "broken"}, MoorageError),
    ],
)
async def test_errors(client: AsyncClient, options: dict[str, object], kind: type) -> None:
    with pytest.raises(MoorageError) as caught:
        await client.generate([1], **options).result()  # type: ignore[arg-type]
    assert type(caught.value) is kind


async def test_leaving_stops_the_work(server: ToyServer, client: AsyncClient) -> None:
    server.engine.ended.clear()
    async with client.generate([1], session="endless") as stream:
        async for event in stream:
            if isinstance(event, Token):
                break
    async with asyncio.timeout(10):
        while not server.engine.ended.is_set():
            await asyncio.sleep(0.01)


async def test_cancel_is_told_apart_from_being_cancelled(client: AsyncClient) -> None:
    stream = client.generate([1], session="endless")
    asyncio.get_running_loop().call_later(0.2, stream.cancel)
    with pytest.raises(Cancelled):
        await stream.result()
    task = asyncio.create_task(client.generate([1], session="endless").result())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_deadline(client: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.generate([1], session="endless", timeout_s=0.2).result()


async def test_nobody_listens() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match="no server answers"):
            await client.generate("a").result()
        with pytest.raises(DeadlineExceeded):
            await client.wait_until_ready(0.1)
