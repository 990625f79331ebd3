"""POST /v1/completions over a real loopback connection."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moorage.runtime.serving.protocol import GenerateParams, ScoreParams
from tests.runtime.api.http.conftest import Http
from tests.toy_engine import BOS, VOCAB_SIZE


async def test_a_text_goes_on(http: Http) -> None:
    answer = await http.openai.completions.create(model="toy", prompt="abcdef", max_tokens=3)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abc", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)


async def test_without_a_limit_sixteen_tokens_come(http: Http) -> None:
    answer = await http.openai.completions.create(model="toy", prompt="x" * 50)
    assert answer.choices[0].text == "x" * 16


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([97, 98], ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
)
async def test_a_prompt_may_be_ids_and_there_may_be_several(
    http: Http, prompt: list[Any], said: list[str]
) -> None:
    answer = await http.openai.completions.create(model="toy", prompt=prompt)
    assert [choice.text for choice in answer.choices] == said


async def test_more_prompts_than_run_at_once_are_all_answered_in_order(http: Http) -> None:
    prompts = [f"p{place}" for place in range(20)]
    answer = await http.openai.completions.create(model="toy", prompt=prompts, n=2)
    assert [choice.index for choice in answer.choices] == list(range(40))
    assert [choice.text for choice in answer.choices] == [prompt for prompt in prompts for _ in range(2)]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(prompt) + 1 for prompt in prompts)


async def test_an_echo_has_the_prompt_and_its_log_probabilities(http: Http) -> None:
    """What lm-evaluation-harness sends for a log-likelihood."""
    asked = {"prompt": [97, 98, 99], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    _, answer = await http.post("/v1/completions", asked)
    choice = answer["choices"][0]
    assert choice["text"] == "abca"
    scored = [-98 / VOCAB_SIZE, -99 / VOCAB_SIZE]
    assert choice["logprobs"]["token_logprobs"] == [None, *scored, -0.5]
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "a"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert choice["logprobs"]["top_logprobs"][1] == {"b": scored[0], "": scored[0] / 2}
    assert http.engine.tokenizer.decode([BOS]) == "", "the toy's likeliest token is spelled so"


async def test_an_echo_without_new_tokens_scores_the_prompt(http: Http) -> None:
    asked = {"prompt": "ab", "max_tokens": 0, "logprobs": 1, "echo": True}
    _, answer = await http.post("/v1/completions", asked)
    assert isinstance(http.engine.seen[-1], ScoreParams)
    assert answer["choices"][0]["text"] == "ab"
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -97 / VOCAB_SIZE, -98 / VOCAB_SIZE]
    assert answer["usage"]["completion_tokens"] == 0


async def test_a_stream_echoes_first(http: Http) -> None:
    asked = {"prompt": "ab", "echo": True, "logprobs": 0, "stream": True}
    response = await http.client.post("/v1/completions", json=asked)
    chunks = [json.loads(e[6:]) for e in response.text.split("\n\n") if e[6:].startswith("{")]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["aba", "b", ""]
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert logprobs[0]["tokens"] == ["", "a", "b", "a"]
    assert logprobs[2] is None
    assert response.text.endswith("data: [DONE]\n\n")


async def test_the_default_limit_and_the_echo_do_not_change_what_is_generated(http: Http) -> None:
    await http.post("/v1/completions", {"prompt": "ab", "echo": True})
    params = http.engine.seen[-1]
    assert isinstance(params, GenerateParams)
    assert (params.max_new_tokens, params.prompt_logprobs) == (16, False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt: field required"),
        ({"prompt": []}, "prompt: is empty"),
        ({"prompt": [[]]}, "prompt[0]: is no prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]: is no prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]: is no token id"),
        ({"prompt": [1, -1]}, "prompt[1]: is no token id"),
        ({"prompt": [1, True]}, "prompt[1]: is no token id"),
        ({"prompt": [999]}, "token_ids[0]: 999 is outside the vocabulary"),
        ({"prompt": ["a"] * 129}, "prompt: 129 prompts are too many"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: 0 is below 1"),
        ({"prompt": "a", "logprobs": 21}, "logprobs: "),
        ({"prompt": "a", "logprobs": 5, "echo": True}, "logprobs: 5 with echo"),
        ({"prompt": "a", "suffix": "z"}, "suffix: is not supported"),
        ({"prompt": "a" * 70_000}, "prompt: has more than 65536 bytes of text"),
    ],
)
async def test_a_refusal_names_the_field(http: Http, body: dict[str, Any], message: str) -> None:
    status, answer = await http.post("/v1/completions", body)
    assert status == 400
    assert answer["error"]["message"].startswith(message)
