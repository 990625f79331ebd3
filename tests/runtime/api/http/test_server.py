"""The HTTP server: routes of operators, errors, disconnects, hostile clients, and its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import structlog

from moorage.runtime.api.http import connections, generations
from moorage.runtime.api.http.server import HttpServer
from moorage.runtime.api.uploads import UploadLimits
from moorage.workers.errors import Unavailable
from tests.runtime.api.http.conftest import Http
from tests.toy_engine import SECRET, ToyEngine

Opened = Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
CHAT = "/v1/chat/completions"
USER = {"messages": [{"role": "user", "content": "hello"}]}
ENDLESS = {**USER, "session_id": "endless", "stream": True}


@pytest.fixture
async def opened(http: Http) -> AsyncIterator[Opened]:
    """Opens bare connections, and closes them at the end."""
    writers = []

    async def connect(address: str | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = (address or http.client.base_url.netloc.decode()).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Waits until the server closes a connection, and sends nothing before."""
    try:
        return await asyncio.wait_for(reader.read(1), 5) == b""
    except ConnectionResetError:
        return True


def raw(body: Any, path: str = CHAT, **headers: str) -> bytes:
    """The bytes of a POST."""
    data = json.dumps(body).encode()
    lines = {"content_type": "application/json", "content_length": str(len(data)), **headers}
    head = "".join(
        f"{name.replace('_', '-')}: {value}\r\n" for name, value in [("host", "x"), *lines.items()]
    )
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data


async def test_operators_see_that_it_lives_that_it_serves_and_what_it_is(http: Http) -> None:
    assert (await http.client.get("/health")).json() == {"status": "ok"}
    assert (await http.client.get("/ready")).json() == {"status": "ready", "model": "toy"}
    assert set((await http.client.get("/version")).json()) == {"version"}


async def test_it_is_alive_before_it_is_ready(http: Http) -> None:
    server = HttpServer()
    url = f"http://{await server.start('127.0.0.1:0')}"
    assert (await http.client.get(f"{url}/health")).status_code == 200
    for answer in (await http.client.get(f"{url}/ready"), await http.client.post(url + CHAT, json=USER)):
        assert answer.status_code == 503
        assert "the server is starting" in answer.json()["error"]["message"]
    await server.stop()


async def test_a_problem_of_the_cluster_is_no_readiness(http: Http) -> None:
    http.engine.health.report("worker", "the worker is stopped; start it again")
    answer = await http.client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the worker is stopped; start it again"
    assert (await http.client.get("/health")).status_code == 200


async def test_readiness_generates_a_token_where_nobody_else_does(http: Http) -> None:
    status = await http.engine.status()

    async def idle() -> Any:
        return type(status)(**{**{f: getattr(status, f) for f in status.__slots__}, "running": 0})

    http.engine.status = idle  # type: ignore[method-assign]
    for _ in range(3):
        assert (await http.client.get("/ready")).status_code == 200
    assert len(http.engine.seen) == 1


async def test_models_and_tokens(http: Http) -> None:
    models = [model async for model in http.openai.models.list()]
    assert [model.id for model in models] == ["toy"]
    assert (await http.openai.models.retrieve("toy")).id == "toy"
    assert (await http.client.get("/v1/models/other")).status_code == 404
    _, answer = await http.post("/tokenize", {"prompt": "hé", "return_token_strs": True})
    assert (answer["count"], answer["tokens"], answer["max_model_len"]) == (4, [256, 104, 195, 169], 4096)
    assert answer["token_strs"][:2] == ["", "h"]
    assert (await http.post("/tokenize", {"content": "h", "add_special_tokens": False}))[1]["tokens"] == [104]
    assert (await http.post("/tokenize", USER))[1]["count"] == len("<user>hello")
    assert (await http.post("/tokenize", {}))[0] == 400
    assert (await http.post("/detokenize", {"tokens": [104, 195, 169]}))[1]["prompt"] == "hé"
    assert (await http.post("/detokenize", {"tokens": [260]}))[0] == 400


