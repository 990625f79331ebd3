"""POST /v1/responses by the official client, and what Codex sends."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from moorage.runtime.api.http import usage
from moorage.runtime.serving.protocol import GenerateParams
from moorage.workers.errors import Unavailable
from tests.runtime.api.http.conftest import Http

PATH = "/v1/responses"
SAID = "<user>hello"


async def test_an_answer_has_one_message_and_usage(http: Http) -> None:
    response = await http.openai.responses.create(model="toy", input="hello")
    assert response.output_text == SAID
    assert response.status == "incomplete", "the toy engine always ends by its limit"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (len(SAID), len(SAID))
    assert response.usage.input_tokens_details.cached_tokens == 0


async def test_a_stream_has_the_events_of_the_documentation(http: Http) -> None:
    events = await http.events(PATH, {"input": "hello"})
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(SAID),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events[4:-4]) == SAID
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == SAID
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1


async def test_the_official_client_reads_the_stream(http: Http) -> None:
    async with http.openai.responses.stream(model="toy", input="hello") as stream:
        events = [event async for event in stream]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == SAID


async def test_what_codex_sends_is_read(http: Http) -> None:
    body: dict[str, Any] = {
        "model": "toy",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": None},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            {"role": "user", "content": "c"},
        ],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "abc",
        "text": {"verbosity": "low"},
    }
    status, response = await http.post(PATH, body)
    assert status == 200
    text = response["output"][0]["content"][0]["text"]
    assert text == "<system>You are a coding agent.\n\nrules<user>a<assistant>b<user>c"


async def test_the_probe_of_codex_is_answered(http: Http) -> None:
    status, _ = await http.post(PATH, {"model": "toy", "input": [], "max_output_tokens": 1})
    assert status == 200
    params = http.engine.seen[-1]
    assert isinstance(params, GenerateParams)
    assert params.max_new_tokens == 1


async def test_a_silent_prefill_repeats_that_it_is_in_progress(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "SILENCE_S", 0.0)
    events = await http.events(PATH, {"input": "hello"})
    told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert [(each["processed"], each["total"]) for each in told] == [(5, 11), (11, 11)]


async def test_a_failure_after_the_stream_opened_is_an_event(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        http.engine, "_usage", lambda *_: (_ for _ in ()).throw(Unavailable("the worker is gone"))
    )
    *_, last = await http.events(PATH, {"input": "hello"})
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "service_unavailable_error", "message": "the worker is gone"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: no response is stored"),
        ({"background": True}, "background: "),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema: must be a JSON schema"),
        ({"input": [{"type": "computer_call"}]}, "input[0]: an item of type 'computer_call'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]: a part"),
        ({"input": [{"content": "x"}]}, "input[0].role: is missing"),
        ({"max_output_tokens": 0}, "max_output_tokens: "),
    ],
)
async def test_a_refusal_names_the_field(http: Http, change: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await http.openai.responses.create(model="toy", **{"input": "hello", **change})
    assert refused.value.body["message"].startswith(message)  # type: ignore[index]
