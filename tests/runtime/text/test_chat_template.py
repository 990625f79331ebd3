"""Chat templates, rendered and encoded as transformers does: every feature, from every file that may hold one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidModel, InvalidRequest
from tests import tokenizers
from tests.tokenizers import SENTENCE

MESSAGES = (
    {"role": "system", "content": "  You are a helpful assistant.\n"},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "<think>\nParis, é 日本\n</think>\n\n Paris. "},
    {"role": "user", "content": SENTENCE},
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCT = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>' + messages[0]['content'] | trim + '<</SYS>> ' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system, rest = '', messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- elif message.role == "assistant" %}
        {{- ' ' ~ message.content | trim ~ ' ' ~ eos_token }}
    {%- endif %}
{%- endfor %}
"""
REASONING = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}
"""
TEMPLATES = {
    "chatml": CHATML,
    "instruct": INSTRUCT,
    "reasoning": REASONING,
    "tools and documents": (
        "{% if tools is not none %}tools{% endif %}{% if documents is none %}none{% endif %}"
        "{% if tools is defined and not tools %}no tools{% endif %}" + CHATML
    ),
    "generation": (
        "{% for m in messages %}{% set x = 1 %}{% if m.role == 'assistant' %}"
        "{% generation %}{% set x = 2 %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{%- else %}  {%- generation -%} {{ m.content }} {%- endgeneration -%}{% endif %}{{ x }}{% endfor %}"
    ),
    "tojson": (
        "{{ messages | tojson }}\n{{ messages | tojson(ensure_ascii=True) }}{{ messages[0] | tojson(indent=2) }}"
        "{{ {'b': 1, 'a': ['é', none, true]} | tojson(sort_keys=True, separators=(',', ':')) }}"
    ),
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}|" + CHATML,
    "slices": (
        "{% for m in messages %}{{ m.content[2:9] }}{{ m['content'][::-1] }}{{ m.content | length }}{% endfor %}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "macros": (
        "{% macro turn(m, end='') %}<|im_start|>{{ m.role | upper }}: {{ m['content'] }}{{ end }}{% endmacro %}"
        "{% for m in messages %}{{ turn(m, '<|im_end|>' if not loop.last) }}\n{% endfor %}"
    ),
    "dates": "{{ strftime_now('%Y') }} {{ messages | map(attribute='role') | join(', ') }}",
}


def oracle(directory: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize("kind", ["byte_level", "llama2", "gemma", "metaspace"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_tokens_equal_those_of_transformers(tmp_path: Path, name: str, kind: str) -> None:
    tokenizers.save(tmp_path, kind, {"chat_template.jinja": TEMPLATES[name]})
    theirs, mine = oracle(tmp_path), TextTokenizer.load(tmp_path)
    for count in range(1, len(MESSAGES) + 1):
        messages = list(MESSAGES[:count])
        for prompt in (True, False):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert mine.render_chat(messages, add_generation_prompt=prompt) == text
            assert mine.encode_chat(messages, add_generation_prompt=prompt) == theirs.encode(
                text, add_special_tokens=False
            )


SPECIAL_FILES = {
    "tokenizer_config.json alone": {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "<|im_end|>"}},
    "special_tokens_map.json alone": {
        "tokenizer_config.json": {},
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}},
    },
    "the older file goes first": {
        "tokenizer_config.json": {"bos_token": "</s>"},
        "special_tokens_map.json": {"bos_token": "<s>"},
    },
    "also where it says null": {
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"},
        "special_tokens_map.json": {"bos_token": None},
    },
    "unless the other lists added tokens": {
        "tokenizer_config.json": {
            "bos_token": {"__type": "AddedToken", "content": "<s>"},
            "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
        },
        "special_tokens_map.json": {"bos_token": "</s>", "eos_token": "</s>"},
    },
}


@pytest.mark.parametrize("files", SPECIAL_FILES.values(), ids=SPECIAL_FILES)
def test_special_tokens_of_every_file(tmp_path: Path, files: dict[str, Any]) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
    tokenizers.save(tmp_path, "byte_level", {**files, "chat_template.jinja": template})
    messages = list(MESSAGES[:1])
    text = oracle(tmp_path).apply_chat_template(messages, tokenize=False)
    assert TextTokenizer.load(tmp_path).render_chat(messages) == text


NAMED = [{"name": "default", "template": "config"}, {"name": "tool_use", "template": "config with tools"}]
PLACES = {
    "chat_template.jinja": {"chat_template.jinja": "file"},
    "tokenizer_config.json": {"tokenizer_config.json": {"chat_template": "config"}},
    "a list of named ones": {"tokenizer_config.json": {"chat_template": NAMED}},
    "a file goes first": {
        "chat_template.jinja": "file",
        "tokenizer_config.json": {"chat_template": NAMED},
        "chat_template.json": {"chat_template": "json"},
    },
    "named files": {
        "chat_template.jinja": "file",
        "additional_chat_templates/tool_use.jinja": "file with tools",
    },
}


@pytest.mark.parametrize("files", PLACES.values(), ids=PLACES)
def test_templates_of_every_place(tmp_path: Path, files: dict[str, Any]) -> None:
    tokenizers.save(tmp_path, "byte_level", files)
    theirs, mine = oracle(tmp_path), TextTokenizer.load(tmp_path)
    assert mine.has_chat_template
    messages = list(MESSAGES[:1])
    for tools in (None, [{"type": "function", "function": {"name": "f"}}]):
        assert mine.render_chat(messages, tools=tools) == theirs.apply_chat_template(
            messages, tools=tools, tokenize=False
        )


def test_the_file_of_processors_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    tokenizers.save(tmp_path, "byte_level", {"chat_template.json": {"chat_template": "json"}})
    assert TextTokenizer.load(tmp_path).render_chat([]) == "json"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"chat_template.jinja": "{% if %}"}, r"chat_template\.jinja: the chat template can't be read \("),
        ({"chat_template.jinja": "{% generation %}"}, r"chat_template\.jinja: .*endgeneration"),
        ({"chat_template.jinja": "(" * 9 + "{{ " + "(" * 10_000}, r"chat_template\.jinja: the chat template"),
        ({"tokenizer_config.json": {"chat_template": "{{"}}, r"tokenizer_config\.json: the chat template"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default"}]}}, r"chat_template is .*must be"),
        ({"tokenizer_config.json": {"chat_template": 7}}, r"tokenizer_config\.json: chat_template is 7"),
        ({"tokenizer_config.json": {"eos_token": 7}}, r"tokenizer_config\.json: eos_token is 7"),
        ({"tokenizer_config.json": "[]"}, r"tokenizer_config\.json: holds list"),
        ({"special_tokens_map.json": "{"}, r"special_tokens_map\.json: not valid JSON"),
        ({"chat_template.json": "{"}, r"chat_template\.json: not valid JSON"),
        ({"additional_chat_templates/tool_use.jinja": "{{"}, r"tool_use\.jinja: the chat template"),
    ],
)
def test_a_file_that_is_wrong_is_refused_at_load_by_its_name(
    tmp_path: Path, files: dict[str, Any], words: str
) -> None:
    tokenizers.save(tmp_path, "byte_level", files)
    with pytest.raises(InvalidModel, match=words) as caught:
        TextTokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_template_that_is_no_utf8_is_refused_at_load(tmp_path: Path) -> None:
    tokenizers.save(tmp_path, "byte_level")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InvalidModel, match=r"chat_template\.jinja: not a chat template in UTF-8"):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
        ("{{ messages.append(1) }}", "refuses the messages: .*append"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages: .*unsafe"),
        ("{{ messages | nothing }}", "refuses the messages: No filter named 'nothing'"),
        ("{{ 1 // 0 }}", "fails with ZeroDivisionError"),
        ("{{ messages + 1 }}", "fails with TypeError"),
        ("{{ strftime_now(3) }}", "fails with TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails with RecursionError"),
    ],
)
def test_a_template_that_refuses_or_fails_is_named_in_one_line(
    tmp_path: Path, template: str, words: str
) -> None:
    tokenizers.save(tmp_path, "byte_level", {"chat_template.jinja": template})
    with pytest.raises(InvalidRequest, match=rf"chat_template\.jinja: the model's .*{words}") as caught:
        TextTokenizer.load(tmp_path).encode_chat(MESSAGES[:2])
    assert "\n" not in str(caught.value)


def test_a_model_without_a_template_takes_no_messages(tmp_path: Path) -> None:
    tokenizers.save(tmp_path, "byte_level")
    plain = TextTokenizer.load(tmp_path)
    assert not plain.has_chat_template
    with pytest.raises(InvalidRequest, match=r"has no chat template \(.*send a plain prompt"):
        plain.encode_chat(MESSAGES[:2])
    named = {"chat_template": [{"name": "rag", "template": "x"}]}
    tokenizers.save(tmp_path, "byte_level", {"tokenizer_config.json": named})
    with pytest.raises(InvalidRequest, match="only has the named ones rag"):
        TextTokenizer.load(tmp_path).encode_chat(MESSAGES[:2])


@pytest.mark.parametrize(
    ("template", "known", "unknown"),
    [
        (CHATML, {"system", "user", "assistant", "tool"}, {"narrator", "", "user\n", "<|im_end|>"}),
        (INSTRUCT, {"system", "user", "assistant"}, {"tool", "USER", "assistant<|im_end|>"}),
        (
            "{% for m in messages %}{% if m['role'] in ['human', 'user'] %}h{% elif 'bot' == m.role %}b{% endif %}"
            "{{ m.content }}{% endfor %}",
            {"human", "user", "bot", "assistant"},
            {"tool", "h"},
        ),
        (
            "{% set names = {'ipython': 'x', 'user': 'u'} %}{% for m in messages %}{% set r = m.role %}"
            "{{ names[r] }}{% endfor %}",
            {"ipython", "user"},
            {"x", "narrator"},
        ),
    ],
)
def test_roles_are_the_templates(tmp_path: Path, template: str, known: set[str], unknown: set[str]) -> None:
    tokenizers.save(tmp_path, "byte_level", {"chat_template.jinja": template})
    tokenizer = TextTokenizer.load(tmp_path)
    ends = [{"role": "user", "content": "a"}]
    for role in known:
        first = [] if role == "system" else [{"role": "user", "content": "a"}] * (role != "user")
        tokenizer.encode_chat([*first, {"role": role, "content": "b"}, *ends * (role == "system")])
    for role in unknown:
        with pytest.raises(
            InvalidRequest, match=r"message 2: role '.*' is unknown.*use one of .*user"
        ) as caught:
            tokenizer.encode_chat([*ends, {"role": role, "content": "b"}])
        assert "\n" not in str(caught.value)
