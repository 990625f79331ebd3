"""POST /v1/chat/completions over a real loopback connection, by the official client where it can send it."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest

from moorage.runtime.api.http import usage
from moorage.runtime.api.http.grammars import grammar_of
from moorage.runtime.serving.protocol import GenerateParams
from moorage.runtime.text.grammar import Grammar
from tests.runtime.api.http.conftest import Http

USER: dict[str, Any] = {"role": "user", "content": "hello"}
SAID = "<user>hello"
"""What the toy engine's template makes of it, and so what it answers."""


def seen(http: Http) -> GenerateParams:
    params = http.engine.seen[-1]
    assert isinstance(params, GenerateParams)
    return params


async def test_an_answer_has_its_text_its_reason_and_its_usage(http: Http) -> None:
    answer = await http.openai.chat.completions.create(model="toy", messages=[USER], max_tokens=7)  # type: ignore[list-item]
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", SAID[:7])
    assert choice.finish_reason == "length"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(SAID), 7)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_stream_has_the_role_first_then_the_text_then_the_usage(http: Http) -> None:
    stream = await http.openai.chat.completions.create(
        model="toy",
        messages=[USER],  # type: ignore[list-item]
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert [delta.role for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert "".join(delta.content or "" for delta in deltas) == SAID
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(SAID)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_ends_with_done_and_has_no_usage_unless_it_is_asked_for(http: Http) -> None:
    response = await http.client.post("/v1/chat/completions", json={"messages": [USER], "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert not any("usage" in json.loads(event.removeprefix("data: ")) for event in events[:-1])


async def test_every_option_reaches_the_engine(http: Http) -> None:
    await http.openai.chat.completions.create(
        model="toy",
        messages=[USER],  # type: ignore[list-item]
        temperature=0.5,
        top_p=0.9,
        stop=["a", "b"],
        seed=11,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        max_completion_tokens=5,
        extra_body={
            "top_k": 4,
            "min_p": 0.1,
            "repetition_penalty": 1.5,
            "ignore_eos": True,
            "preset": "clamped",
            "memory": {"topk_keys": 512, "positions": "rope"},
            "session_id": "mine",
        },
    )
    params, sampling = seen(http), seen(http).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 4, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.5, 0.25)
    assert (sampling.frequency_penalty, sampling.seed) == (-0.5, 11)
    assert (params.stop, params.max_new_tokens, params.ignore_eos) == (("a", "b"), 5, True)
    assert (params.preset, params.session) == ("clamped", "mine")
    assert params.memory == {"topk_keys": "512", "positions": "rope"}


async def test_a_header_names_the_session_unless_the_body_does(http: Http) -> None:
    for body, name in (({}, "of-header"), ({"session_id": "of-body"}, "of-body")):
        headers = {"x-session-id": "of-header"}
        await http.client.post("/v1/chat/completions", json={"messages": [USER], **body}, headers=headers)
        assert seen(http).session == name


async def test_minus_one_is_vllms_word_for_every_token(http: Http) -> None:
    await http.post("/v1/chat/completions", {"messages": [USER], "top_k": -1})
    assert seen(http).sampling.top_k == 0


async def test_several_answers_have_seeds_of_their_own(http: Http) -> None:
    answer = await http.openai.chat.completions.create(
        model="toy", messages=[USER], n=3, seed=5, max_tokens=2
    )  # type: ignore[list-item]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [one.sampling.seed for one in http.engine.seen if isinstance(one, GenerateParams)] == [5, 6, 7]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(SAID), 6)


async def test_log_probabilities_come_with_each_token(http: Http) -> None:
    asked: dict[str, Any] = {"messages": [USER], "logprobs": True, "top_logprobs": 2, "max_tokens": 2}
    _, answer = await http.post("/v1/chat/completions", asked)
    first, second = answer["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("<", -0.5, [60])
    assert [(top["token"], top["logprob"]) for top in second["top_logprobs"]] == [("u", -0.5), ("v", -1.5)]
    stream = await http.openai.chat.completions.create(model="toy", stream=True, **asked)
    streamed = [c.choices[0].logprobs.content[0] async for c in stream if c.choices[0].logprobs]
    assert [one.token for one in streamed] == ["<", "u"]


async def test_contents_may_be_parts_and_system_messages_are_joined(http: Http) -> None:
    messages = [
        {"role": "system", "content": "one"},
        {"role": "developer", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    _, answer = await http.post("/v1/chat/completions", {"messages": messages})
    assert answer["choices"][0]["message"]["content"] == "<system>one\n\ntwo<user>a\nb"


async def test_what_selection_attended_comes_when_it_is_asked_for(http: Http) -> None:
    _, answer = await http.post("/v1/chat/completions", {"messages": [USER], "return_recall": True})
    (measured,) = answer["usage"]["moorage"]
    assert measured["recall"] is None
    assert measured["dram_bytes"] == 1 << 20
    assert measured["chosen_blocks"] == 2.5


async def test_progress_comes_as_chunks_without_text_in_llama_cpps_words(http: Http) -> None:
    body = {"messages": [USER], "stream": True, "return_progress": True}
    response = await http.client.post("/v1/chat/completions", json=body)
    events = [json.loads(event[6:]) for event in response.text.split("\n\n") if event[6:].startswith("{")]
    told = [event for event in events if "prompt_progress" in event]
    shares = [(e["prompt_progress"]["processed"], e["prompt_progress"]["total"]) for e in told]
    assert shares == [(5, 11), (11, 11)]
    assert all(event["choices"][0]["delta"]["content"] == "" for event in told)


async def test_a_silent_prefill_still_sends_protocol_events(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "SILENCE_S", 0.0)
    stream = await http.openai.chat.completions.create(model="toy", messages=[USER], stream=True)  # type: ignore[list-item]
    deltas = [chunk.choices[0].delta.content async for chunk in stream]
    assert deltas[:2] == ["", ""]
    assert "".join(delta or "" for delta in deltas) == SAID


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages: "),
        ({"temperature": 101}, "temperature: 101 is not allowed"),
        ({"temperature": "warm"}, "temperature: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"n": 17}, "n: "),
        ({"seed": -1}, "seed: "),
        ({"stop": ["a"] * 17}, "stop: 17 strings are too many"),
        ({"top_logprobs": 2}, "top_logprobs: needs logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function: is missing"),
        ({"logit_bias": {"1": 5}}, "logit_bias: is not supported"),
        ({"response_format": {"type": "xml"}}, "response_format.type: must be text"),
        ({"guided_json": {}, "guided_regex": "a", "guided_choice": ["a"]}, "guided_choice: stands beside"),
        ({"structured_outputs": {"tag": 1}}, "structured_outputs: must have one of"),
        ({"guided_choice": [1]}, "guided_choice: must be a list of texts"),
        ({"add_generation_prompt": False}, "add_generation_prompt: is not supported"),
        ({"preset": "unheard-of"}, "preset: 'unheard-of' is unknown"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]: a part",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
            "messages[0].tool_calls[0].function: is missing",
        ),
    ],
)
async def test_a_refusal_names_the_field(http: Http, change: dict[str, Any], message: str) -> None:
    status, body = await http.post("/v1/chat/completions", {"messages": [USER], **change})
    assert status == 400
    assert body["error"]["message"].startswith(message)
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"] == re.split(r"[:.\[]", message)[0]
    assert "\n" not in body["error"]["message"]


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "me", "store": True, "metadata": {"a": "b"}, "made_up": 1},
        {"tools": [], "tool_choice": "auto", "logit_bias": {}, "response_format": {"type": "text"}},
        {"best_of": 1, "min_tokens": 0, "add_generation_prompt": True, "skip_special_tokens": True},
        {"temperature": None, "stop": None, "n": None, "seed": None, "stream": None, "max_tokens": None},
    ],
)
async def test_what_changes_no_answer_is_let_pass(http: Http, harmless: dict[str, Any]) -> None:
    assert (await http.post("/v1/chat/completions", {"messages": [USER], **harmless}))[0] == 200


async def test_refusals_before_a_stream_opens_have_their_status(http: Http) -> None:
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        await http.openai.chat.completions.create(model="other", messages=[USER], stream=True)  # type: ignore[list-item]
    with pytest.raises(openai.RateLimitError, match="64 requests wait") as busy:
        await http.openai.chat.completions.create(
            model="toy",
            messages=[USER],  # type: ignore[list-item]
            stream=True,
            extra_body={"preset": "busy"},
        )
    assert busy.value.response.headers["retry-after"] == "2"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("field", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            "json_schema",
            json.dumps(SCHEMA),
        ),
        ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA)),
        ({"json_schema": SCHEMA}, "json_schema", json.dumps(SCHEMA)),
        ({"guided_regex": "[ab]+"}, "regex", "[ab]+"),
        ({"structured_outputs": {"choice": ["a.b", "c d"], "json": None}}, "regex", r"a\.b|c d"),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type": "object"}'),
        ({"grammar": 'start: "a"'}, "lark", 'start: "a"'),
    ],
)
def test_every_word_for_a_grammar_is_known(field: dict[str, Any], kind: str, text: str) -> None:
    assert grammar_of(field) == Grammar(kind, text)


def test_no_grammar_is_none() -> None:
    assert grammar_of({"response_format": {"type": "text"}, "guided_json": None, "other": 1}) is None
