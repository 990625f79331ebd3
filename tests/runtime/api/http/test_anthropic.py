"""POST /v1/messages by the official client, and what Claude Code sends."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from moorage.runtime.api.http import usage
from moorage.runtime.serving.protocol import Finished, GenerateParams
from moorage.workers.errors import Unavailable
from tests.runtime.api.http.conftest import Http

PATH = "/v1/messages"
ASKED: dict[str, Any] = {"max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
SAID = "<user>hello"


async def test_an_answer_has_blocks_a_reason_and_usage(http: Http) -> None:
    message = await http.anthropic.messages.create(model="toy", **{**ASKED, "max_tokens": 4})
    assert message.content[0].type == "text"
    assert message.content[0].text == SAID[:4]
    assert (message.role, message.stop_reason, message.model) == ("assistant", "max_tokens", "toy")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (len(SAID), 4)
    assert (message.usage.cache_read_input_tokens, message.usage.cache_creation_input_tokens) == (0, 0)


async def test_a_stream_has_the_events_of_the_documentation(http: Http) -> None:
    events = await http.events(PATH, ASKED)
    kinds = [event["type"] for event in events]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * len(SAID),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"]["input_tokens"] == len(SAID)
    assert "".join(event["delta"]["text"] for event in events[2:-3]) == SAID
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len(SAID)


async def test_the_official_client_reads_the_stream(http: Http) -> None:
    async with http.anthropic.messages.stream(model="toy", **ASKED) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == SAID
    assert final.usage.output_tokens == len(SAID)


async def test_what_claude_code_sends_is_read(http: Http) -> None:
    """A system prompt in blocks with cache marks, after a text that changes with every request."""
    body = {
        **ASKED,
        "model": "toy",
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=36ee5"},
            {"type": "text", "text": "You are helpful.", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
            },
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "b"}],
            },
            {"role": "user", "content": "c"},
        ],
        "metadata": {"user_id": "user_1"},
        "tools": [],
        "thinking": {"type": "adaptive"},
        "temperature": 1,
        "stop_sequences": ["zzz"],
    }
    answer = await http.client.post(
        f"{PATH}?beta=true", json=body, headers={"anthropic-version": "2023-06-01", "anthropic-beta": "x"}
    )
    assert answer.status_code == 200
    assert answer.json()["content"][0]["text"] == "<system>You are helpful.<user>a<assistant>b<user>c"
    params = http.engine.seen[-1]
    assert isinstance(params, GenerateParams)
    assert (params.stop, params.sampling.temperature) == (("zzz",), 1)


async def test_tokens_are_counted_without_an_answer(http: Http) -> None:
    counted = await http.anthropic.messages.count_tokens(model="toy", messages=ASKED["messages"])
    assert counted.input_tokens == len(SAID)
    assert http.engine.seen == []


@pytest.mark.parametrize(
    ("finished", "reason"),
    [(("stop", None), ("end_turn", None)), (("stop", "END"), ("stop_sequence", "END"))],
)
async def test_the_reason_tells_an_end_from_a_stop_string(
    http: Http,
    monkeypatch: pytest.MonkeyPatch,
    finished: tuple[str, str | None],
    reason: tuple[str, str | None],
) -> None:
    record = http.engine._usage(1, 1)

    async def ended(_params: GenerateParams) -> Any:
        yield Finished(finished[0], record, finished[1])

    monkeypatch.setattr(http.engine, "generate", ended)
    message = await http.anthropic.messages.create(model="toy", **ASKED)
    assert (message.stop_reason, message.stop_sequence) == reason


async def test_a_silent_prefill_sends_pings_with_its_progress(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "SILENCE_S", 0.0)
    pings = [event for event in await http.events(PATH, ASKED) if event["type"] == "ping"]
    assert [(ping["progress"]["processed"], ping["progress"]["total"]) for ping in pings] == [
        (5, 11),
        (11, 11),
    ]


async def test_errors_have_the_shape_of_the_api(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await http.anthropic.messages.create(model="toy", messages=ASKED["messages"], max_tokens=0)
    with pytest.raises(anthropic.NotFoundError, match="'claude' is not served"):
        await http.anthropic.messages.create(model="claude", **ASKED)
    with pytest.raises(anthropic.RateLimitError) as busy:
        await http.anthropic.messages.create(model="toy", **ASKED, extra_body={"preset": "busy"})
    assert busy.value.response.headers["retry-after"] == "2"
    status, body = await http.post(
        PATH, {**ASKED, "messages": [{"role": "user", "content": [{"type": "image"}]}]}
    )
    assert (status, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert body["error"]["message"].startswith("messages[0].content[0]: a block of type 'image'")
    monkeypatch.setattr(
        http.engine, "_usage", lambda *_: (_ for _ in ()).throw(Unavailable("the worker is gone"))
    )
    *_, last = await http.events(PATH, ASKED)
    assert last["error"] == {"type": "overloaded_error", "message": "the worker is gone"}
