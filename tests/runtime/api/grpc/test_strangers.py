"""Bytes that no stub of ours would send, over a real connection: one clear refusal each, and the server goes on."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf.internal import encoder
from grpc._cython.cygrpc import ExecuteBatchError

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.runtime.api.grpc.failures import carried, end
from moorage.runtime.api.grpc.server import ApiServer
from moorage.workers.errors import InvalidRequest

Code = grpc.StatusCode
UNARY = ("/moorage.v1.Moorage/Tokenize", "/moorage.v1.Moorage/GetStatus", "/grpc.health.v1.Health/Check")
STREAMS = (
    "/moorage.v1.Moorage/Generate",
    "/moorage.v1.Moorage/Score",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
GARBAGE = (b"\xff", b"\x0a\x7fshort", b"\x0b\x0b\x0b")


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    return encoder.TagBytes(number, 2) + encoder._VarintBytes(len(content)) + content


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    async with asyncio.timeout(10):
        with suppress(grpc.aio.AioRpcError):
            if hasattr(call, "read"):
                while await call.read() is not grpc.aio.EOF:
                    pass
            else:
                await call
        return await call.code(), await call.details()


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("method", UNARY)
async def test_a_message_that_is_no_protobuf(service: Any, method: str, garbage: bytes) -> None:
    code, details = await status_of(service.channel.unary_unary(method)(garbage))
    assert (code, "no valid protobuf" in details) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("method", STREAMS)
@pytest.mark.parametrize("after_parameters", [False, True])
async def test_a_stream_that_is_no_protobuf(
    service: Any, method: str, garbage: bytes, after_parameters: bool
) -> None:
    sent = [*[field(1, b"")] * (after_parameters and "Moorage" in method), garbage]
    code, details = await status_of(service.channel.stream_stream(method)(iter(sent)))
    assert (code, "no valid protobuf" in details) == (Code.INVALID_ARGUMENT, True)


LONE = b"\xed\xa0\x80"


@pytest.mark.parametrize(
    "parameters", [field(1, LONE), field(4, b"a" + LONE), field(5, LONE), field(6, LONE)]
)
async def test_lone_surrogates_in_any_string(service: Any, parameters: bytes) -> None:
    sent = [field(1, parameters), pb.GenerateRequest(piece=pb.PromptPiece(text=b"a")).SerializeToString()]
    code, details = await status_of(service.channel.stream_stream("/moorage.v1.Moorage/Generate")(iter(sent)))
    assert code is Code.INVALID_ARGUMENT
    assert details


@pytest.mark.parametrize("name", ["é" * 100_000, "\n" * 5000, "\x00", "日本" * 60, "'" * 9000])
async def test_names_of_any_length_and_kind_come_back_in_one_short_line(service: Any, name: str) -> None:
    piece = pb.GenerateRequest(piece=pb.PromptPiece(text=b"a"))
    for parameters in (
        pb.GenerateParameters(model=name),
        pb.GenerateParameters(session=name + "\n"),
        pb.GenerateParameters(preset=name + "\n"),
        pb.GenerateParameters(stop=[(name * 300)[:1000]]),
    ):
        call = service.stub.Generate([pb.GenerateRequest(parameters=parameters), piece])
        code, details = await status_of(call)
        assert code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)
        assert len(details) < 600
        assert details.isascii()
        assert details.isprintable()
    role = pb.GenerateRequest(piece=pb.PromptPiece(message=pb.ChatMessage(role=name + "\n", content=b"a")))
    call = service.stub.Generate([pb.GenerateRequest(parameters=pb.GenerateParameters()), role])
    assert (await status_of(call))[0] is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("message", ["é" * 5000, "\ud800" * 5000, "a\nb\n" * 3000, "%" * 5000, "plain"])
async def test_any_message_of_the_engine_reaches_the_client(
    service: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an error quotes, its status and its beginning arrive: metadata never overflow."""

    def refuse(*_: object) -> None:
        raise InvalidRequest(message)

    monkeypatch.setattr(service.engine, "_admit", refuse)
    piece = pb.GenerateRequest(piece=pb.PromptPiece(text=b"a"))
    call = service.stub.Generate([pb.GenerateRequest(parameters=pb.GenerateParameters()), piece])
    code, details = await status_of(call)
    assert code is Code.INVALID_ARGUMENT
    assert details == carried(message)
    assert details[:1] == (message[:1] if message[0] != "\ud800" else "\\")


async def test_a_status_that_its_client_does_not_wait_for_ends_the_call_as_grpc_does() -> None:
    class Left:
        """The context of a call that its client has ended."""

        async def abort(self, *_: object) -> None:
            raise ExecuteBatchError('Failed "execute_batch"')

    with pytest.raises(asyncio.CancelledError):
        await end(Left(), Code.INVALID_ARGUMENT, "a message")  # type: ignore[arg-type]


async def test_grpc_prints_no_traceback_for_a_client_that_left(caplog: pytest.LogCaptureFixture) -> None:
    ApiServer()
    for error in (ExecuteBatchError('Failed "execute_batch"'), ValueError("of our own")):
        try:
            raise error
        except Exception:
            logging.getLogger("grpc._cython.cygrpc").exception("raised in a servicer method")
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [ValueError]


async def test_status_has_a_time_limit(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moorage.runtime.api import front_end as module

    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "STATUS_TIMEOUT_S", 0.1)
    monkeypatch.setattr(service.engine, "status", never)
    code, details = await status_of(service.stub.GetStatus(pb.GetStatusRequest()))
    assert code is Code.UNAVAILABLE
    assert "did not answer" in details
