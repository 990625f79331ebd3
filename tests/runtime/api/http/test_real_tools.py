"""Demanded calls of an embedded model, and what its session pays for the next turn."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.api.http.real_server import Served, serving

PILOT = Path(__file__).resolve().parents[4] / "deploy" / "models" / "moorage-pilot"
TEMPLATE = (
    "{% if tools %}<s>{{ tools | tojson }} Answer with <tool_call>.</s>{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
HARMONY = (
    "{% for m in messages %}{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>{% elif m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{% if not messages %}{{ tools }}{% endif %}"
)
DEEPSEEK = (
    "{% for m in messages %}{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}<｜Assistant｜></think>"
    "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + f.arguments }}"
    "<｜tool▁calls▁end｜>"
    "{% elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"
    "{% elif m.role == 'assistant' %}<｜Assistant｜></think>{{ m.content }}{% else %}<｜User｜>{{ m.content }}"
    "{% endif %}"
    "{% endfor %}{% if add_generation_prompt and messages[-1].role == 'user' %}<｜Assistant｜></think>{% endif %}"
    "{% if not messages %}{{ tools }}{% endif %}"
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"unit": {"enum": ["metres", "miles"]}, "round": {"type": "boolean"}},
    "required": ["unit", "round"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("length", "depth")
]
USER = {"role": "user", "content": "How deep is the sea? " * 20}


@pytest.fixture(params=[TEMPLATE, HARMONY, DEEPSEEK], ids=["hermes", "harmony", "deepseek"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    model = tmp_path / "with-tools"
    shutil.copytree(PILOT, model)
    (model / "chat_template.jinja").write_text(request.param)
    async with serving(f"model.path={model}") as found:
        yield found


async def test_a_demanded_call_matches_its_schema_and_serves_the_next_turn_again(served: Served) -> None:
    create = served.openai.chat.completions.create
    demanded: Any = {"type": "function", "function": {"name": "depth"}}
    session = {"session_id": "sea", "preset": "full"}
    asked: dict[str, Any] = {"model": "", "tools": TOOLS, "extra_body": session, "max_tokens": 400}
    answer = await create(**asked, messages=[USER], tool_choice=demanded)  # type: ignore[call-overload]
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert call.function.name == "depth"
    arguments = json.loads(call.function.arguments)
    assert arguments["unit"] in ("metres", "miles")
    assert isinstance(arguments["round"], bool)

    said = choice.message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call.id, "content": "It is 3 700 metres."}
    following = await create(**{**asked, "max_tokens": 2}, messages=[USER, said, result])
    held = answer.usage.prompt_tokens + answer.usage.completion_tokens
    cached = following.usage.prompt_tokens_details.cached_tokens
    assert cached == held - 1, "the last token was sampled and not read"

    said["tool_calls"][0]["id"] = "call_unknown"
    anew = await create(
        **{**asked, "max_tokens": 2, "extra_body": {**session, "session_id": "other"}},
        messages=[USER, said, result],
    )
    assert anew.usage.prompt_tokens != following.usage.prompt_tokens, "the template writes the call otherwise"


async def test_a_required_call_is_streamed(served: Served) -> None:
    stream = await served.openai.chat.completions.create(
        model="",
        tools=TOOLS,
        messages=[USER],  # type: ignore[list-item]
        tool_choice="required",
        parallel_tool_calls=False,
        stream=True,
        max_tokens=400,
    )
    chunks = [chunk async for chunk in stream]
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function is not None
    assert calls[0].function.name in ("length", "depth")
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert set(json.loads(arguments)) == {"unit", "round"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
