"""Whole exchanges of Codex and of Claude Code, by the requests and the event sequences of their public documentation.

The bodies have every field and header that these programs send, in their order. The answers are read as the programs
read them: Codex takes items from `response.output_item.done` alone and needs `response.completed` with its usage, and
Claude Code puts blocks together from their deltas.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.runtime.api.http.conftest import Http
from tests.runtime.api.http.test_chat_tools import prompt

LISTED = "hello.py\nREADME.md\n"
CODEX_HEADERS = {
    "originator": "codex_cli_rs",
    "user-agent": "codex_cli_rs/0.104.0 (Linux 6.8; x86_64) xterm",
    "version": "0.104.0",
    "openai-beta": "responses=experimental",
    "session_id": "0199a213-81c0-7800-8aa1-bbab2a035a53",
    "conversation_id": "0199a213-81c0-7800-8aa1-bbab2a035a53",
    "x-codex-turn-metadata": "{}",
    "accept": "text/event-stream",
    "authorization": "Bearer none",
}
SHELL = {
    "type": "function",
    "name": "shell",
    "description": "Runs a shell command and returns its output.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "command": {"type": "array", "items": {"type": "string"}, "description": "The command"},
            "workdir": {"type": "string"},
            "timeout_ms": {"type": "number"},
        },
        "required": ["command"],
        "additionalProperties": False,
    },
}
CODEX_ASKED: list[dict[str, Any]] = [
    {
        "type": "message",
        "role": "developer",
        "content": [{"type": "input_text", "text": "<permissions instructions>…</permissions instructions>"}],
    },
    {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_text", "text": "<environment_context>\n  <cwd>/src</cwd>\n</environment_context>"}
        ],
    },
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Which files are here?"}]},
]
CODEX: dict[str, Any] = {
    "model": "toy",
    "instructions": "You are a coding agent running in the Codex CLI.",
    "input": CODEX_ASKED,
    "tools": [
        SHELL,
        {"type": "function", "name": "update_plan", "strict": False, "parameters": {"type": "object"}},
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Edits files.",
            "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
        },
        {"type": "web_search", "external_web_access": False},
        {"type": "local_shell"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
    "text": {"verbosity": "low"},
    "client_metadata": {"x-codex-installation-id": "1"},
    "service_tier": None,
}
CODEX_CALL = 'I look.<tool_call>\n{"name": "shell", "arguments": {"command": ["ls"]}}\n</tool_call>'

CLAUDE_HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,prompt-caching-scope-2026-01-05",
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.1.20 (external, cli)",
    "x-app": "cli",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
    "x-api-key": "none",
}
MARK = {"cache_control": {"type": "ephemeral"}}
READ = {
    "name": "Read",
    "description": "Reads a file.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"file_path": {"type": "string"}, "limit": {"type": "number"}},
        "required": ["file_path"],
        "additionalProperties": False,
    },
}
CLAUDE: dict[str, Any] = {
    "model": "toy",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>"},
                {"type": "text", "text": "What does hello.py say?", **MARK},
            ],
        }
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.20; cc_entrypoint=cli;"},
        {"type": "text", "text": "You are Claude Code.", **MARK},
        {"type": "text", "text": "You help with software.", **MARK},
    ],
    "tools": [READ, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
    "metadata": {"user_id": "user_1_account__session_2"},
    "max_tokens": 32_000,
    "thinking": {"type": "enabled", "budget_tokens": 31_999},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}
CLAUDE_CALL = (
    'I read it.<tool_call>\n{"name": "Read", "arguments": {"file_path": "/src/hello.py"}}\n</tool_call>'
)


async def codex_turn(http: Http, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items of one answer, read as Codex does, with its checks of each event."""
    body = {**CODEX, "input": items, "stream": True}
    response = await http.client.post("/v1/responses", json=body, headers=CODEX_HEADERS)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(frame.split("data: ", 1)[1]) for frame in response.text.strip().split("\n\n")]
    assert events[0]["type"] == "response.created"
    assert events[0]["response"]["id"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in added] == [item["type"] for item in done]
    last = events[-1]
    assert last["type"] == "response.completed", "Codex takes any other end for a broken stream"
    usage = last["response"]["usage"]
    counts = [usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]]
    counts += [
        usage["input_tokens_details"]["cached_tokens"],
        usage["output_tokens_details"]["reasoning_tokens"],
    ]
    assert all(type(count) is int for count in counts)
    return done


