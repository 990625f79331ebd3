"""Reasoning in all APIs, by the official clients where they have it: apart from the answer, streamed or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moorage.runtime.serving.protocol import GenerateParams
from moorage.runtime.text.reasoning import FORMATS, ReasoningUse
from moorage.runtime.text.tools.formats import FORMATS as TOOLS
from moorage.runtime.text.tools.formats import ToolUse
from tests.runtime.api.http.conftest import Http
from tests.runtime.api.http.test_chat_tools import ASKED, CALL, PARIS, USER

SAYS = "<think>\nTwo and two.\n</think>\n\nFour."
PLAIN: dict[str, Any] = {"model": "toy", "messages": [USER]}
HARMONY = (
    "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant"
    f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PARIS}"
)


@pytest.fixture(autouse=True)
def reasons(http: Http) -> None:
    http.engine.text.reasoning = ReasoningUse(FORMATS["qwen3"])
    http.engine.says = SAYS


def prompt(http: Http) -> str:
    params = http.engine.seen[-1]
    assert isinstance(params, GenerateParams)
    return http.engine.tokenizer.decode(params.prompt)


async def test_a_chat_has_reasoning_beside_its_content(http: Http) -> None:
    answer = await http.openai.chat.completions.create(**PLAIN)
    message = answer.choices[0].message.model_dump()
    assert (message["reasoning"], message["content"]) == ("Two and two.", "Four.")
    assert message["reasoning_content"] == message["reasoning"]
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    # The toy has a token for each byte. Of the first mark the last one counts, of the second all but the last.
    assert details.reasoning_tokens == len(">\nTwo and two.\n</think")


async def test_a_stream_has_reasoning_before_content(http: Http) -> None:
    options = {"stream_options": {"include_usage": True}}
    stream = await http.openai.chat.completions.create(**PLAIN, stream=True, extra_body=options)
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks if chunk.choices]
    kinds = [kind for delta in deltas for kind in ("reasoning", "content") if delta.get(kind)]
    assert kinds == sorted(kinds, reverse=True)
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == "Two and two."
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "Two and two."
    assert "".join(delta.get("content") or "" for delta in deltas) == "Four."
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens_details is not None


async def test_reasoning_that_is_not_asked_for_is_left_out(http: Http) -> None:
    answer = await http.openai.chat.completions.create(**PLAIN, extra_body={"include_reasoning": False})
    message = answer.choices[0].message.model_dump()
    assert message["content"] == "Four."
    assert "reasoning" not in message


async def test_a_template_that_begins_the_reasoning_and_values_for_it(http: Http) -> None:
    http.engine.says = "Two and two.</think>Four."
    body = {"chat_template_kwargs": {"open": True, "enable_thinking": True}}
    answer = await http.openai.chat.completions.create(**PLAIN, extra_body=body, reasoning_effort="high")
    message = answer.choices[0].message.model_dump()
    assert (message["reasoning"], message["content"]) == ("Two and two.", "Four.")
    assert '{"reasoning_effort": "high", "open": true, "enable_thinking": true}' in prompt(http)


async def test_no_effort_switches_reasoning_off(http: Http) -> None:
    await http.openai.chat.completions.create(**PLAIN, reasoning_effort="none")
    assert '{"enable_thinking": false, "thinking": false}' in prompt(http)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"messages": []}, "chat_template_kwargs.messages: is given by the server"),
        ({"a b": 1}, "chat_template_kwargs.a b: is no name"),
        ({"_own": 1}, "chat_template_kwargs._own: is no name"),
        ({f"v{place}": 1 for place in range(70)}, "more than 64 values"),
    ],
)
async def test_values_that_no_template_may_get_are_refused(
    http: Http, values: dict[str, Any], message: str
) -> None:
    status, answer = await http.post("/v1/chat/completions", {**PLAIN, "chat_template_kwargs": values})
    assert status == 400
    assert message in answer["error"]["message"]


async def test_earlier_reasoning_goes_to_the_template(http: Http) -> None:
    said = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}
    await http.post("/v1/chat/completions", {**PLAIN, "messages": [USER, said, USER]})
    names = ("reasoning_content", "reasoning", "thinking")
    assert f"<assistant>Four.{json.dumps(dict.fromkeys(names, 'Two and two.'))}<user>" in prompt(http)


async def test_calls_after_reasoning_and_their_tokens_in_the_next_prompt(http: Http) -> None:
    """Where the template had begun the reasoning, the next prompt has that beginning too."""
    http.engine.says = f"I look.</think>{CALL}"
    asked = {**ASKED, "extra_body": {"chat_template_kwargs": {"open": True}}}
    answer = await http.openai.chat.completions.create(**asked)
    said = answer.choices[0].message
    assert said.model_dump()["reasoning"] == "I look."
    (call,) = said.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    messages = [USER, said.model_dump(exclude_none=True), result]
    await http.openai.chat.completions.create(**{**ASKED, "messages": messages})
    assert f"<assistant><think>\nI look.</think>{CALL}<tool>sun" in prompt(http)


async def test_responses_have_an_item_of_reasoning(http: Http) -> None:
    answer = await http.openai.responses.create(model="toy", input="2 + 2?", reasoning={"effort": "low"})
    first, second = answer.output
    assert first.type == "reasoning"
    assert [part.text for part in first.content or []] == ["Two and two."]
    assert second.type == "message"
    assert answer.output_text == "Four."
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    assert '{"reasoning_effort": "low"}' in prompt(http)


async def test_a_stream_of_responses_tells_the_item_as_it_grows(http: Http) -> None:
    stream = await http.openai.responses.create(model="toy", input="2 + 2?", stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    begun = kinds.index("response.output_item.added")
    assert kinds[begun : begun + 3] == [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
    ]
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == "Two and two."
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
    final = events[-1]
    assert final.type == "response.completed"
    assert [item.type for item in final.response.output] == ["reasoning", "message"]
    ids = [item.id for item in final.response.output]
    assert len(set(ids)) == 2


async def test_items_of_reasoning_go_to_the_template_with_the_calls_after_them(http: Http) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": PARIS}
    items = [
        {"role": "user", "content": "Paris?"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "So"}],
        },
        call,
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
    ]
    tools = [{"type": "function", "name": "weather", "parameters": {}}]
    await http.post("/v1/responses", {"model": "toy", "input": items, "tools": tools})
    assert '"reasoning_content": "So"' in prompt(http)


async def test_messages_have_a_block_of_thinking(http: Http) -> None:
    asked: dict[str, Any] = {"model": "toy", "max_tokens": 200, "messages": [USER]}
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    answer = await http.anthropic.messages.create(**asked, thinking=thinking)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == "Two and two."  # type: ignore[union-attr]
    assert '{"enable_thinking": true, "thinking": true}' in prompt(http)
    async with http.anthropic.messages.stream(**asked) as stream:
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == "Two and two."  # type: ignore[union-attr]
    back = [USER, {"role": "assistant", "content": [one.model_dump() for one in final.content]}, USER]
    await http.anthropic.messages.create(**{**asked, "messages": back}, thinking={"type": "disabled"})
    assert '"reasoning_content": "Two and two."' in prompt(http)
    assert '{"enable_thinking": false, "thinking": false}' in prompt(http)


async def test_harmony_has_channels_and_calls(http: Http) -> None:
    http.engine.text.reasoning = ReasoningUse(FORMATS["openai_gptoss"])
    http.engine.text.tool_use = ToolUse(TOOLS["openai"])
    http.engine.says = HARMONY
    answer = await http.openai.chat.completions.create(**ASKED)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.model_dump()["reasoning"] == "I look."
    (call,) = choice.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", PARIS)  # type: ignore[union-attr]
    http.engine.says = "<|channel|>final<|message|>Sun."
    plain = await http.openai.chat.completions.create(**PLAIN)
    assert plain.choices[0].message.content == "Sun."
