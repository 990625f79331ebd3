"""What an evaluation says beside its figures: cut answers, lengths beyond reach, choices that are one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moorage.client import Client
from moorage.runtime.cli.eval_tables import notes, table
from moorage.runtime.evals.haystack import garbage_haystack, text_haystack
from moorage.runtime.evals.journal import PREDICTIONS
from moorage.runtime.evals.local_targets import LocalConfig, LocalTargets
from moorage.runtime.evals.needle import Needle
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.runner import Summary, run
from moorage.runtime.evals.targets import CHAT_ANSWER_TOKENS, ServerTargets, beyond_reach
from moorage.runtime.evals.tasks import Suite
from moorage.runtime.evals.variants import Variant
from moorage.runtime.planning.trained_length import Reach
from moorage.runtime.serving.protocol import GenerateParams
from tests.answering_engine import AnsweringEngine
from tests.toy_server import toy_server

CONFIG = Path(__file__).parents[3] / "deploy" / "local.yaml"
GARBAGE = Passkey(garbage_haystack(), Style.GARBAGE, (256, 512), 2)


@pytest.fixture(scope="module")
def engine() -> AnsweringEngine:
    return AnsweringEngine()


@pytest.fixture(scope="module")
def client(engine: AnsweringEngine) -> Iterator[Client]:
    with toy_server(engine=engine) as running, Client(running.address) as client:
        yield client


def in_a_sentence(prompt: str) -> str:
    key = re.findall(r"number for (\S+) mentioned", prompt)[-1]
    value = re.findall(rf"numbers for {re.escape(key)} is: (\d+)\.", prompt)[0]
    return (
        f"Of course! According to the text that you provided, the special magic number for {key} is {value}."
    )


def needles(targets: ServerTargets) -> Summary:
    return run(Suite("needle", (Needle(text_haystack(), (1024,), 3),)), targets)


def test_a_chat_model_may_answer_in_a_sentence(engine: AnsweringEngine, client: Client) -> None:
    engine.answer = in_a_sentence
    summary = needles(ServerTargets(client, chat=True))
    assert [row.value for row in summary.rows] == [1.0]
    asked = engine.seen[-1]
    assert isinstance(asked, GenerateParams)
    assert asked.max_new_tokens == CHAT_ANSWER_TOKENS
    assert summary.rows[0].cut_answers == 0


def test_answers_that_the_limit_cut_are_counted_and_shown(engine: AnsweringEngine, client: Client) -> None:
    engine.answer = in_a_sentence
    summary = needles(ServerTargets(client))
    assert [(row.value, row.cut_answers) for row in summary.rows] == [(0.0, 3)]
    columns, cells = table(summary)
    assert cells[0][columns.index("cut answers")] == "3"
    assert "cut answers, not wholly right and ended by the limit of tokens: 3 of 3" in notes(summary)
    assert summary.as_json()["rows"][0]["cut_answers"] == 3


def test_a_right_answer_counts_as_whole(engine: AnsweringEngine, client: Client) -> None:
    engine.answer = lambda prompt: in_a_sentence(prompt).split()[-1]
    summary = needles(ServerTargets(client))
    assert [(row.value, row.cut_answers) for row in summary.rows] == [(1.0, 0)]
    assert "cut answers" not in table(summary)[0]


def test_choices_with_the_same_answers_are_told(engine: AnsweringEngine, client: Client) -> None:
    engine.answer = in_a_sentence
    both = needles(ServerTargets(client, ("full", "moorage")))
    assert "full and moorage gave the same answers in all 3 samples" in both.remarks
    assert both.as_json()["remarks"] == list(both.remarks)
    count = iter(range(1000))
    engine.answer = lambda _prompt: str(next(count))
    assert not needles(ServerTargets(client, ("full", "moorage"))).remarks


def test_lengths_beyond_reach_and_choices_with_the_same_keys_are_told_in_this_process() -> None:
    names = ("full", "moorage", "ktransformers", "lmdeploy")
    targets = LocalTargets(LocalConfig(CONFIG, None), [Variant(name, name) for name in names], room=2048)
    remarks = targets.remarks((256, 2048))
    targets.close()
    assert "moorage: positions reach 512 tokens (plain RoPE, trained on 512 tokens), not 2K" in remarks
    same = "full, moorage, ktransformers and lmdeploy attend the same keys at 256: one choice under several names"
    assert same in remarks
    assert len(remarks) == 4, "three choices beyond their reach; the cluster's own, ktransformers, is clamped"


def test_a_scaling_that_follows_the_length_reaches_each_length() -> None:
    keys = ("memory.positions=rope", "memory.rope_scaling={rope_type: linear, factor: {scale}}")
    targets = LocalTargets(LocalConfig(CONFIG, None), [Variant("linear", None, keys)], room=2048)
    assert targets.remarks((1024, 2048)) == []
    assert targets.remarks(()) == []
    targets.close()


def test_the_clusters_own_choice_reaches_any_length() -> None:
    targets = LocalTargets(LocalConfig(CONFIG, None), room=2048)
    assert targets.remarks((256, 2048)) == []
    targets.close()


def test_a_reach_is_told_only_of_the_lengths_beyond_it() -> None:
    short, endless = Reach(1024, "plain RoPE"), Reach(None, "clamped")
    assert beyond_reach({"a": [short] * 2, "b": [endless] * 2}, (512, 1024)) == []
    assert beyond_reach({"a": [short] * 3, "b": [endless] * 3}, (512, 2048, 4096)) == [
        "a: positions reach 1,024 tokens (plain RoPE), not 2K, 4K"
    ]


def test_a_chat_in_this_process_has_room_for_its_answer() -> None:
    """The embedded model has no template, so that only the room is looked at."""
    targets = LocalTargets(LocalConfig(CONFIG, None), room=600, chat=True)
    target = targets.at(targets.labels[0], 600)
    assert target.room == 600
    targets.close()


def test_samples_of_an_earlier_version_are_still_read(tmp_path: Path, client: Client) -> None:
    """They do not tell whether the answer was cut."""
    targets = ServerTargets(client)
    first = run(Suite("passkey", (GARBAGE,)), targets, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / PREDICTIONS).read_text().splitlines()]
    for line in lines:
        del line["cut_answer"]
    (tmp_path / PREDICTIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = run(Suite("passkey", (GARBAGE,)), targets, tmp_path)
    assert [replace(r.outcome, cut_answer=False) for r in first.records] == [r.outcome for r in again.records]
