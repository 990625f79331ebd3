"""The service over a real loopback connection."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import pytest
import structlog
from grpc._cython.cygrpc import ExecuteBatchError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import MoorageStub
from moorage.runtime.api.grpc import failures
from moorage.runtime.api.grpc import service as api_service
from moorage.runtime.api.grpc.server import ApiServer
from moorage.workers.errors import Unavailable
from moorage.workers.hf_generation import SamplingDefaults
from tests.toy_engine import BOS, SECRET, VOCAB_SIZE, ToyEngine

Code = grpc.StatusCode
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def text(data: bytes) -> pb.PromptPiece:
    return pb.PromptPiece(text=data)


def ids(*values: int) -> pb.PromptPiece:
    return pb.PromptPiece(token_ids=pb.TokenIds(ids=values))


def generate(*pieces: pb.PromptPiece, sampling: dict[str, Any] | None = None, **fields: Any) -> list[Any]:
    parameters = pb.GenerateParameters(sampling=pb.Sampling(**(sampling or {})), **fields)
    return [pb.GenerateRequest(parameters=parameters), *(pb.GenerateRequest(piece=piece) for piece in pieces)]


def score(*pieces: pb.PromptPiece, **fields: Any) -> list[Any]:
    parameters = pb.ScoreParameters(**fields)
    return [pb.ScoreRequest(parameters=parameters), *(pb.ScoreRequest(piece=piece) for piece in pieces)]


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    details = caught.value.details()
    assert details is not None
    assert "\n" not in details
    return caught.value.code(), details


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_events_come_in_order(service: Any) -> None:
    replies = [r async for r in service.stub.Generate(generate(text(b"h\xc3"), text(b"\xa9")))]
    assert [r.WhichOneof("event") for r in replies] == [
        "accepted",
        *["progress"] * 2,
        *["token"] * 3,
        "finished",
    ]
    assert replies[0].accepted.prompt_tokens == 4
    assert [r.token.index for r in replies[3:6]] == [0, 1, 2]
    assert bytes(r.token.token_id for r in replies[3:6]) == "hé".encode()
    assert replies[-1].finished.finish_reason == pb.FINISH_REASON_LENGTH


async def test_parameters_reach_the_engine(service: Any) -> None:
    options = {
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": -2.0,
        "frequency_penalty": 2.0,
        "seed": 0,
        "num_logprobs": 2,
    }
    request = generate(
        ids(1, 2),
        sampling=options,
        max_new_tokens=1,
        ignore_eos=True,
        stop=["a", "b"],
        preset="full",
        session="s",
        model="toy",
    )
    replies = [r async for r in service.stub.Generate(request)]
    params = service.engine.seen[0]
    assert list(params.prompt) == [1, 2]
    assert {name: getattr(params.sampling, name) for name in options} == options
    assert (params.max_new_tokens, params.ignore_eos, params.stop) == (1, True, ("a", "b"))
    assert (params.preset, params.session) == ("full", "s")
    assert [(t.token_id, t.logprob) for t in replies[3].token.top_logprobs] == [(1, -0.5), (2, -1.5)]


async def test_defaults(service: Any) -> None:
    for _ in range(2):
        _ = [r async for r in service.stub.Generate(generate(ids(1)))]
    first, second = service.engine.seen
    assert (first.max_new_tokens, first.preset, first.session, first.stop) == (256, None, None, ())
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.repetition_penalty) == (0, 1, 1)
    assert first.sampling.seed != second.sampling.seed


async def test_silent_fields_take_the_models_defaults_and_given_ones_win(service: Any) -> None:
    service.engine.default_sampling = SamplingDefaults(0.5, 20, 0.75, 0.125, 1.25)
    zeros = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    for sent in ({}, zeros, {"top_p": 0.5}):
        _ = [r async for r in service.stub.Generate(generate(ids(1), sampling=sent))]
    silent, zeroed, mixed = (
        tuple(getattr(params.sampling, name) for name in zeros) for params in service.engine.seen
    )
    assert silent == (0.5, 20, 0.75, 0.125, 1.25)
    assert zeroed == (0.0, 0, 1.0, 0.0, 1.0)
    assert mixed == (0.5, 20, 0.5, 0.125, 1.25)


async def test_special_tokens_in_contents_are_read_only_when_asked_for(service: Any) -> None:
    piece = pb.PromptPiece(message=pb.ChatMessage(role="user", content=b"a"))
    for asked in (False, True):
        _ = [r async for r in service.stub.Generate(generate(piece, parse_special=asked))]
    assert [bytes(list(params.prompt)) for params in service.engine.seen] == [b"<user>a", b"{user>a"]


async def test_chat_messages_may_be_split(service: Any) -> None:
    messages = [("user", b"h\xc3"), ("", b"\xa9"), ("assistant", b""), ("user", b"b")]
    pieces = [pb.PromptPiece(message=pb.ChatMessage(role=role, content=part)) for role, part in messages]
    _ = [r async for r in service.stub.Generate(generate(*pieces))]
    assert list(service.engine.seen[0].prompt) == list("<user>hé<assistant><user>b".encode())


async def test_a_million_tokens(service: Any) -> None:
    service.engine.max_seq_len = 1 << 20
    num_tokens, piece = 1_000_000, ids(*range(250), *range(250))
    piece = ids(*list(piece.token_ids.ids) * 500)
    calls = generate(*[piece] * (num_tokens // 250_000), max_new_tokens=3)
    replies = [r async for r in service.stub.Generate(calls)]
    assert replies[0].accepted.prompt_tokens == num_tokens
    assert len(service.engine.seen[0].prompt) == num_tokens
    assert replies[-1].finished.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (generate(), Code.INVALID_ARGUMENT, "prompt: is empty"),
        (generate(text(b"")), Code.INVALID_ARGUMENT, "prompt: is empty"),
        (generate(ids()), Code.INVALID_ARGUMENT, "prompt: is empty"),
        (generate(pb.PromptPiece()), Code.INVALID_ARGUMENT, "piece is empty"),
        (generate(text(b"a\xff")), Code.INVALID_ARGUMENT, "prompt: is not valid UTF-8"),
        (generate(text(b"a\xc3")), Code.INVALID_ARGUMENT, "prompt: is not valid UTF-8"),
        (generate(ids(1), text(b"a")), Code.INVALID_ARGUMENT, "mixes token ids and text"),
        (generate(ids(1), ids(2, VOCAB_SIZE)), Code.INVALID_ARGUMENT, "token_ids[2]: 260 is outside"),
        (generate(ids(2**32 - 1)), Code.INVALID_ARGUMENT, "token_ids[0]"),
        (generate(ids(*[1] * 4097)), Code.INVALID_ARGUMENT, "max_seq_len = 4096"),
        (generate(*[text(b"a" * 600_000)]), Code.INVALID_ARGUMENT, "max_seq_len = 4096"),
        (generate(text(b"a" * (1 << 20) + b"a" * 100)), Code.INVALID_ARGUMENT, "at most 1048576"),
        (
            generate(pb.PromptPiece(message=pb.ChatMessage(content=b"a"))),
            Code.INVALID_ARGUMENT,
            "no role",
        ),
        (generate(ids(1))[1:], Code.INVALID_ARGUMENT, "parameters: are missing"),
        ([], Code.INVALID_ARGUMENT, "parameters: are missing"),
        (generate(ids(1)) * 2, Code.INVALID_ARGUMENT, "piece: is missing"),
        (generate(ids(1), max_new_tokens=0), Code.INVALID_ARGUMENT, "max_new_tokens: 0"),
        (generate(ids(1), max_new_tokens=-5), Code.INVALID_ARGUMENT, "max_new_tokens: -5"),
        (generate(ids(1), stop=["a"] * 17), Code.INVALID_ARGUMENT, "stop: 17"),
        (generate(ids(1), stop=["a", ""]), Code.INVALID_ARGUMENT, "stop[1]"),
        (generate(ids(1), stop=["a" * 257]), Code.INVALID_ARGUMENT, "stop[0]"),
        (generate(ids(1), session="a" * 129), Code.INVALID_ARGUMENT, "session:"),
        (generate(ids(1), session="a\nb"), Code.INVALID_ARGUMENT, "session:"),
        (generate(ids(1), preset="a" * 5000), Code.INVALID_ARGUMENT, "preset:"),
        (generate(ids(1), preset="unheard-of"), Code.INVALID_ARGUMENT, "preset: 'unheard-of'"),
        (generate(ids(1), model="other"), Code.NOT_FOUND, "model: 'other'"),
        (generate(ids(1), model="x" * 100_000), Code.NOT_FOUND, "model: 'xxx"),
    ],
)
async def test_bad_request(service: Any, request_: list[Any], code: Code, words: str) -> None:
    got, details = await refusal(service.stub.Generate(request_))
    assert got is code
    assert words in details
    replies = [r async for r in service.stub.Generate(generate(ids(1)))]
    assert replies[-1].WhichOneof("event") == "finished"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", v) for v in (math.nan, math.inf, -0.1, 101)],
        *[("top_k", v) for v in (-1, -(2**31))],
        *[("top_p", v) for v in (0, -1, 1.01, math.nan, math.inf)],
        *[("min_p", v) for v in (-0.1, 1.5, math.nan)],
        *[("repetition_penalty", v) for v in (0, 1e-300, 0.09, -1, 11, math.nan, math.inf)],
        *[("presence_penalty", v) for v in (-2.1, 2.1, math.nan)],
        *[("frequency_penalty", v) for v in (-2.1, 2.1, -math.inf)],
        *[("seed", v) for v in (-1, -(2**63))],
        *[("num_logprobs", v) for v in (-1, 21)],
    ],
)
async def test_bad_sampling(service: Any, field: str, value: float) -> None:
    code, details = await refusal(service.stub.Generate(generate(ids(1), sampling={field: value})))
    assert code is Code.INVALID_ARGUMENT
    assert details.startswith(f"{field}: ")


async def test_score(service: Any) -> None:
    replies = [r async for r in service.stub.Score(score(text(b"ab")))]
    assert [r.WhichOneof("event") for r in replies] == ["accepted", "logprobs", "progress", "finished"]
    assert replies[1].logprobs.start == 1
    assert list(replies[1].logprobs.logprobs) == pytest.approx([-97 / VOCAB_SIZE, -98 / VOCAB_SIZE])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (score(), "is empty"),
        (score(pb.PromptPiece(message=pb.ChatMessage(role="user", content=b"a"))), "can't be scored"),
        (score(text(b"\xff")), "UTF-8"),
        (score(ids(VOCAB_SIZE)), "token_ids[0]"),
        (score(ids(1), preset="unheard-of"), "preset"),
    ],
)
async def test_bad_score(service: Any, request_: list[Any], words: str) -> None:
    code, details = await refusal(service.stub.Score(request_))
    assert code is Code.INVALID_ARGUMENT
    assert words in details


async def test_tokenize_and_back(service: Any) -> None:
    reply = await service.stub.Tokenize(pb.TokenizeRequest(text="hé".encode()))
    assert list(reply.token_ids) == [BOS, *"hé".encode()]
    bare = await service.stub.Tokenize(pb.TokenizeRequest(text=b"a", add_special_tokens=False))
    assert list(bare.token_ids) == [97]
    back = await service.stub.Detokenize(pb.DetokenizeRequest(token_ids=reply.token_ids))
    assert back.text == "hé"


async def test_bad_tokenize(service: Any) -> None:
    for call, words in (
        (service.stub.Tokenize(pb.TokenizeRequest(text=b"\xff")), "text: is not valid UTF-8"),
        (service.stub.Detokenize(pb.DetokenizeRequest(token_ids=[1, VOCAB_SIZE])), "token_ids[1]"),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT") as caught:
            await call
        assert words in str(caught.value.details())


async def test_models_and_status(service: Any) -> None:
    models = await service.stub.ListModels(pb.ListModelsRequest())
    assert [(m.name, m.max_seq_len_tokens) for m in models.models] == [("toy", 4096)]
    status = await service.stub.GetStatus(pb.GetStatusRequest())
    assert (status.state, status.kv_actors[0].used_bytes) == ("serving", 1 << 33)
    assert not status.HasField("cache_hit_rate")


async def test_leaving_closes_the_generation(service: Any) -> None:
    call = service.stub.Generate(generate(ids(1), session="endless"))
    async for reply in call:
        if reply.WhichOneof("event") == "token":
            break
    assert not service.engine.ended.is_set()
    call.cancel()
    await asyncio.wait_for(service.engine.ended.wait(), 5)


async def test_deadline_closes_the_generation(service: Any) -> None:
    code, _ = await refusal(service.stub.Generate(generate(ids(1), session="endless"), timeout=0.3))
    assert code is Code.DEADLINE_EXCEEDED
    await asyncio.wait_for(service.engine.ended.wait(), 5)


async def test_busy_says_when_to_try_again(service: Any) -> None:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    call = service.stub.Generate(generate(ids(1), preset="busy"))
    code, _ = await refusal(call)
    assert code is Code.RESOURCE_EXHAUSTED
    status = await rpc_status.aio.from_call(call)
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize("request_", [generate(ids(1), preset="busy"), score(ids(1), preset="busy")])
async def test_what_is_refused_was_not_accepted(service: Any, request_: list[Any]) -> None:
    method = service.stub.Generate if isinstance(request_[0], pb.GenerateRequest) else service.stub.Score
    with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
        await anext(aiter(method(request_)))


@pytest.mark.parametrize("method", ["Generate", "Score"])
async def test_an_overloaded_server_refuses_before_it_reads_a_prompt(service: Any, method: str) -> None:
    """And so it costs the server neither an upload nor a tokenizer."""
    service.engine.overloaded = True
    send = generate if method == "Generate" else score
    code, details = await refusal(getattr(service.stub, method)(send(text(b"\xff is no text"))))
    assert (code, details) == (Code.RESOURCE_EXHAUSTED, "64 requests wait already; try again")
    code, _ = await refusal(getattr(service.stub, method)(send(ids(1), model="other")))
    assert code is Code.NOT_FOUND, "what can never be served is told apart"
    assert service.engine.seen == []


async def test_an_accepted_request_has_one_id_for_client_engine_and_log(service: Any) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        replies = [r async for r in service.stub.Generate(generate(ids(1)))]
    (line,) = [entry for entry in logs if entry["event"] == "request accepted"]
    assert replies[0].accepted.request_id == service.engine.seen[0].request_id == line["request_id"] != ""


async def test_an_internal_error_tells_an_id_and_logs_no_prompt(service: Any) -> None:
    with structlog.testing.capture_logs() as logs:
        code, details = await refusal(service.stub.Generate(generate(text(SECRET.encode()), preset="broken")))
    assert code is Code.INTERNAL
    entry = next(entry for entry in logs if entry["log_level"] == "error")
    assert entry["error_id"] in details
    assert entry["kind"] == "ZeroDivisionError"
    assert SECRET not in str(logs) + details


async def test_a_write_that_fails_since_the_client_has_left_is_no_failed_request(
    service: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """gRPC may tell that a deadline has passed by a failed write before it cancels the call."""

    def fail(*_: object) -> None:
        raise ExecuteBatchError('Failed "execute_batch"')

    monkeypatch.setattr(service.engine, "_admit", fail)
    with structlog.testing.capture_logs() as logs:
        code, _ = await refusal(service.stub.Generate(generate(ids(1)), timeout=0.2))
        assert code is Code.DEADLINE_EXCEEDED
        assert [line for line in logs if line["log_level"] != "info"] == []
        monkeypatch.setattr(failures, "_CANCELLED_WITHIN_S", 0.01)
        code, _ = await refusal(service.stub.Generate(generate(ids(1))))
        assert code is Code.INTERNAL, "a client that is still there learns of it"
    assert [line["kind"] for line in logs if line["log_level"] == "error"] == ["ExecuteBatchError"]
    assert capfd.readouterr().err == ""


async def test_health_and_unavailable_before_and_after() -> None:
    server, engine = ApiServer(), ToyEngine()
    address = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(address) as channel:
        stub, health = MoorageStub(channel), health_pb2_grpc.HealthStub(channel)

        async def statuses() -> list[int]:
            asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", "moorage.v1.Moorage")]
            return [(await health.Check(request)).status for request in asked]

        assert await statuses() == [NOT_SERVING] * 2
        assert (await refusal(stub.Generate(generate(ids(1)))))[0] is Code.UNAVAILABLE
        await server.serve(engine)
        assert await statuses() == [SERVING] * 2
        call = stub.Generate(generate(ids(1), session="endless"))
        await asyncio.wait_for(anext(aiter(call)), 5)
        await server.drain(0.1)
        assert await statuses() == [NOT_SERVING] * 2
        assert (await refusal(stub.Generate(generate(ids(1)))))[0] is Code.UNAVAILABLE
        assert (await stub.GetStatus(pb.GetStatusRequest())).state == "stopping"
        call.cancel()
        await asyncio.wait_for(engine.ended.wait(), 5)
    await server.stop()


async def test_port_in_use() -> None:
    first, second = ApiServer(), ApiServer()
    address = await first.start("127.0.0.1:0")
    with pytest.raises(Unavailable, match=f"{address} can't be bound"):
        await second.start(address)
    await first.stop()
    await second.stop()


async def test_reflection_lists_the_services(service: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for reply in stub.ServerReflectionInfo(iter([request])):
        names = {item.name for item in reply.list_services_response.service}
    assert {"moorage.v1.Moorage", "grpc.health.v1.Health"} <= names


async def test_a_client_that_reads_nothing_is_left_after_a_while(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request ends, it hears of that when it reads on, and others are answered."""
    monkeypatch.setattr(api_service, "MOST_UNREAD_S", 0.2)
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
    async with grpc.aio.insecure_channel(service.address, options=narrow) as channel:
        call = MoorageStub(channel).Generate(generate(ids(1), session="endless"))
        await call.read()
        async with asyncio.timeout(20):
            await service.engine.ended.wait()
            with pytest.raises(grpc.aio.AioRpcError, match="read answers as they come"):
                await read_to_the_end(call)
            assert await call.code() is Code.DEADLINE_EXCEEDED
    assert [r async for r in service.stub.Generate(generate(ids(7)))]
