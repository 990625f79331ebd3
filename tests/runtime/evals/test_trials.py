"""Evaluations against a real server whose engine reads its prompt, or can't read it beyond its sight."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moorage.client import Client
from moorage.runtime.cli import main
from moorage.runtime.evals.haystack import garbage_haystack
from moorage.runtime.evals.passkey import make_samples
from moorage.runtime.evals.trials import Oracle, ServerCoder, explain_misses, row_of, run_trials
from moorage.runtime.requests import Event, Finished, GenerateParams, Token
from tests.toy_engine import BOS, ToyEngine
from tests.toy_server import toy_server

SIGHT_TOKENS = 300


class ReadingEngine(ToyEngine):
    """Finds the pass key in the last `SIGHT_TOKENS` of the prompt; anywhere under the preset `keen`."""

    async def generate(self, params: GenerateParams) -> AsyncGenerator[Event]:
        self.seen.append(params)
        text = self.tokenizer.decode(params.prompt)
        keys = re.findall(r"pass key is (\d+)\.", text if params.preset == "keen" else text[-SIGHT_TOKENS:])
        answer = f" {keys[-1]}." if keys else " unknown"
        for index, character in enumerate(answer[: params.max_new_tokens]):
            yield Token(index, ord(character), character, -0.5)
        usage = self._usage(len(params.prompt), len(answer))
        yield Finished("length", replace(usage, budget_tokens=SIGHT_TOKENS, recall=0.5))


@pytest.fixture(scope="module")
def engine() -> ReadingEngine:
    return ReadingEngine()


@pytest.fixture(scope="module")
def address(engine: ReadingEngine) -> Iterator[str]:
    with toy_server(engine=engine) as running:
        yield running.address


def test_server_coder_is_the_servers_tokenizer(address: str) -> None:
    with Client(address) as client:
        coder = ServerCoder(client)
        assert coder.encode("a b") == [97, 32, 98]
        assert coder.decode([97, 32, 98]) == "a b"
        assert coder.decode([]) == ""
        assert coder.prefix() == [BOS]


def test_trials_judge_each_sample_and_rows_sum_them_up(address: str) -> None:
    with Client(address) as client:
        coder = ServerCoder(client)
        samples = make_samples(garbage_haystack(), coder, 1000, 4, prefix_ids=coder.prefix())
        trials = list(run_trials(client, samples, 1008))
    assert [trial.correct for trial in trials] == [False, False, False, True]
    row = row_of(trials)
    assert (row.length, row.accuracy, row.samples, row.recall, row.budget_tokens) == (1008, 0.25, 4, 0.5, 300)
    assert "depth" not in row.as_json()
    assert row_of(trials[3:], depth=0.0).as_json()["depth"] == 0.0


def test_rows_without_recall_or_budget(address: str) -> None:
    with Client(address) as client:
        samples = make_samples(garbage_haystack(), ServerCoder(client), 200, 2)
        trials = list(run_trials(client, samples, 208))
    unmeasured = replace(trials[0], recall=None, budget_tokens=0)
    assert row_of([unmeasured]).recall is None
    assert row_of([trials[1], unmeasured]).recall == 0.5
    assert row_of([trials[1], unmeasured]).budget_tokens == 0


def test_misses_are_asked_of_every_oracle(address: str) -> None:
    with Client(address) as client:
        samples = make_samples(garbage_haystack(), ServerCoder(client), 1000, 4)
        trials = list(run_trials(client, samples, 1008))
    misses = explain_misses(trials, [Oracle("keen", address, "keen"), Oracle("same", address)])
    assert [miss.found_by for miss in misses] == [{"keen": True, "same": False}] * 3
    assert misses[0].as_json()["output"].strip() == "unknown"


def test_no_miss_asks_no_oracle() -> None:
    assert explain_misses([], [Oracle("nobody", "127.0.0.1:1")]) == []


def test_command_prints_a_table_and_writes_json(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    arguments = ["--address", address, "--lengths", "256,1K", "--samples", "4", "--style", "garbage"]
    oracles = ["--explain-misses", "--oracle-preset", "keen", "--oracle-address", f"same={address}"]
    with pytest.raises(SystemExit) as left:
        main(["eval", "passkey", *arguments, *oracles, "--json", str(file)])
    assert left.value.code == 0
    printed = capsys.readouterr()
    report = json.loads(file.read_text(encoding="utf-8"))
    assert [report[key] for key in ("task", "model", "preset", "style")] == [
        "passkey",
        "toy",
        "full",
        "garbage",
    ]
    assert [(row["length"], row["accuracy"], row["samples"]) for row in report["rows"]] == [
        (256, 1.0, 4),
        (1024, 0.25, 4),
    ]
    assert report["mean"] == 0.625
    assert [miss["found_by"] for miss in report["misses"]] == [{"same": False, "keen": True}] * 3
    assert "mean accuracy 62.5%" in printed.out
    assert "1K 4/4 depth 0.88: found" in printed.err


def test_command_prints_json_alone_on_stdout_with_a_row_for_each_depth(
    address: str, engine: ReadingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--lengths 1K --samples 2 --depths 0,1 --preset keen --style garbage --json -"
    with pytest.raises(SystemExit):
        main(["eval", "passkey", "--address", address, *flags.split()])
    printed = capsys.readouterr().out
    report = json.loads(printed[printed.index("{\n") :])  # the server in this process logs before it
    assert report["preset"] == "keen"
    assert [(row["depth"], row["accuracy"]) for row in report["rows"]] == [(0.0, 1.0), (1.0, 1.0)]
    asked = engine.seen[-1]
    assert isinstance(asked, GenerateParams)
    assert len(asked.prompt) + asked.max_new_tokens == 1024


@pytest.mark.parametrize(
    ("flags", "word", "code"),
    [
        (["--lengths", "big"], "--lengths", 2),
        (["--depths", "0,2"], "--depths", 2),
        (["--samples", "0"], "--samples", 2),
        (["--explain-misses"], "--oracle-address", 2),
        (["--document", "missing.txt"], "missing.txt", 1),
        (["--lengths", "20", "--style", "garbage"], "at least", 1),
    ],
)
def test_command_refuses_in_words(
    address: str, capsys: pytest.CaptureFixture[str], flags: list[str], word: str, code: int
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["eval", "passkey", "--address", address, *flags])
    assert left.value.code == code
    assert word in capsys.readouterr().err
