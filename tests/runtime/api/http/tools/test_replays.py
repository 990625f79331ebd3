"""Tokens of answers that called tools are kept until clients send the calls back, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moorage.runtime.api.http.prompts import Message
from moorage.runtime.api.http.tools.replays import Replays


def calls(name: str) -> list[Mapping[str, Any]]:
    return [{"id": name, "type": "function", "function": {"name": "look", "arguments": {"at": name}}}]


def answer(name: str, text: str = "") -> Message:
    return Message("assistant", text, {"tool_calls": calls(name)})


def found(replays: Replays, *names: str) -> list[str]:
    """Which of the answers are kept."""
    return [name for name in names if replays.said([answer(name)])]


def test_an_answer_has_its_tokens_where_it_comes_back_unchanged() -> None:
    replays = Replays()
    replays.record(" I look. ", calls("a"), [3, 1, 4])
    question = Message("user", "What is there?", {})
    assert replays.said([question, answer("a", "I look.")]) == {1: [3, 1, 4]}
    assert replays.said([question, answer("a", "I looked.")]) == {}
    changed = Message("assistant", "I look.", {"tool_calls": [{**calls("a")[0], "type": "custom"}]})
    assert replays.said([question, changed]) == {}


def test_answers_that_were_used_last_are_kept_longest() -> None:
    replays = Replays(most_answers=2)
    for name in ("a", "b"):
        replays.record("", calls(name), [1])
    assert found(replays, "a") == ["a"]
    replays.record("", calls("c"), [1])
    assert found(replays, "a", "b", "c") == ["a", "c"]


def test_all_answers_together_have_at_most_so_many_tokens() -> None:
    replays = Replays(most_tokens=10)
    replays.record("", calls("a"), range(4))
    replays.record("", calls("b"), range(4))
    assert found(replays, "a", "b") == ["a", "b"]
    replays.record("", calls("c"), range(5))
    assert found(replays, "a", "b", "c") == ["b", "c"]
    replays.record("", calls("d"), range(11))
    assert found(replays, "a", "b", "c", "d") == []
    replays.record("", calls("e"), range(10))
    assert found(replays, "e") == ["e"]
