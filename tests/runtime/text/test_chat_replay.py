"""What the model said stands in the next prompt as the very tokens it generated, where the template allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.text.body import Body
from moorage.runtime.text.chat_extra import ChatExtra
from moorage.runtime.text.process import TextProcess
from moorage.runtime.text.tokenizer import TextTokenizer
from tests import tokenizers

HERMES = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEEDS_CALLS = (
    "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('a tool answers no call') }}{% endif %}{% endfor %}" + HERMES
)
TWICE = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}" + HERMES
HARMONY = (
    "{% for m in messages %}{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>"
    "{% elif m.role == 'tool' %}{% set asked = messages[loop.index0 - 1].tool_calls[0].function.name %}"
    "<|start|>functions.{{ asked }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "now", "description": "</s> tells", "parameters": {}}}]
ASKED = [{"role": "user", "content": "a </s> <|im_end|> b 🙂"}]
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "now", "arguments": {"zone": "é"}}}],
}
ANSWERED = [*ASKED, CALL, {"role": "tool", "content": "</tool_call> noon", "tool_call_id": "1"}]


def loaded(directory: Path, template: str, kind: str) -> TextTokenizer:
    return TextTokenizer.load(tokenizers.save(directory, kind, {"chat_template.jinja": template}))


def oddly_spelled(tokenizer: TextTokenizer) -> list[int]:
    """Tokens that no encoding of their text gives: one for each character."""
    text = '<tool_call>\n{"name":"now"}'
    ids = [i for letter in text for i in tokenizer.encode(letter, add_special_tokens=False)]
    assert ids != tokenizer.encode(text, add_special_tokens=False)
    return ids


@pytest.mark.parametrize("kind", ["byte_level", "llama2", "gemma", "metaspace"])
def test_the_next_prompt_goes_on_with_the_tokens_that_were_generated(tmp_path: Path, kind: str) -> None:
    tokenizer = loaded(tmp_path, HERMES, kind)
    said = oddly_spelled(tokenizer)
    first = tokenizer.encode_chat(ASKED, tools=TOOLS)
    following = tokenizer.encode_chat(ANSWERED, tools=TOOLS, said={1: said})
    assert following[: len(first) + len(said)] == first + said
    plain = tokenizer.encode_chat([*ASKED, {"role": "assistant", "content": ""}, ANSWERED[2]], tools=TOOLS)
    assert following == plain[: len(first)] + said + plain[len(first) :]


def test_several_answers_keep_their_tokens(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, HERMES, "byte_level")
    one, two = oddly_spelled(tokenizer), oddly_spelled(tokenizer)[::-1]
    ids = tokenizer.encode_chat([*ANSWERED, *ANSWERED], said={1: one, 4: two})
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    assert whole.count("<|im_start|>assistant") == 3
    first = tokenizer.encode_chat(ASKED)
    assert ids[len(first) : len(first) + len(one)] == one
    before = tokenizer.encode_chat([*ANSWERED, *ASKED], said={1: one})
    assert ids[: len(before) + len(two)] == before + two


@pytest.mark.parametrize("template", [NEEDS_CALLS, TWICE])
def test_a_template_that_does_not_allow_it_gets_the_calls_themselves(tmp_path: Path, template: str) -> None:
    tokenizer = loaded(tmp_path, template, "byte_level")
    said = oddly_spelled(tokenizer)
    assert tokenizer.encode_chat(ANSWERED, said={1: said}) == tokenizer.encode_chat(ANSWERED)


def test_in_harmony_the_tokens_begin_within_the_first_header(tmp_path: Path) -> None:
    marks = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|end|>")
    added = tuple(tokenizers.AddedToken(mark, special=True) for mark in marks)
    files = {"chat_template.jinja": HARMONY}
    tokenizer = TextTokenizer.load(tokenizers.save(tmp_path, "byte_level", files, added))
    text = (
        "<|channel|>analysis<|message|>So<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.now<|message|>{"zone":"é"}'
    )
    said = tokenizer.encode(text, add_special_tokens=False)
    first = tokenizer.encode_chat(ASKED)
    ids = tokenizer.encode_chat(ANSWERED, said={1: said})
    assert ids[: len(first) + len(said)] == first + said
    rest = tokenizer.decode(ids[len(first) + len(said) :], skip_special_tokens=False)
    assert rest.startswith("<|call|><|start|>functions.now to=assistant<|channel|>commentary<|message|>")
    assert "now" in tokenizer.decode(tokenizer.encode_chat(ANSWERED), skip_special_tokens=False)


async def test_the_text_process_has_tools_calls_and_tokens_too(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, HERMES, "byte_level")
    said = oddly_spelled(tokenizer)
    extra = ChatExtra(TOOLS, {1: {"tool_calls": CALL["tool_calls"]}, 2: {"tool_call_id": "1"}})
    text = TextProcess(tmp_path, max_bytes_per_token=32)
    await text.start()
    try:
        for known in ({}, {1: said}):
            contents = [message["content"].encode() for message in ANSWERED]
            layout = [
                (message["role"], len(content)) for message, content in zip(ANSWERED, contents, strict=True)
            ]
            with Body(b"".join(contents)) as body:
                more = ChatExtra(extra.tools, extra.fields, known)
                ids = list(await text.encode_chat(body, layout, extra=more))
            assert ids == tokenizer.encode_chat(ANSWERED, tools=TOOLS, said=known)
    finally:
        await text.close()
