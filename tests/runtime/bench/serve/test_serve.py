"""`runtime bench serve`: what is asked, what is timed, and the figures that come of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moorage.runtime.bench.serve.figures import figures_of, parse_limits
from moorage.runtime.bench.serve.run import Served, run_load
from moorage.runtime.bench.serve.traces import Load, conversations
from tests.runtime.bench.serve.command import run_bench
from tests.toy_engine import ToyEngine
from tests.toy_server import toy_server

TEXT = tuple(range(3, 200))


def load(**changes: Any) -> Load:
    values = {
        "conversations": 3,
        "turns": 2,
        "input_tokens": 50,
        "output_tokens": 4,
        "rate": math.inf,
        "max_concurrency": 2,
    }
    return Load(**{**values, **changes})


@pytest.mark.parametrize("length", [1, 8, 9, 500])
def test_a_seed_gives_the_same_conversations_of_the_length_asked_for(length: int) -> None:
    asked = load(input_tokens=length, conversations=20, rate=10.0, seed=4)
    found = list(conversations(asked, TEXT))
    assert found == list(conversations(asked, TEXT))
    assert found != list(conversations(load(input_tokens=length, conversations=20, rate=10.0, seed=5), TEXT))
    assert {len(one.document) for one in found} == {length}
    assert [len(one.questions) for one in found] == [1] * 20
    starts = [one.starts_s for one in found]
    assert starts == sorted(starts)
    assert 0.5 < starts[-1] < 6


def test_no_two_documents_begin_alike() -> None:
    heads = [one.document[:8] for one in conversations(load(conversations=200), TEXT)]
    assert len(set(heads)) == 200


def test_all_at_once_means_no_wait() -> None:
    assert {one.starts_s for one in conversations(load(conversations=5), TEXT)} == {0.0}


async def test_each_turn_goes_on_from_the_answer_before_it() -> None:
    with toy_server(engine=ToyEngine()) as server:
        seen: list[Served] = []
        served = await run_load(
            server.address, load(), TEXT, preset="full", sessions=True, on_served=seen.append
        )
        asked: list[Any] = list(server.engine.seen)
    assert served == seen
    assert len(served) == 6
    assert {one.error for one in served} == {""}
    assert all(len(one.token_s) == 4 and list(one.token_s) == sorted(one.token_s) for one in served)
    by_session: dict[str, list[Any]] = {}
    for one in asked:
        by_session.setdefault(one.session, []).append(one)
    assert len(by_session) == 3
    for first, second in by_session.values():
        answer = list(first.prompt)[:4]  # the toy engine repeats its prompt
        assert list(second.prompt)[:54] == [*first.prompt, *answer]
        assert len(second.prompt) == 50 + 4 + 32
        assert (first.preset, first.max_new_tokens, first.ignore_eos) == ("full", 4, True)


async def test_a_refused_request_is_counted_and_ends_its_conversation() -> None:
    with toy_server(engine=ToyEngine(max_seq_len=60)) as server:
        served = await run_load(
            server.address, load(output_tokens=2), TEXT, preset=None, sessions=False, on_served=lambda _: None
        )
    assert sorted((one.turn, one.error) for one in served) == [(0, "")] * 3 + [(1, "InvalidRequest")] * 3
    figures = figures_of(served, 2.0, {})
    assert (figures.completed, figures.failed) == (3, {"InvalidRequest": 3})
    assert figures.refused_ms is not None


def test_figures_are_those_of_the_times() -> None:
    served = [
        Served(0, 100, 0, (1.0, 1.5, 2.5), 3.0),
        Served(1, 140, 103, (0.25, 0.5), 0.75),
        Served(0, 100, 0, (2.0,), 2.0),
        Served(0, 100, 0, (), 0.5, "ResourceExhausted"),
    ]
    figures = figures_of(served, 4.0, {"ttft": 1500.0, "tpot": 500.0})
    assert (figures.total_input_tokens, figures.cached_tokens, figures.total_output_tokens) == (340, 103, 6)
    assert (figures.request_throughput, figures.output_throughput) == (0.75, 1.5)
    assert figures.goodput == 0.25  # the first is slow by its tokens, the third by its first one
    value = figures.as_json()
    assert value["mean_ttft_ms"] == pytest.approx(1000 * np.mean([1.0, 0.25, 2.0]))
    assert value["p99_ttft_ms"] == pytest.approx(1000 * np.percentile([1.0, 0.25, 2.0], 99))
    assert value["median_itl_ms"] == pytest.approx(1000 * np.median([0.5, 1.0, 0.25]))
    assert value["mean_tpot_ms"] == pytest.approx(1000 * np.mean([0.75, 0.25]))
    assert value["mean_ttft_later_ms"] == pytest.approx(250)
    assert value["max_refusal_ms"] == pytest.approx(500)
    assert figures_of([], 1.0, {}).spreads["ttft"] is None


@pytest.mark.parametrize("given", ["ttf:5", "ttft", "ttft:fast"])
def test_a_limit_that_there_is_not_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"should be NAME|no number"):
        parse_limits([given])


def test_the_command_prints_the_names_of_vllm_and_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    words = "serve --num-prompts 2 --turns 2 --input-len 40 --output-len 3 --goodput ttft:60000"
    with toy_server() as server:
        finished = run_bench(words, file, server.address)
    assert finished.returncode == 0
    for line in (
        "Successful requests:                    4",
        "Mean TTFT (ms):",
        "P99 ITL (ms):",
        "later turns",
    ):
        assert line in finished.stdout
    value = json.loads(file.read_text())
    assert (value["completed"], value["total_output_tokens"]) == (4, 12)
    assert value["request_goodput"] == pytest.approx(4 / value["duration"])
