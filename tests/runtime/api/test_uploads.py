"""Prompts that are being sent: silent and slow clients, floods of streams, and the memory they hold."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import MoorageStub
from moorage.runtime.api.grpc import interceptors
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.api.uploads import UploadLimits, Uploads, client_of
from moorage.workers.errors import ResourceExhausted
from tests.toy_engine import ToyEngine

Code = grpc.StatusCode
PARAMETERS = pb.GenerateRequest(parameters=pb.GenerateParameters(max_new_tokens=2))


def piece(data: bytes) -> pb.GenerateRequest:
    return pb.GenerateRequest(piece=pb.PromptPiece(text=data))


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[tuple[ApiServer, str]]:
    server = ApiServer(uploads=UploadLimits(**limits))
    address = await server.start("127.0.0.1:0")
    await server.serve(ToyEngine(max_seq_len=1 << 20))
    yield server, address
    await server.stop()


async def unfinished(stub: MoorageStub, *messages: pb.GenerateRequest) -> grpc.aio.StreamStreamCall:
    """A call that has sent so much and neither goes on nor ends."""
    call = stub.Generate()
    for message in messages:
        await call.write(message)
    return call


async def finished(stub: MoorageStub) -> list[str]:
    replies = [reply async for reply in stub.Generate([PARAMETERS, piece(b"ab")])]
    return [reply.WhichOneof("event") for reply in replies if reply.WhichOneof("event") != "progress"]


async def ending(call: Any) -> tuple[grpc.StatusCode, str]:
    async with asyncio.timeout(10):
        with suppress(grpc.aio.AioRpcError):
            if hasattr(call, "read"):
                while await call.read() is not grpc.aio.EOF:
                    pass
            else:
                await call
        return await call.code(), await call.details()


@pytest.mark.parametrize("sent", [(), (PARAMETERS,), (PARAMETERS, piece(b"ab"))])
async def test_a_client_that_falls_silent_is_cut_off(sent: tuple[pb.GenerateRequest, ...]) -> None:
    async with serving(silence_s=0.2) as (_, address), grpc.aio.insecure_channel(address) as channel:
        stub = MoorageStub(channel)
        code, details = await ending(await unfinished(stub, *sent))
        assert code is Code.DEADLINE_EXCEEDED
        assert "no message came for 0.2 s" in details
        assert await finished(stub) == ["accepted", "token", "token", "finished"]


async def test_a_client_that_trickles_is_cut_off() -> None:
    async with serving(total_s=0.4) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = await unfinished(MoorageStub(channel), PARAMETERS)

        async def trickle() -> None:
            while not call.done():
                await call.write(piece(b"a"))
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        code, details = await ending(call)
        await asyncio.gather(trickling, return_exceptions=True)
        assert code is Code.DEADLINE_EXCEEDED
        assert "bytes came in" in details


async def test_silent_streams_make_way_for_clients_that_send() -> None:
    """As many as there is room for, from several clients; health and others' requests are answered at once."""
    limits = {"max_uploads": 40, "max_client_uploads": 15, "yields_after_s": 0.0}
    async with serving(**limits) as (_, address), connections(address, 5) as channels:
        calls = [
            await unfinished(MoorageStub(channels[i % 4]), *[PARAMETERS][: i // 100]) for i in range(200)
        ]
        assert await finished(MoorageStub(channels[4])) == ["accepted", "token", "token", "finished"]
        health = health_pb2_grpc.HealthStub(channels[0])
        reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(10):
            while sum(call.done() for call in calls) < 160:
                await asyncio.sleep(0.01)
        codes = {await call.code() for call in calls if call.done()}
        assert codes == {Code.RESOURCE_EXHAUSTED}
        for call in calls:
            call.cancel()


def held_bodies() -> int:
    """Prompts that lie in memory files of this process."""
    return sum(
        "moorage-text" in os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    )


@asynccontextmanager
async def connections(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels with a connection each, as clients of their own have."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]
    yield channels
    for channel in channels:
        await channel.close()


async def test_what_waits_in_memory_is_bounded_and_given_back() -> None:
    limits = {"max_client_bytes": 4 << 20, "max_bytes": 6 << 20, "yields_after_s": 60.0}
    engine = ToyEngine(max_seq_len=1 << 10)
    server = ApiServer(uploads=UploadLimits(**limits))
    server_address = await server.start("127.0.0.1:0")
    await server.serve(engine)
    engine.max_seq_len = 1 << 20
    big = piece(b"a" * (1 << 20))
    async with connections(server_address, 2) as channels:
        one = [await unfinished(MoorageStub(channels[0]), PARAMETERS, big, big) for _ in range(3)]
        async with asyncio.timeout(10):
            while not any(call.done() for call in one):
                await asyncio.sleep(0.01)
        (refused,) = [call for call in one if call.done()]
        code, details = await ending(refused)
        assert code is Code.RESOURCE_EXHAUSTED
        assert "of this client hold" in details
        other = await unfinished(MoorageStub(channels[1]), PARAMETERS, big, big, big)
        code, details = await ending(other)
        assert code is Code.RESOURCE_EXHAUSTED
        assert "of this client" not in details
        for call in one:
            call.cancel()
        assert await finished(MoorageStub(channels[1])) == ["accepted", "token", "token", "finished"]
        async with asyncio.timeout(10):
            while held_bodies():
                await asyncio.sleep(0.01)
    await server.stop()


async def test_text_that_can_not_fit_is_refused_before_it_is_tokenised() -> None:
    async with serving() as (server, address), grpc.aio.insecure_channel(address) as channel:
        engine = ToyEngine(max_seq_len=100)
        await server.serve(engine)
        limit = 100 * engine.text.max_bytes_per_token
        call = MoorageStub(channel).Generate([PARAMETERS, piece(b"a" * limit), piece(b"a")])
        code, details = await ending(call)
        assert code is Code.INVALID_ARGUMENT
        assert f"more than {limit} bytes of text" in details
        assert "send token ids, or raise max_seq_len" in details
        assert engine.seen == []


async def test_watches_and_reflections_have_a_bound_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptors, "MAX_OTHER_STREAMS", 4)
    async with serving() as (_, address), grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(4)]
        for watch in watches:
            assert await watch.read()
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        code, details = await ending(reflect(iter([request])))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "more than 4 health watches" in details
        assert await finished(MoorageStub(channel)) == ["accepted", "token", "token", "finished"]
        watches[0].cancel()
        async with asyncio.timeout(10):
            while (await ending(again := reflect(iter([request]))))[0] is Code.RESOURCE_EXHAUSTED:
                assert again.done()


def test_only_the_silent_make_way() -> None:
    uploads = Uploads(UploadLimits(max_uploads=2, yields_after_s=60.0))
    with ExitStack() as stack:
        stack.enter_context(uploads.open("a"))
        stack.enter_context(uploads.open("b"))
        with pytest.raises(ResourceExhausted, match="2 prompts are being sent") as told:
            stack.enter_context(uploads.open("c"))
        assert told.value.retry_after_s
    with uploads.open("c"), uploads.open("d"):
        pass


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.7:4242", "ipv4:10.0.0.7"),
        ("ipv6:%5B2001:db8::1%5D:4242", "ipv6:%5B2001:db8::1%5D"),
        ("ipv4:127.0.0.1:4242", "ipv4:127.0.0.1:4242"),
        ("ipv6:%5B::1%5D:4242", "ipv6:%5B::1%5D:4242"),
        ("unix:", "unix:"),
    ],
)
def test_a_client_is_a_host_or_on_this_host_a_connection(peer: str, client: str) -> None:
    assert client_of(peer) == client
