"""The routes over the real coordinator, worker, stores and text process, with the embedded model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.runtime.api.http.real_server import Served, serving

FACT = "The pass key is 48213. Remember it. 48213 is the pass key."


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as found:
        yield found


async def test_text_goes_in_text_comes_out_and_an_echo_tells_what_was_likeliest(served: Served) -> None:
    asked: dict[str, Any] = {"model": "", "temperature": 0, "logprobs": 1}
    answer = await served.openai.completions.create(**asked, prompt=FACT, max_tokens=6)
    said, logprobs = answer.choices[0].text, answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == said
    echo = await served.openai.completions.create(**asked, prompt=FACT + said, max_tokens=1, echo=True)
    scored = echo.choices[0].logprobs
    assert scored is not None
    assert scored.tokens is not None
    assert scored.token_logprobs is not None
    assert scored.top_logprobs is not None
    assert echo.choices[0].text.startswith(FACT + said)
    # The answer was greedy: each of its tokens is the likeliest one at its place, as likely as it was told.
    own = range(len(scored.tokens) - 1 - len(logprobs.tokens), len(scored.tokens) - 1)
    assert [scored.tokens[place] for place in own] == logprobs.tokens
    assert [len(scored.top_logprobs[place]) for place in own] == [1] * len(own)
    told = [scored.token_logprobs[place] for place in own]
    assert told == pytest.approx(logprobs.token_logprobs, abs=1e-3)
    best = [max(top.values()) for top in scored.top_logprobs[1:]]
    assert all(given <= most for given, most in zip(scored.token_logprobs[1:], best, strict=True))
    assert any(given < most for given, most in zip(scored.token_logprobs[1:], best, strict=True))


async def test_a_session_pays_only_for_what_is_new(served: Served) -> None:
    for cached in (False, True):
        answer = await served.openai.completions.create(
            model="", prompt=FACT * 4, max_tokens=2, extra_body={"session_id": "mine", "preset": "full"}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert bool(answer.usage.prompt_tokens_details.cached_tokens) is cached


async def test_an_inspected_answer_says_where_it_looked(served: Served) -> None:
    answer = await served.openai.completions.create(
        model="", prompt=FACT * 8, max_tokens=8, extra_body={"inspect": True, "ignore_eos": True}
    )
    assert answer.usage is not None
    attention = (answer.choices[0].model_extra or {})["attention"]
    num_attended = answer.usage.total_tokens - 1  # The last token was drawn, and attended nothing.
    assert len(attention["shares"]) == -(-num_attended // attention["block_size"])
    assert sum(attention["shares"]) == pytest.approx(1, abs=1e-3)


async def test_leaving_a_stream_frees_all_that_it_held(served: Served) -> None:
    for text in (FACT, FACT * 40):
        stream = await served.openai.completions.create(
            model="", prompt=text, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        await stream.close()
        await served.idle()


async def test_answers_follow_a_schema_each_for_itself(served: Served) -> None:
    schema = {"type": "object", "properties": {"key": {"type": "integer"}}, "required": ["key"]}
    answer = await served.openai.completions.create(
        model="", prompt=FACT, max_tokens=40, n=2, extra_body={"guided_json": schema, "top_k": 50}
    )
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.text)["key"], int)
        else:
            assert choice.text.lstrip().startswith("{")
