"""Finished samples are kept, found again, and never mixed with those of another run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moorage.client import Client
from moorage.runtime.evals.haystack import garbage_haystack
from moorage.runtime.evals.journal import Journal, Key, Record
from moorage.runtime.evals.local_targets import LocalConfig, LocalTargets
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.runner import Summary, run
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Outcome, Place, Suite
from moorage.runtime.evals.variants import Variant, parse_variant
from moorage.workers.errors import InvalidRequest
from tests.reading_engine import ReadingEngine
from tests.toy_server import ToyServer, toy_server

TASK = Passkey(garbage_haystack(), Style.GARBAGE, (256, 1024), 4)


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server(engine=ReadingEngine()) as running:
        yield running


def measure(
    server: ToyServer, output: Path | None, task: Passkey = TASK, *presets: str
) -> tuple[Summary, int]:
    """The summary, and how many samples were asked for it."""
    before = len(server.engine.seen)
    with Client(server.address) as client:
        summary = run(Suite("passkey", (task,), task.seed), ServerTargets(client, presets), output)
    return summary, len(server.engine.seen) - before


def untimed(summary: Summary) -> list[object]:
    return [replace(row, seconds=0.0) for row in summary.rows]


def test_nothing_is_asked_twice(server: ToyServer, tmp_path: Path) -> None:
    first, asked = measure(server, tmp_path / "out")
    again, asked_again = measure(server, tmp_path / "out")
    assert (asked, asked_again) == (8, 0)
    assert again == first


def test_settings_are_compared_as_a_file_keeps_them(tmp_path: Path) -> None:
    identity = {"task": "t", "model": "m", "seed": 0, "lengths": (1024, 2048)}
    parts = {"choices": {"linear": {"rope": {"factors": (), "theta": 1e4}}}}
    for _ in range(2):
        Journal(tmp_path / "out", identity, parts).close()
    others = {"choices": {"linear": {"rope": {"factors": (2,), "theta": 1e4}}}}
    with pytest.raises(
        InvalidRequest, match=r"linear was configured otherwise \(rope.factors was \[\], now \[2\]"
    ):
        Journal(tmp_path / "out", identity, others)


@pytest.mark.parametrize("kept", range(9))
def test_a_run_that_ended_after_any_sample_goes_on(server: ToyServer, tmp_path: Path, kept: int) -> None:
    whole, _ = measure(server, None)
    measure(server, tmp_path)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    torn = lines[kept][: 5 + kept * 20] if kept < len(lines) else ""
    path.write_text("".join(lines[:kept]) + torn)
    resumed, asked = measure(server, tmp_path)
    assert asked == 8 - kept
    assert untimed(resumed) == untimed(whole)
    assert len(path.read_text().splitlines()) == 8


def test_more_samples_lengths_and_presets_are_added(server: ToyServer, tmp_path: Path) -> None:
    given = replace(TASK, depths=(0.0, 1.0))
    measure(server, tmp_path, given)
    _, asked = measure(server, tmp_path, replace(given, lengths=(256, 512, 1024)))
    assert asked == 8
    _, asked = measure(server, tmp_path, replace(given, samples=5))
    assert asked == 4
    summary, asked = measure(server, tmp_path, given, "full", "keen")
    assert asked == 16
    assert [row.value for row in summary.rows if row.preset == "keen"] == [1.0] * 4


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(TASK, seed=1), "seed 0, this one has 1"),
        (
            replace(TASK, style=Style.LMDEPLOY),
            'passkey was configured otherwise .style was "garbage", now "lmdeploy"',
        ),
    ],
)
def test_another_run_is_refused(server: ToyServer, tmp_path: Path, other: Passkey, words: str) -> None:
    measure(server, tmp_path)
    with pytest.raises(InvalidRequest, match=words) as refused:
        measure(server, tmp_path, other)
    assert "name another directory" in str(refused.value)


def test_a_choice_that_was_configured_otherwise_is_refused(server: ToyServer, tmp_path: Path) -> None:
    measure(server, tmp_path)
    run_file = tmp_path / "run.json"
    values = json.loads(run_file.read_text())
    values["choices"]["full"]["preset"] = "older"
    run_file.write_text(json.dumps(values))
    with pytest.raises(InvalidRequest, match='preset was "older", now "full"'):
        measure(server, tmp_path)


def test_files_of_others_are_left_alone(server: ToyServer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="holds other files"):
        measure(server, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_what_models_say_does_not_break_lines(tmp_path: Path) -> None:
    said = "one\u2028two\x85three\x0cfour\nfive"
    identity, place = {"task": "t", "model": "m", "seed": 0}, Place(0, 256, 0.5)
    outcome = Outcome(0.5, said, ("é", "長"), 3, 0.25, 0.75, 12, 1)
    journal = Journal(tmp_path, identity, {})
    journal.add(Record(Key("task", "full", place), outcome))
    with pytest.raises(InvalidRequest, match="another evaluation is writing there"):
        Journal(tmp_path, identity, {})
    journal.close()
    again = Journal(tmp_path, identity, {})
    again.close()
    assert again.found == {Key("task", "full", place): outcome}


def test_a_run_in_this_process_goes_on_too(tmp_path: Path) -> None:
    config = LocalConfig(Path(__file__).parents[3] / "deploy" / "local.yaml", None)
    task = Passkey(garbage_haystack(), Style.GARBAGE, (256,), 2)
    variants = [Variant("full", "full"), parse_variant("two:long_context.second_select_num=2")]
    summaries, new = [], []
    for _ in range(2):
        targets = LocalTargets(config, variants, room=256)
        suite = Suite("passkey", (task,))
        summaries.append(run(suite, targets, tmp_path, lambda _record, is_new: new.append(is_new)))
        targets.close()
    assert summaries[0] == summaries[1]
    assert new == [True] * 4 + [False] * 4
    targets = LocalTargets(config, [parse_variant("two:long_context.second_select_num=3")], room=256)
    with pytest.raises(InvalidRequest, match="two was configured otherwise"):
        run(Suite("passkey", (task,)), targets, tmp_path)


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"index": 1}'])
def test_a_broken_line_is_named(server: ToyServer, tmp_path: Path, line: str) -> None:
    measure(server, tmp_path)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(InvalidRequest, match=r"predictions\.jsonl:2: is not a finished sample"):
        measure(server, tmp_path)


def test_a_run_file_of_something_else_is_named(server: ToyServer, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InvalidRequest, match=r"run\.json: is not what an evaluation wrote"):
        measure(server, tmp_path)


def test_a_run_that_was_killed_before_it_began_goes_on(server: ToyServer, tmp_path: Path) -> None:
    (tmp_path / "run.part").write_text("{")
    assert measure(server, tmp_path)[1] == 8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predictions.jsonl", "run.json"]


def test_tasks_are_added(server: ToyServer, tmp_path: Path) -> None:
    tasks = (TASK, replace(TASK, name="other", style=Style.LMDEPLOY))
    with Client(server.address) as client:
        run(Suite("suite", tasks[:1]), ServerTargets(client), tmp_path)
        summary = run(Suite("suite", tasks), ServerTargets(client), tmp_path)
    assert [row.task for row in summary.rows] == ["passkey", "passkey", "other", "other"]
