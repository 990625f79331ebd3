"""Tools in /v1/messages and /v1/responses, by the official clients, as Claude Code and Codex send them."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest

from tests.runtime.api.http.conftest import Http
from tests.runtime.api.http.test_chat_tools import CALL, PARIS, SCHEMA, TWO, prompt

CLAUDE: dict[str, Any] = {
    "model": "toy",
    "max_tokens": 400,
    "messages": [{"role": "user", "content": "Paris?"}],
    "tools": [
        {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA},
        {"name": "now", "input_schema": {"type": "object"}, "type": "custom"},
        {"name": "web_search", "type": "web_search_20250305"},
    ],
}
CODEX: dict[str, Any] = {
    "model": "toy",
    "input": [{"type": "message", "role": "user", "content": "Paris?"}],
    "tools": [
        {
            "type": "function",
            "name": "weather",
            "description": "Tells it.",
            "parameters": SCHEMA,
            "strict": False,
        },
        {"type": "function", "name": "now", "parameters": {"type": "object"}},
        {"type": "web_search"},
    ],
    "tool_choice": "auto",
}


async def test_a_message_has_text_and_calls_as_blocks(http: Http) -> None:
    http.engine.says = TWO
    message = await http.anthropic.messages.create(**CLAUDE)
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    _, first, second = message.content
    assert (first.name, first.input) == ("weather", json.loads(PARIS))  # type: ignore[union-attr]
    assert (second.name, second.input) == ("now", {})  # type: ignore[union-attr]
    assert first.id.startswith("toolu_")  # type: ignore[union-attr]
    assert message.stop_reason == "tool_use"
    assert "web_search" not in prompt(http)


async def test_a_stream_of_blocks_has_the_events_of_the_documentation(http: Http) -> None:
    http.engine.says = TWO
    events = await http.events("/v1/messages", CLAUDE)
    kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block, *block, *block, "message_delta", "message_stop"]
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [start["index"] for start in starts] == [0, 1, 2]
    assert starts[1]["content_block"]["input"] == {}
    pieces = [
        event["delta"]["partial_json"] for event in events if event.get("index") == 1 and "delta" in event
    ]
    assert "".join(pieces) == PARIS
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_the_official_helper_puts_blocks_together(http: Http) -> None:
    http.engine.says = CALL
    async with http.anthropic.messages.stream(**CLAUDE) as stream:
        final = await stream.get_final_message()
    (block,) = final.content
    assert block.type == "tool_use"
    assert block.input == json.loads(PARIS)


async def test_results_of_tools_are_messages_before_the_text(http: Http) -> None:
    http.engine.says = TWO
    message = await http.anthropic.messages.create(**CLAUDE)
    first = prompt(http)
    ids = [block.id for block in message.content if block.type == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": ids[0], "content": [{"type": "text", "text": "sun"}]},
        {"type": "tool_result", "tool_use_id": ids[1], "content": "broke", "is_error": True},
        {"type": "text", "text": "Go on."},
    ]
    said = {"role": "assistant", "content": [block.model_dump() for block in message.content]}
    asked = {**CLAUDE, "messages": [*CLAUDE["messages"], said, {"role": "user", "content": results}]}
    counted = await http.anthropic.messages.count_tokens(
        **{key: value for key, value in asked.items() if key != "max_tokens"}
    )
    await http.anthropic.messages.create(**asked)
    assert counted.input_tokens == len(prompt(http))
    names = [
        json.dumps({"name": name, "tool_call_id": i}) for name, i in zip(("weather", "now"), ids, strict=True)
    ]
    rest = f"<tool>sun{names[0]}<tool>Error: broke{names[1]}<user>Go on."
    assert prompt(http) == f"{first}<assistant>{TWO}{rest}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name: is missing"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: 'x' is none of the tools"),
        ({"tools": [], "tool_choice": {"type": "any"}}, "tool_choice: demands a call"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            r"messages\[0\].content\[0\].tool_use_id: is missing",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]}]},
            r"messages\[0\].content\[0\].name: is missing",
        ),
    ],
)
async def test_a_refusal_names_the_field(http: Http, change: dict[str, Any], message: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=message):
        await http.anthropic.messages.create(**{**CLAUDE, **change})


async def test_no_parallel_use_leaves_the_first_call(http: Http) -> None:
    http.engine.says = TWO
    choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
    message = await http.anthropic.messages.create(**CLAUDE, tool_choice=choice)
    assert [block.type for block in message.content] == ["text", "tool_use"]


async def test_a_response_has_calls_as_items(http: Http) -> None:
    http.engine.says = TWO
    response = await http.openai.responses.create(**CODEX)
    assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.name, call.arguments, call.status) for call in calls] == [
        ("weather", PARIS, "completed"),
        ("now", "{}", "completed"),
    ]
    assert response.status == "completed"
    assert "web_search" not in prompt(http)
    assert [tool.name for tool in response.tools if tool.type == "function"] == ["weather", "now"]
    assert (response.tool_choice, response.parallel_tool_calls) == ("auto", True)


async def test_numbers_that_json_has_not_are_refused(http: Http) -> None:
    tool = '{"type": "function", "name": "f", "parameters": {"maximum": 1e999}}'
    body = f'{{"input": "x", "tools": [{tool}, {{"type": "other", "x": 1e999}}]}}'
    headers = {"content-type": "application/json"}
    refused = await http.client.post("/v1/responses", content=body, headers=headers)
    assert refused.status_code == 400
    assert "not finite" in refused.json()["error"]["message"]
    left_out = await http.client.post("/v1/responses", content=body.replace(f"{tool}, ", ""), headers=headers)
    assert left_out.status_code == 200


async def test_a_stream_of_items_has_the_events_of_the_documentation(http: Http) -> None:
    http.engine.says = TWO
    events = await http.events("/v1/responses", CODEX)
    kinds = [event["type"].removeprefix("response.") for event in events if "delta" not in event["type"]]
    call = ["output_item.added", "function_call_arguments.done", "output_item.done"]
    assert kinds == [
        "created",
        "in_progress",
        *(
            "output_item.added",
            "content_part.added",
            "output_text.done",
            "content_part.done",
            "output_item.done",
        ),
        *call,
        *call,
        "completed",
    ]
    deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(event["delta"] for event in deltas if event["output_index"] == 1) == PARIS
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    assert {event["item_id"] for event in deltas} == {item["id"] for item in done[1:]}


async def test_the_official_helper_puts_items_together(http: Http) -> None:
    http.engine.says = CALL
    async with http.openai.responses.stream(**{**CODEX, "tools": CODEX["tools"][:1]}) as stream:
        final = await stream.get_final_response()
    (item,) = final.output
    assert item.type == "function_call"
    assert item.arguments == PARIS


async def test_outputs_of_functions_go_on_with_the_tokens_of_the_calls(http: Http) -> None:
    http.engine.says = TWO
    response = await http.openai.responses.create(**CODEX)
    first = prompt(http)
    items = [item.model_dump(exclude_none=True) for item in response.output]
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "fine"} for item in items[1:]
    ]
    await http.openai.responses.create(**{**CODEX, "input": [*CODEX["input"], *items, *outputs]})
    assert prompt(http).startswith(f"{first}<assistant>{TWO}<tool>fine")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[0].id: is missing"),
        (
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "?"},
            "input[0].arguments: are no",
        ),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id: is missing"),
        ({"type": "function_call_output", "call_id": "1", "output": 5}, "input[0].output: is no text"),
    ],
)
async def test_a_wrong_item_is_named(http: Http, item: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await http.openai.responses.create(model="toy", input=[item])
    assert refused.value.body["message"].startswith(message)  # type: ignore[index]
