"""Tools in POST /v1/chat/completions, by the official client: what the model gets, and what becomes of its calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError

from moorage.runtime.serving.protocol import GenerateParams
from moorage.runtime.text.tools.formats import FORMATS, ToolUse
from tests.runtime.api.http.conftest import Http

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA},
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
USER: dict[str, Any] = {"role": "user", "content": "Paris?"}
PARIS = '{"city": "Paris"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>'
TWO = f'I look.\n{CALL}\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>'
ASKED: dict[str, Any] = {"model": "toy", "messages": [USER], "tools": [WEATHER, NOW]}


def prompt(http: Http) -> str:
    params = http.engine.seen[-1]
    assert isinstance(params, GenerateParams)
    return http.engine.tokenizer.decode(params.prompt)


async def test_calls_come_as_calls(http: Http) -> None:
    http.engine.says = TWO
    answer = await http.openai.chat.completions.create(**ASKED)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look.\n"
    first, second = choice.message.tool_calls or []
    assert first.type == second.type == "function"
    assert (first.function.name, first.function.arguments) == ("weather", PARIS)
    assert (second.function.name, second.function.arguments) == ("now", "{}")
    assert first.id != second.id
    assert first.id.startswith("call_")


async def test_a_stream_has_arguments_as_the_model_writes_them(http: Http) -> None:
    http.engine.says = TWO
    stream = await http.openai.chat.completions.create(**ASKED, stream=True)
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "I look.\n"
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    begun = [call for call in calls if call.id]
    assert [(call.index, call.function and call.function.name) for call in begun] == [
        (0, "weather"),
        (1, "now"),
    ]
    pieces = [call.function.arguments or "" for call in calls if call.function and call.index == 0]
    assert "".join(pieces) == PARIS
    assert len(pieces) > 5
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_the_official_helper_puts_a_stream_together(http: Http) -> None:
    http.engine.says = TWO
    async with http.openai.chat.completions.stream(**ASKED) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", PARIS),
        ("now", "{}"),
    ]


async def test_the_model_gets_tools_calls_and_what_tools_answered(http: Http) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": PARIS}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ]
    await http.post("/v1/chat/completions", {**ASKED, "messages": messages})
    parsed = {**call, "function": {"name": "weather", "arguments": json.loads(PARIS)}}
    no_arguments = {"name": "now", "parameters": {"type": "object", "properties": {}}}
    assert prompt(http) == (
        f"[{json.dumps(WEATHER['function'])}][{json.dumps(no_arguments)}]<user>Paris?<assistant>"
        + json.dumps({"tool_calls": [parsed]})
        + "<tool>sun"
        + json.dumps({"name": "weather", "tool_call_id": "c1"})
    )


async def test_an_answer_that_calls_nothing_is_text(http: Http) -> None:
    for says in ("It is <b>sunny</b>.", '<tool_call>\n{"name": weather}\n</tool_call>'):
        http.engine.says = says
        answer = await http.openai.chat.completions.create(**ASKED)
        assert answer.choices[0].message.content == says
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "stop"


async def test_a_call_that_the_limit_cuts_is_no_call(http: Http) -> None:
    http.engine.says = CALL
    answer = await http.openai.chat.completions.create(**ASKED, max_tokens=60)
    assert answer.choices[0].message.content == CALL[:60]
    assert answer.choices[0].finish_reason == "length"


async def test_none_leaves_calls_as_text_and_tools_in_the_prompt(http: Http) -> None:
    http.engine.says = CALL
    answer = await http.openai.chat.completions.create(**ASKED, tool_choice="none")
    assert answer.choices[0].message.content == CALL
    assert '"weather"' in prompt(http)


async def test_no_parallel_calls_leaves_the_first(http: Http) -> None:
    http.engine.says = TWO
    answer = await http.openai.chat.completions.create(**ASKED, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.name == "weather"  # type: ignore[union-attr]


async def test_each_of_several_answers_has_calls_of_its_own(http: Http) -> None:
    http.engine.says = CALL
    answer = await http.openai.chat.completions.create(**ASKED, n=2)
    ids = {call.id for choice in answer.choices for call in choice.message.tool_calls or []}
    assert len(ids) == 2


async def test_tools_of_other_types_are_left_out(http: Http) -> None:
    """Codex and others send them with every request."""
    tools = [{"type": "web_search"}, {"type": "namespace", "name": "x"}, WEATHER]
    assert (await http.post("/v1/chat/completions", {**ASKED, "tools": tools}))[0] == 200
    assert prompt(http).count("[{") == 1


async def test_the_next_prompt_has_the_tokens_of_the_calls(http: Http) -> None:
    """Here the toy's template would write calls as JSON, and so otherwise than the model did."""
    http.engine.says = TWO
    answer = await http.openai.chat.completions.create(**ASKED)
    first = prompt(http)
    said = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "sun"}  # type: ignore[index]
    asked = {**ASKED, "messages": [USER, said.model_dump(exclude_none=True), result]}
    await http.openai.chat.completions.create(**asked)
    assert prompt(http).startswith(f"{first}<assistant>{TWO}<tool>sun")


