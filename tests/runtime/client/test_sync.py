"""The synchronous client against a real loopback server."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import moorage.client
from moorage.client import (
    Accepted,
    Cancelled,
    Client,
    DeadlineExceeded,
    Finished,
    InvalidRequest,
    MoorageError,
    NotFound,
    Progress,
    ResourceExhausted,
    Token,
    Unavailable,
)
from moorage.client.channel import error_classes
from tests.toy_engine import BOS, VOCAB_SIZE
from tests.toy_server import ToyServer, toy_server


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server() as running:
        yield running


@pytest.fixture
def client(server: ToyServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=20) as opened:
        yield opened


def test_events_then_result(client: Client) -> None:
    stream = client.generate("hé", max_new_tokens=8)
    events = list(stream)
    assert [type(event) for event in events] == [Accepted, *[Progress] * 2, *[Token] * 3, Finished]
    result = stream.result()
    assert bytes(result.token_ids).decode() == "hé"
    assert result.logprobs == (-0.5,) * 3
    assert (result.finish_reason, result.usage.completion_tokens) == ("length", 3)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("ab", [BOS, 97, 98]),
        (b"ab", [BOS, 97, 98]),
        ([1, 2], [1, 2]),
        ((3,), [3]),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}],
            list(b"<user>x<assistant>"),
        ),
    ],
)
def test_kinds_of_prompt(server: ToyServer, client: Client, prompt: object, tokens: list[int]) -> None:
    client.generate(prompt).result()  # type: ignore[arg-type]
    assert list(server.engine.seen[-1].prompt) == tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("num_characters", [0, 1, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, 3 << 19])
def test_text_of_any_length_is_split(server: ToyServer, client: Client, num_characters: int) -> None:
    server.engine.max_seq_len = 4 << 20
    text = "é" * (num_characters // 2) + "a" * (num_characters % 2)
    if not text:
        with pytest.raises(InvalidRequest, match="is empty"):
            client.score(text)
        return
    assert client.score(text).num_tokens == len(text.encode()) + 1
    long_turn = [{"role": "user", "content": text}]
    assert client.generate(long_turn, max_new_tokens=1).result().usage.prompt_tokens == len(text.encode()) + 6
    server.engine.max_seq_len = 4096


def test_score(client: Client) -> None:
    result = client.score([BOS, *range(97, 100)] * 600)
    first, *rest = result.logprobs
    assert first is None
    assert rest[:3] == pytest.approx([-97 / VOCAB_SIZE, -98 / VOCAB_SIZE, -99 / VOCAB_SIZE])
    assert result.num_tokens == 2400
    assert result.loss == pytest.approx(-sum(value or 0.0 for value in result.logprobs) / 2399)
    assert result.perplexity == pytest.approx(math.exp(result.loss or 0.0))


def test_score_of_one_token_has_no_loss(client: Client) -> None:
    result = client.score([5])
    assert (result.logprobs, result.loss, result.perplexity, result.num_tokens) == ((None,), None, None, 1)


def test_unary_calls(client: Client) -> None:
    assert client.tokenize("a") == [BOS, 97]
    assert client.tokenize("a", add_special_tokens=False) == [97]
    assert client.detokenize([97, 98]) == "ab"
    assert [model.name for model in client.models()] == ["toy"]
    status = client.status()
    assert (status.state, status.recall, status.cache_hit_rate) == ("serving", 0.75, None)
    assert status.kv_actors[0].capacity_bytes == 1 << 34


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"temperature": math.nan}, InvalidRequest),
        ({"top_k": 2**40}, InvalidRequest),
        ({"top_k": "many"}, InvalidRequest),
        ({"stop": "one string"}, InvalidRequest),
        ({"stop": 5}, InvalidRequest),
        ({"stop": ["a", 5]}, InvalidRequest),
        ({"stop": ["\ud800"]}, InvalidRequest),
        ({"session": 5}, InvalidRequest),
        ({"memory": 5}, InvalidRequest),
        ({"memory": {"topk": object()}}, InvalidRequest),
        ({"memory": {"topk": "\ud800"}}, InvalidRequest),
        ({"timeout_s": "soon"}, InvalidRequest),
        ({"timeout_s": math.nan}, InvalidRequest),
        ({"model": "other"}, NotFound),
        ({"preset": "busy"}, ResourceExhausted),
        ({"preset": "broken"}, MoorageError),
    ],
)
def test_errors_have_the_server_s_classes(client: Client, options: dict[str, object], kind: type) -> None:
    with pytest.raises(MoorageError) as caught:
        client.generate([1], **options).result()  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    if kind is ResourceExhausted:
        assert caught.value.retry_after_s == 1.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "prompt",
    [
        *(None, 5, {"role": "user", "content": "x"}, {1, 2}, iter([1, 2])),
        *([-1], [1.5], ["a"], [2**32], [None], [[1]]),
        *([{"role": "user"}], [{"content": "x"}], [{"role": 5, "content": "x"}]),
        *([{"role": "user", "content": None}], [{"role": "user", "content": "x"}, "y"]),
    ],
)
def test_prompts_that_cannot_be_sent(client: Client, prompt: list[object]) -> None:
    with pytest.raises(InvalidRequest):
        client.generate(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, 5, ["a"]])
def test_texts_that_can_not_be_sent(client: Client, text: object) -> None:
    with pytest.raises(InvalidRequest, match="text: must be str or bytes"):
        client.tokenize(text)  # type: ignore[arg-type]


def test_an_option_of_none_is_not_given(server: ToyServer, client: Client) -> None:
    client.generate("a", stop=None, max_new_tokens=None).result()  # type: ignore[arg-type]
    assert server.engine.seen[-1].stop == ()  # type: ignore[union-attr]


def test_every_error_that_a_client_raises_is_exported() -> None:
    for error in error_classes():
        assert getattr(moorage.client, error.__name__) is error
        assert error.__name__ in moorage.client.__all__


def test_the_environment_names_the_server(server: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_ADDRESS", server.address)
    with Client() as client:
        assert client.address == server.address
        assert client.is_ready()


def test_text_with_a_lone_surrogate(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="character 1"):
        client.generate("a\ud800")


def test_unknown_option(client: Client) -> None:
    with pytest.raises(TypeError, match="temprature"):
        client.generate("a", temprature=1)  # type: ignore[call-arg]


def test_leaving_a_with_stops_the_work(server: ToyServer, client: Client) -> None:
    server.engine.ended.clear()
    with client.generate([1], session="endless") as stream:
        for event in stream:
            if isinstance(event, Token):
                break
    _wait_for(server.engine.ended.is_set)


def test_cancel_from_another_thread(server: ToyServer, client: Client) -> None:
    server.engine.ended.clear()
    stream = client.generate([1], session="endless")
    threading.Timer(0.2, stream.cancel).start()
    with pytest.raises(Cancelled):
        stream.result()
    _wait_for(server.engine.ended.is_set)


def test_deadline(client: Client) -> None:
    with pytest.raises(DeadlineExceeded, match="timeout_s"):
        client.generate([1], session="endless", timeout_s=0.2).result()


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(address) as client:
            for call in (client.status, lambda: client.generate("a").result()):
                with pytest.raises(Unavailable, match=f"no server answers at {address}"):
                    call()
            with pytest.raises(DeadlineExceeded, match=r"not ready within 0\.1 s"):
                client.wait_until_ready(0.1)


def test_starting_server_is_not_ready() -> None:
    with toy_server(ready=False) as starting, Client(starting.address) as client:
        assert not client.is_ready()
        with pytest.raises(Unavailable, match="starting"):
            client.generate("a").result()


def test_ready_server(client: Client) -> None:
    client.wait_until_ready(5)
    assert client.is_ready()


def _wait_for(condition: object) -> None:
    until_s = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_limit_of_the_server_is_told_in_its_words(
    server: ToyServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(*_: object) -> None:
        raise DeadlineExceeded("prompt: no message came for 10 s")

    monkeypatch.setattr(server.engine, "_admit", too_slow)
    with pytest.raises(DeadlineExceeded, match="no message came for 10 s"):
        client.generate([1]).result()