async def claude_turn(http: Http, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The blocks of one answer, put together from their deltas as Claude Code does, and why it stopped."""
    body = {**CLAUDE, "messages": messages}
    response = await http.client.post("/v1/messages?beta=true", json=body, headers=CLAUDE_HEADERS)
    assert response.status_code == 200, response.text
    blocks: list[dict[str, Any]] = []
    spelled: list[str] = []
    stop = ""
    for frame in response.text.strip().split("\n\n"):
        event = json.loads(frame.split("data: ", 1)[1])
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
                spelled.append("")
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1
                spelled[-1] += event["delta"].get("text", event["delta"].get("partial_json", ""))
            case "message_delta":
                stop = event["delta"]["stop_reason"]
                assert event["usage"]["output_tokens"] > 0
    for block, text in zip(blocks, spelled, strict=True):
        block.update({"text": text} if block["type"] == "text" else {"input": json.loads(text or "{}")})
    return blocks, stop


async def test_codex_runs_a_command_and_answers(http: Http) -> None:
    http.engine.says = CODEX_CALL
    said, call = await codex_turn(http, CODEX_ASKED)
    assert (said["type"], said["role"], said["content"][0]["text"]) == ("message", "assistant", "I look.")
    assert (call["type"], call["name"]) == ("function_call", "shell")
    assert json.loads(call["arguments"]) == {"command": ["ls"]}
    first = prompt(http)
    assert "apply_patch" not in first, "no model but OpenAI's own writes custom tools"
    assert '"update_plan"' in first
    output = json.dumps({"output": LISTED, "metadata": {"exit_code": 0, "duration_seconds": 0.1}})
    reasoning = {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None}
    answer = {"type": "function_call_output", "call_id": call["call_id"], "output": output}
    http.engine.says = "Two files."
    (said_next,) = await codex_turn(http, [*CODEX_ASKED, reasoning, said, call, answer])
    assert said_next["content"][0]["text"] == "Two files."
    assert prompt(http).startswith(f"{first}<assistant>{CODEX_CALL}<tool>{output}"), "its KV serves again"


async def test_codex_reads_outputs_in_parts(http: Http) -> None:
    http.engine.says = CODEX_CALL
    _, call = await codex_turn(http, CODEX_ASKED)
    parts = [{"type": "input_text", "text": "one "}, {"type": "input_text", "text": "two"}]
    answer = {"type": "function_call_output", "call_id": call["call_id"], "output": parts}
    http.engine.says = "Fine."
    await codex_turn(http, [*CODEX_ASKED, call, answer])
    assert "<tool>one \ntwo" in prompt(http)


async def test_a_stored_response_is_refused_and_says_what_to_send(http: Http) -> None:
    """Codex sends its whole conversation; `store` is taken, and told as false in the answer."""
    status, response = await http.post("/v1/responses", {**CODEX, "store": True})
    assert (status, response["store"]) == (200, False)
    status, refused = await http.post("/v1/responses", {**CODEX, "previous_response_id": response["id"]})
    assert status == 400
    assert "send the whole conversation" in refused["error"]["message"]


async def test_claude_code_reads_a_file_and_answers(http: Http) -> None:
    http.engine.says = CLAUDE_CALL
    blocks, stop = await claude_turn(http, CLAUDE["messages"])
    assert stop == "tool_use"
    said, call = blocks
    assert said == {"type": "text", "text": "I read it."}
    assert (call["name"], call["input"]) == ("Read", {"file_path": "/src/hello.py"})
    first = prompt(http)
    assert "billing" not in first
    assert "You are Claude Code.You help with software." in first.replace("\n", "")
    result = {"tool_use_id": call["id"], "type": "tool_result", "content": "1→print('hi')", **MARK}
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    messages = [
        *CLAUDE["messages"],
        {"role": "assistant", "content": [thinking, said, call]},
        {"role": "user", "content": [result]},
    ]
    http.engine.says = "It says hi."
    blocks, stop = await claude_turn(http, messages)
    assert (blocks, stop) == ([{"type": "text", "text": "It says hi."}], "end_turn")
    assert prompt(http).startswith(f"{first}<assistant>{CLAUDE_CALL}<tool>1→print('hi')")


async def test_claude_codes_side_calls_are_answered(http: Http) -> None:
    """A question of one token for its quota, the tokens of a conversation, and what no model is asked."""
    quota = {"model": "toy", "max_tokens": 1, "messages": [{"role": "user", "content": "quota"}]}
    answer = await http.client.post("/v1/messages?beta=true", json=quota, headers=CLAUDE_HEADERS)
    assert answer.status_code == 200
    counted = {name: CLAUDE[name] for name in ("model", "messages", "system", "tools", "thinking")}
    answer = await http.client.post(
        "/v1/messages/count_tokens?beta=true", json=counted, headers=CLAUDE_HEADERS
    )
    assert answer.json()["input_tokens"] > 0
    telemetry = await http.client.post("/api/event_logging/batch", json={"events": []})
    assert telemetry.status_code == 404


@pytest.mark.parametrize("form", [{"type": "json_schema", "schema": {"type": "object"}}, {"type": "grammar"}])
async def test_the_format_that_a_title_must_have_is_obeyed(http: Http, form: dict[str, Any]) -> None:
    """The toy engine follows no grammar and says so, which shows that one was asked for."""
    body = {**CLAUDE, "output_config": {"format": form}, "stream": False}
    status, refused = await http.post("/v1/messages", body)
    assert status == 400
    wanted = "the toy engine follows none" if "schema" in form else "output_config.format.type: must be"
    assert wanted in refused["error"]["message"]
