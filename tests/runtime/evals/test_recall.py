"""Recall of the embedded model on real text, measured in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moorage.runtime.cli import main
from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.evals.haystack import text_haystack
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.evals.recall import table_of
from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import SelectionSpec

CONFIG = Path(__file__).parents[3] / "deploy" / "local.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    captured = capsys.readouterr()
    assert left.value.code == 0, captured.err
    return captured.out


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recall") / "prompt.txt"
    path.write_text("\n\n".join(text_haystack().paragraphs)[:9000])
    return path


def test_the_oracle_bounds_recall_and_a_full_budget_reaches_one(prompt_file: Path) -> None:
    shares = {}
    for budget in (4, 12, 96):
        config = load_cluster_config(CONFIG, [f"long_context.second_select_num={budget}"])
        engine = LocalEngine(config, 4096)
        probe = engine.probe(every=2)
        prompt = engine.tokenizer.encode(prompt_file.read_text())
        assert len(list(engine.generate(prompt, 6))) <= 6
        table = table_of(probe.samples)
        engine.close()
        assert table.recall.shape == (engine.model.num_layers, len(table.steps), engine.model.num_heads)
        assert (table.recall.mean(axis=2) <= table.oracle.mean(axis=2) + 1e-4).all()
        shares[budget] = (float(table.recall.mean()), float(table.oracle.mean()))
    assert shares[4][0] < shares[12][0] < shares[96][0] == pytest.approx(1, abs=1e-4)
    assert shares[4][1] < shares[12][1] < shares[96][1] == pytest.approx(1, abs=1e-4)


def test_the_command_prints_json_and_draws(
    prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    arguments = ("--prompt-file", str(prompt_file), "--max-new-tokens", "4")
    report = json.loads(run(capsys, "eval", "recall", *arguments, "--json", "--output", str(tmp_path)))
    assert json.loads((tmp_path / "recall.json").read_text()) == report
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < report["recall"] <= report["oracle"] <= 1 + 1e-4
    means = [np.mean(row["recall_by_head"]) for row in report["layers"]]
    assert np.mean(means) == pytest.approx(report["recall"], abs=1e-6)


def test_inspect_shows_the_text_of_attended_blocks(
    prompt_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--prompt-file", str(prompt_file), "--max-new-tokens", "3", "--top", "2", "--json")
    report = json.loads(run(capsys, "inspect", *arguments))
    assert report["steps"]
    text = " ".join(prompt_file.read_text().split())
    for step in report["steps"]:
        assert len(step["blocks"]) == 2
        assert step["blocks"][0]["share"] >= step["blocks"][1]["share"] >= 0
        assert " ".join(step["blocks"][0]["text"].split())[4:-4] in text


def test_a_prompt_that_sinks_and_window_hold_has_no_block_to_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Once upon a time")
    arguments = ("--prompt-file", str(file), "--max-new-tokens", "4")
    assert "No distant block to select" in run(capsys, "inspect", *arguments)
    report = json.loads(run(capsys, "eval", "recall", *arguments, "--json"))
    assert report["recall"] == pytest.approx(1, abs=1e-5)
    assert report["oracle"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("command", [("inspect",), ("eval", "recall")])
def test_an_empty_prompt_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    file = tmp_path / "empty.txt"
    file.write_text("")
    with pytest.raises(SystemExit) as left:
        main((*command, "--prompt-file", str(file)))
    assert left.value.code == 1
    assert capsys.readouterr().err == f"error: --prompt-file {file}: is empty; write a prompt into it\n"


def test_a_question_passes_through_decode_steps_which_select() -> None:
    engine = LocalEngine(load_cluster_config(CONFIG, ["long_context.second_select_num=4"]), 1024)
    prompt = engine.tokenizer.encode("\n\n".join(text_haystack().paragraphs)[:9000])[:800]
    steps: set[int] = set()
    engine.observe(lambda step, _layer, _attended: steps.add(step.session.num_tokens))
    num_steps = []
    for question_tokens in (0, 10):
        steps.clear()
        assert len(list(engine.generate(prompt, 4, question_tokens=question_tokens))) == 4
        num_steps.append(len(steps))
    everything = engine.memory.replace(selection=SelectionSpec())
    answers = [list(engine.generate(prompt, 8, everything, question_tokens=given)) for given in (0, 10)]
    engine.close()
    assert num_steps == [3, 13]
    assert answers[0] == answers[1]


def test_room_is_checked() -> None:
    engine = LocalEngine(load_cluster_config(CONFIG), 64)
    with pytest.raises(InvalidRequest, match="this engine holds 64"):
        next(engine.generate([1] * 60, 8))
    engine.close()
