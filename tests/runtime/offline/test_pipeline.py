"""A pipeline in this process answers as a served model does."""

from __future__ import annotations

import gc
import json
import math
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage import pipeline
from moorage.client import Finished, InvalidRequest, Progress, Token, Unavailable
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.offline import Pipeline
from moorage.workers.errors import InvalidConfig

LOCAL = Path(__file__).resolve().parents[3] / "deploy" / "local.yaml"
SETTINGS = {
    "kv_store.dram": "32MiB",
    "kv_store.actors": 2,
    "server.max_running": 3,
    "gpu_workers.device": "cpu",
    "sessions.prefixes": False,
}
TEXT = "The keeper of the light wrote down the hour of each ship. "


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipeline]:
    with pipeline(LOCAL, settings=SETTINGS) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    config = load_cluster_config(LOCAL, [f"{key}={value}" for key, value in SETTINGS.items()])
    engine = LocalEngine(config, 1024)
    yield engine
    engine.close()


def test_a_prompt_gets_the_tokens_that_the_engine_gives(pipe: Pipeline, engine: LocalEngine) -> None:
    prompt = pipe.tokenizer.encode(TEXT * 8)
    answer = pipe(TEXT * 8, raw=True, max_new_tokens=8, temperature=0, ignore_eos=True)
    assert answer.usage.prompt_tokens == len(prompt)
    expected = list(engine.generate(prompt, 8))
    assert list(answer.token_ids[: len(expected)]) == expected
    assert answer.text == pipe.tokenizer.decode(answer.token_ids)


def test_a_list_is_answered_in_its_order_whatever_runs_beside(pipe: Pipeline) -> None:
    prompts = [TEXT * (1 + place % 4) + str(place) for place in range(8)]
    together = pipe(prompts, max_new_tokens=5, temperature=0)
    assert isinstance(together, list)
    alone = [pipe(prompt, max_new_tokens=5, temperature=0) for prompt in prompts]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_token_ids_are_one_prompt_and_lists_of_them_are_several(pipe: Pipeline) -> None:
    one = pipe([5, 6, 7], max_new_tokens=2)
    several = pipe([[5, 6, 7], (8, 9)], max_new_tokens=2)
    assert not isinstance(one, list)
    assert isinstance(several, list)
    assert several[0].token_ids == one.token_ids
    assert several[1].usage.prompt_tokens == 2
    assert pipe([]) == []


def test_a_stream_tells_progress_then_tokens_then_the_end(pipe: Pipeline) -> None:
    events = list(pipe.stream(TEXT, max_new_tokens=3, ignore_eos=True))
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[Progress, Token, Finished].index)
    assert kinds.count(Token) == 3
    assert kinds.count(Finished) == 1


def test_a_stream_that_is_closed_frees_what_it_held(pipe: Pipeline) -> None:
    stream = pipe.stream(TEXT * 4, max_new_tokens=400, ignore_eos=True)
    while not isinstance(next(stream), Token):
        continue
    stream.close()  # type: ignore[attr-defined]  # a generator, as the annotation of an iterator can't say
    answer = pipe(TEXT, max_new_tokens=1)
    assert answer.usage.queue_s < answer.usage.total_s
    status = pipe._local.run(pipe._local.coordinator.status())
    assert (status.running, status.waiting) == (0, 0)
    assert sum(actor.used_bytes for actor in status.kv_actors) == 0


def test_the_loss_of_a_text_is_the_mean_of_its_tokens(pipe: Pipeline, engine: LocalEngine) -> None:
    ids = pipe.tokenizer.encode(TEXT * 6)
    expected = -math.fsum(engine.score(ids)) / (len(ids) - 1)
    assert pipe.get_ppl(ids) == pytest.approx([expected], rel=1e-6)
    assert pipe.get_ppl([ids[:20], ids]) == pytest.approx([pipe.score(ids[:20]).loss, expected], rel=1e-6)
    assert pipe.score(TEXT * 6).perplexity == pytest.approx(math.exp(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt is empty"),
        ([0.5], {}, "must be text, token ids"),
        ([-1], {}, "must be text, token ids"),
        ([10**9], {}, "outside the vocabulary"),
        ("a", {"temperature": -1}, "temperature"),
        ("a", {"temperature": "hot"}, "temperature: 'hot' is no number"),
        ("a", {"preset": "nosuch"}, "nosuch"),
        ("a", {"memory": {"block_size": 8}}, "block_size"),
        ([{"role": "user", "content": "Hello"}], {}, "no chat template"),
        (b"\xff", {}, "UTF-8"),
        ("a", {"regex": "("}, "grammar: regex is refused"),
        ("a", {"regex": "a", "lark": "start: /a/"}, "beside another grammar"),
        ("a", {"json_schema": 5}, "json_schema: must be text"),
        ("a", {"regex": "a", "preset": "moorage-exact"}, "can't be combined with memory.verify"),
    ],
)
def test_what_can_not_be_served_is_refused_with_its_name(
    pipe: Pipeline, prompt: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        pipe(prompt, **options)  # type: ignore[call-overload]
    assert pipe("a", max_new_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_follows_its_grammar(pipe: Pipeline, temperature: float) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 200,
        "temperature": temperature,
        "seed": 3,
        "ignore_eos": True,
    }
    answer = pipe(TEXT, regex="(yes|no), [0-9]{4}", **options)
    assert re.fullmatch("(yes|no), [0-9]{4}", answer.text)
    assert answer.finish_reason == "stop"
    shape = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    assert json.loads(pipe(TEXT, json_schema=shape, **options).text)["n"] in (1, 22)
    texts = [one.text for one in pipe([TEXT, TEXT + "x"], lark='start: "a" "b"*', max_new_tokens=4)]  # type: ignore[union-attr]
    assert all(re.fullmatch("ab*", text) for text in texts)
    free = pipe(TEXT, **options)
    assert not re.fullmatch("(yes|no), [0-9]{4}", free.text)


def test_an_unknown_option_is_a_type_error(pipe: Pipeline) -> None:
    with pytest.raises(TypeError, match="temprature"):
        pipe("a", temprature=1)  # type: ignore[call-overload]


def test_a_setting_that_there_is_not_names_its_flag() -> None:
    with pytest.raises(InvalidConfig, match=r"kv_store\.drum"):
        pipeline(LOCAL, settings={"kv_store.drum": "1GiB"})


def test_a_closed_pipeline_says_so() -> None:
    pipe = pipeline(LOCAL, settings={**SETTINGS, "kv_store.actors": 1, "kv_store.dram": "8MiB"})
    pipe.close()
    pipe.close()
    with pytest.raises(Unavailable, match="closed"):
        pipe("a")


def test_a_script_that_does_not_close_ends_quietly() -> None:
    code = (
        f"from moorage import pipeline; pipe = pipeline({str(LOCAL)!r}, settings={{'kv_store.dram': '8MiB'}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Task" not in done.stderr


def test_a_pipeline_that_nobody_refers_to_gives_its_memory_back() -> None:
    pipe = pipeline(LOCAL, settings={**SETTINGS, "kv_store.actors": 1, "kv_store.dram": "8MiB"})
    executor = weakref.ref(pipe._local.coordinator)
    del pipe
    gc.collect()
    assert executor() is None


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, moorage; assert 'torch' not in sys.modules; moorage.pipeline; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
