"""POST /chat, as the web interface of InfLLM calls it."""

from __future__ import annotations

import pytest

from moorage.runtime.serving.protocol import GenerateParams
from moorage.workers.errors import Unavailable
from tests.runtime.api.http.conftest import Http

ASKED = {
    "prompt": "two\nlines",
    "history": [{"role": "user", "content": "one"}, {"role": "bot", "content": "1"}],
}
SAID = "<user>one<assistant>1<user>two\nlines"


async def test_a_prompt_and_a_history_are_answered_at_once(http: Http) -> None:
    assert await http.post("/chat?stream=false", ASKED) == (200, {"response": SAID})
    params = http.engine.seen[-1]
    assert isinstance(params, GenerateParams)
    assert (params.max_new_tokens, params.sampling.temperature) == (512, 0.7)


async def test_or_by_events_in_which_line_ends_survive(http: Http) -> None:
    response = await http.client.post("/chat", json=ASKED)
    events = response.text.removesuffix("\n\n").split("\n\n")
    texts = ["\n".join(line.removeprefix("data: ") for line in event.split("\n")) for event in events]
    assert "".join(texts) == SAID


async def test_its_errors_are_one_text(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    status, body = await http.post("/chat", {"history": []})
    assert (status, body["error"]) == (400, "prompt: is missing; send what the user says")
    monkeypatch.setattr(
        http.engine, "_usage", lambda *_: (_ for _ in ()).throw(Unavailable("the worker is gone"))
    )
    assert (await http.client.post("/chat", json=ASKED)).text.endswith(
        "data: [Error: the worker is gone]\n\n"
    )


async def test_the_status_says_whether_it_is_ready(http: Http) -> None:
    assert (await http.client.get("/status")).json()["ready"] is True
