"""`inspect` adds where the answer looked to its last event, and nothing where it is not asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.runtime.api.http.conftest import Http

USER = {"messages": [{"role": "user", "content": "hi"}]}
ATTENTION = {"block_size": 16, "shares": [0.75, 0.25]}


async def last_choice(http: Http, body: dict[str, Any]) -> dict[str, Any]:
    """The last chunk with a choice of a streamed answer."""
    text = (await http.client.post("/v1/chat/completions", json={**body, "stream": True})).text
    events = [json.loads(frame.removeprefix("data: ")) for frame in text.strip().split("\n\n")[:-1]]
    return next(event for event in reversed(events) if event["choices"])


@pytest.mark.parametrize("asked", [True, False])
async def test_the_last_event_has_it(http: Http, asked: bool) -> None:
    last = await last_choice(http, {**USER, "inspect": asked})
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["choices"][0].get("attention") == (ATTENTION if asked else None)


@pytest.mark.parametrize(("path", "body"), [("chat/completions", USER), ("completions", {"prompt": "hi"})])
async def test_a_whole_answer_has_it_too(http: Http, path: str, body: dict[str, Any]) -> None:
    for asked in (True, False):
        _, answer = await http.post(f"/v1/{path}", {**body, "inspect": asked})
        assert answer["choices"][0].get("attention") == (ATTENTION if asked else None)