async def test_the_openapi_document_has_every_body(http: Http) -> None:
    document = (await http.client.get("/openapi.json")).json()
    schema = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "session_id", "preset", "memory"} <= set(schema["properties"])
    assert "$ref" not in json.dumps(schema)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, USER),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 0, "echo": True, "logprobs": 1}),
        ("/v1/responses", {"input": "hello"}),
        ("/v1/messages", {**USER, "model": "toy", "max_tokens": 4}),
        ("/chat", {"prompt": "hello"}),
    ],
)
async def test_an_overloaded_server_refuses_before_it_makes_token_ids(
    http: Http, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    """For they cost a process."""

    async def count(*_: object, **__: object) -> None:
        pytest.fail("a prompt that is not served was made into token ids")

    http.engine.overloaded = True
    monkeypatch.setattr(http.engine.text, "encode", count)
    monkeypatch.setattr(http.engine.text, "encode_chat", count)
    refused = await http.client.post(path, json=body)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert "64 requests wait already" in refused.text
    assert http.engine.seen == []


async def test_an_unforeseen_error_has_an_id_and_tells_nothing(http: Http) -> None:
    body = {"messages": [{"role": "user", "content": SECRET}], "preset": "broken"}
    with structlog.testing.capture_logs() as logs:
        status, answer = await http.post(CHAT, body)
    assert status == 500
    assert "internal error" in answer["error"]["message"]
    error_id = next(line["error_id"] for line in logs if line["event"] == "request failed")
    assert error_id in answer["error"]["message"]
    assert SECRET not in json.dumps(answer) + json.dumps(logs, default=str)


async def test_an_error_after_the_stream_opened_is_an_event(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        http.engine, "_usage", lambda *_: (_ for _ in ()).throw(Unavailable("the worker is gone"))
    )
    for path, body in ((CHAT, USER), ("/v1/completions", {"prompt": "ab"})):
        response = await http.client.post(path, json={**body, "stream": True})
        assert response.status_code == 200
        *_, error, done = response.text.strip().split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["message"] == "the worker is gone"
        assert done == "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_work(http: Http, opened: Opened, stream: bool) -> None:
    http.engine.step_s = 0.001
    reader, writer = await opened()
    writer.write(raw({**ENDLESS, "stream": stream, "max_tokens": 1000}))
    await asyncio.wait_for(http.engine.started.wait(), 5)
    if stream:
        await reader.readuntil(b"data: ")
    writer.close()
    await asyncio.wait_for(http.engine.ended.wait(), 5)


async def test_a_client_that_leaves_while_another_choice_waits_ends_all(
    http: Http, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "MOST_AT_ONCE", 2)
    http.engine.step_s = 0.001
    reader, writer = await opened()
    writer.write(raw({**ENDLESS, "n": 4, "max_tokens": 1000}))
    await reader.readuntil(b"data: ")
    writer.close()
    await asyncio.wait_for(http.engine.ended.wait(), 5)
    assert len(http.engine.seen) == 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1 and more\r\n\r\n", b"400"),
        (b"\x00\xff\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"400"),
        (raw("{", content_type="text/plain"), b"415"),
        (raw({}, content_length="99999999999"), b"413"),
        (
            b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\r\n",
            b"400",
        ),
        (b"DELETE " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"405"),
    ],
)
async def test_what_is_no_request_gets_a_status(
    http: Http, opened: Opened, sent: bytes, status: bytes
) -> None:
    reader, writer = await opened()
    writer.write(sent)
    line = await asyncio.wait_for(reader.readline(), 5)
    assert line.split()[1] == status
    writer.close()
    assert (await http.client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 10_000,
        b"null",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
        b'{"messages": [{"role": "user", "content": "x"}], "top_k": 99999999999999999999}',
        b'{"messages": [{"role": "\\u0000", "content": "x"}], "top_k": 1.5}',
        b"\xff\xfe",
    ],
)
async def test_hostile_json_is_refused(http: Http, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await http.client.post(CHAT, content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_larger_than_any_prompt_is_refused_while_it_comes(opened: Opened) -> None:
    reader, writer = await opened()
    head = raw(None, transfer_encoding="chunked").replace(b"content-length: 4\r\n", b"").removesuffix(b"null")
    writer.write(head + 65 * (b"10000\r\n" + b" " * 65_536 + b"\r\n"))
    line = await asyncio.wait_for(reader.readline(), 5)
    assert line.split()[1] == b"413"


async def test_a_body_that_comes_too_slowly_ends_and_holds_nobody_up(http: Http, opened: Opened) -> None:
    server = HttpServer(UploadLimits(silence_s=0.2))
    address = await server.start("127.0.0.1:0")
    server.serve(ToyEngine())
    reader, writer = await opened(address)
    writer.write(raw(USER, content_length="1000"))
    assert (await http.client.post(f"http://{address}{CHAT}", json=USER)).status_code == 200
    assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] == b"408"
    await server.stop()


async def test_connections_that_send_no_request_are_closed(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(connections, "HEADER_S", 0.1)
    reader, writer = await opened()
    writer.write(b"GET /health HT")
    assert await ended(reader)


async def test_a_client_that_reads_nothing_is_cut_off_and_its_work_ends(
    http: Http, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(connections, "MOST_UNREAD_S", 0.1)
    _, writer = await opened()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(raw({**ENDLESS, "max_tokens": 4_000_000}))
    await asyncio.wait_for(http.engine.ended.wait(), 20)


async def test_beyond_the_bound_the_longest_idle_connection_makes_place(
    http: Http, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    idle = [await opened() for _ in range(3)]
    assert (await http.client.get("/health")).status_code == 200
    assert await ended(idle[0][0])


async def test_requests_end_before_the_server_does(http: Http) -> None:
    http.engine.step_s = 0.005
    asked = asyncio.create_task(http.post(CHAT, USER))
    await http.engine.started.wait()
    draining = asyncio.create_task(http.server.drain(5))
    await asyncio.sleep(0)
    status, body = await http.post(CHAT, USER)
    assert (status, body["error"]["type"]) == (503, "service_unavailable_error")
    assert (await asked)[0] == 200
    await draining


async def test_a_port_in_use_is_told_in_one_line(http: Http) -> None:
    with pytest.raises(
        Unavailable, match=r"server\.http: 127\.0\.0\.1:\d+ can't be bound .*set server\.http to off"
    ):
        await HttpServer().start(f"127.0.0.1:{http.client.base_url.port}")