@pytest.mark.parametrize("change", ["content", "arguments", "id"])
async def test_a_changed_answer_is_written_anew(http: Http, change: str) -> None:
    http.engine.says = CALL
    answer = await http.openai.chat.completions.create(**ASKED)
    said = answer.choices[0].message.model_dump(exclude_none=True)
    if change == "content":
        said["content"] = "more"
    elif change == "id":
        said["tool_calls"][0]["id"] = "call_other"
    else:
        said["tool_calls"][0]["function"]["arguments"] = '{"city": "Rome"}'
    await http.post("/v1/chat/completions", {**ASKED, "messages": [USER, said]})
    assert CALL not in prompt(http)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name: must be"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters: must be a JSON schema",
        ),
        ({"tool_choice": "sometimes"}, "tool_choice: 'sometimes' is unknown"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice: 'x' is none of"),
        ({"tool_choice": {"type": "function"}}, "tool_choice: must be auto"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice: demands a call, but"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice: demands a call, and can't stand beside",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].arguments: are no JSON object",
        ),
    ],
)
async def test_a_refusal_names_the_field(http: Http, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        await http.openai.chat.completions.create(**{**ASKED, **change})
    assert refused.value.body["message"].startswith(message)  # type: ignore[index]


async def test_schemas_that_are_nested_too_deeply_are_refused(http: Http) -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"items": schema}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    status, body = await http.post("/v1/chat/completions", {**ASKED, "tools": tools})
    assert status == 400
    assert "nested more than 64 deep" in body["error"]["message"]


async def test_tools_that_can_not_fit_a_prompt_are_refused(http: Http) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 200_000}}]
    status, body = await http.post("/v1/chat/completions", {**ASKED, "tools": tools})
    assert status == 400
    assert "can't fit long_context.max_seq_len" in body["error"]["message"]


async def test_a_model_without_tools_answers_with_text_and_refuses_what_needs_them(http: Http) -> None:
    http.engine.text.tool_use = None
    http.engine.says = CALL
    answer = await http.openai.chat.completions.create(**ASKED)
    assert answer.choices[0].message.content == CALL
    assert prompt(http) == "<user>Paris?"
    result = {"role": "tool", "tool_call_id": "1", "content": "sun"}
    for change in ({"tool_choice": "required"}, {"messages": [USER, result]}):
        with pytest.raises(BadRequestError, match="no place for tools"):
            await http.openai.chat.completions.create(**{**ASKED, **change})


async def test_special_tokens_that_mark_calls_are_part_of_the_text(http: Http) -> None:
    http.engine.text.tool_use = ToolUse(FORMATS["mistral"], {"[TOOL_CALLS]": 257}, frozenset({257}))
    await http.openai.chat.completions.create(**ASKED)
    assert http.engine.seen[-1].shown_special == {257}  # type: ignore[union-attr]
    await http.openai.chat.completions.create(**ASKED, tool_choice="none")
    assert http.engine.seen[-1].shown_special == frozenset()  # type: ignore[union-attr]
