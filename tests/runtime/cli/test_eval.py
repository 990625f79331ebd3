"""The evaluation commands as they are typed, against the reading engine and in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.runtime.cli import main
from moorage.runtime.serving.protocol import GenerateParams
from tests.reading_engine import ReadingEngine
from tests.toy_server import ToyServer, toy_server

CONFIG = str(Path(__file__).parents[3] / "deploy" / "local.yaml")


@pytest.fixture(scope="module")
def server() -> Iterator[ToyServer]:
    with toy_server(engine=ReadingEngine()) as running:
        yield running


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["eval", *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def report_of(printed: str) -> dict[str, object]:
    report: dict[str, object] = json.loads(printed[printed.index("{\n") :])  # a server here logs before it
    return report


def test_passkey_prints_a_table_and_writes_json(
    server: ToyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    arguments = ["--address", server.address, "--lengths", "256,1K", "--samples", "4", "--style", "garbage"]
    oracles = ["--explain-misses", "--oracle-preset", "keen", "--oracle-address", f"same={server.address}"]
    assert run("passkey", *arguments, *oracles, "--json", str(file)) == 0
    printed = capsys.readouterr()
    report = json.loads(file.read_text(encoding="utf-8"))
    assert {key: report[key] for key in ("task", "model", "preset", "style", "mean")} == {
        "task": "passkey",
        "model": "toy",
        "preset": "full",
        "style": "garbage",
        "mean": 0.625,
    }
    assert [(row["length"], row["accuracy"], row["samples"]) for row in report["rows"]] == [
        (256, 1.0, 4),
        (1024, 0.25, 4),
    ]
    assert {"recall", "budget_tokens", "seconds"} < report["rows"][0].keys()
    assert [miss["found_by"] for miss in report["misses"]] == [{"same": False, "keen": True}] * 3
    assert "mean accuracy 62.5%" in printed.out
    assert "passkey full 1K depth 0.88 8/8: right" in printed.err


def test_json_stands_alone_on_stdout_with_a_row_for_each_depth(
    server: ToyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--lengths 1K,1024 --samples 2 --depths 0,1,0 --preset keen,keen --style garbage --json -"
    assert run("passkey", "--address", server.address, *flags.split()) == 0
    report = report_of(capsys.readouterr().out)
    assert report["preset"] == "keen"
    rows = report["rows"]
    assert isinstance(rows, list)
    assert [(row["depth"], row["accuracy"]) for row in rows] == [(0.0, 1.0), (1.0, 1.0)]
    asked = server.engine.seen[-1]
    assert isinstance(asked, GenerateParams)
    assert len(asked.prompt) + asked.max_new_tokens == 1024


def test_presets_stand_side_by_side_and_a_second_run_asks_nothing(
    server: ToyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--lengths",
        "1K",
        "--samples",
        "4",
        "--preset",
        "full,keen",
        "--style",
        "lmdeploy",
        "--json",
        "-",
    ]
    output = ["--output", str(tmp_path / "run")]
    assert run("passkey", "--address", server.address, *flags, *output) == 0
    first, asked = report_of(capsys.readouterr().out), len(server.engine.seen)
    assert run("passkey", "--address", server.address, *flags, *output) == 0
    printed = capsys.readouterr()
    assert report_of(printed.out) == first
    assert len(server.engine.seen) == asked
    means = first["means"]
    assert isinstance(means, dict)
    assert means["keen"] == 1.0 > means["full"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == first


@pytest.mark.parametrize(
    ("flags", "word", "code"),
    [
        (["--lengths", "big"], "--lengths", 2),
        (["--lengths", "0"], "--lengths", 2),
        (["--depths", "0,2"], "--depths", 2),
        (["--samples", "0"], "--samples", 2),
        (["--explain-misses"], "--oracle-address", 2),
        (["--variant", "a:memory.topk=4"], "--config or --model", 2),
        (["--set", "memory.topk=4"], "--config or --model", 2),
        (["--config", CONFIG], "--address", 2),
        (["--document", "missing.txt"], "missing.txt", 1),
        (["--lengths", "20", "--style", "garbage"], "at least", 1),
    ],
)
def test_refusals_are_in_words(
    server: ToyServer, capsys: pytest.CaptureFixture[str], flags: list[str], word: str, code: int
) -> None:
    assert run("passkey", "--address", server.address, *flags) == code
    assert word in capsys.readouterr().err


def test_perplexity_on_a_server(
    server: ToyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a" * 500)
    flags = ["--data", str(text), "--lengths", "100,400", "--samples", "2", "--json", "-"]
    assert run("perplexity", "--address", server.address, *flags) == 0
    rows = report_of(capsys.readouterr().out)["rows"]
    assert isinstance(rows, list)
    assert [row["loss"] for row in rows] == pytest.approx([97 / 260] * 2)
    assert run("perplexity", "--address", server.address, *flags[:4], "--dtype", "int8") == 2
    assert "--dtype" in capsys.readouterr().err


def test_extrapolation_lays_schemes_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The wind was cold and the road was long, said the man to no one.\n\n" * 60)
    flags = [
        "--trained",
        "256",
        "--scales",
        "1,2",
        "--samples",
        "1",
        "--windows",
        "1",
        "--last",
        "32",
        "--json",
        "-",
    ]
    assert run("extrapolation", "--config", CONFIG, "--document", str(text), *flags) == 0
    rows = report_of(capsys.readouterr().out)["rows"]
    assert isinstance(rows, list)
    assert list(dict.fromkeys(row["preset"] for row in rows)) == [
        "rope",
        "linear",
        "dynamic",
        "dca",
        "clamped",
    ]
    passkeys = [row for row in rows if row["task"] == "passkey"]
    losses = {(row["preset"], row["length"]): row["loss"] for row in rows if row["task"] == "perplexity"}
    assert len(passkeys) == len(losses) == 10
    assert all(row["budget_tokens"] == 0 for row in passkeys if row["preset"] != "clamped")
    # At the trained length nothing is scaled yet.
    assert (
        len(
            {round(loss, 4) for (name, length), loss in losses.items() if length == 256 and name != "clamped"}
        )
        == 1
    )
    assert losses["linear", 512] != losses["rope", 512]


def test_fewer_samples_of_longer_prompts_and_none_where_every_key_is_attended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--trained", "256", "--scales", "1,2,3", "--samples", "3,1", "--tasks", "passkey", "--json", "-"]
    presets = ["--preset", "full,ktransformers", "--exact-up-to", "600"]
    assert run("extrapolation", "--config", CONFIG, *flags, *presets) == 0
    rows = report_of(capsys.readouterr().out)["rows"]
    assert isinstance(rows, list)
    assert [(row["preset"], row["length"], row["samples"]) for row in rows] == [
        ("full", 256, 3),
        ("full", 512, 1),
        ("ktransformers", 256, 3),
        ("ktransformers", 512, 1),
        ("ktransformers", 768, 1),
    ]


def test_a_limit_that_leaves_nothing_of_a_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trained", "256", "--scales", "2,3", "--preset", "ktransformers,full", "--exact-up-to", "300"]
    assert run("extrapolation", "--config", CONFIG, *flags) == 2
    assert "300 leaves nothing of full" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("samples", ["0", "2,x", "1,1,1"])
def test_samples_that_fit_no_lengths_are_refused(samples: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trained", "256", "--scales", "1,2", "--samples", samples]
    assert run("extrapolation", "--config", CONFIG, *flags) == 2
    assert "--samples" in capsys.readouterr().err


def test_extrapolation_needs_a_model_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("extrapolation") == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "task"),
    [
        (["needle", "--needles", "2"], "needle-2"),
        (["needle", "--form", "lwm"], "needle"),
        (["kv-retrieval", "--form", "hex"], "kv-retrieval"),
        (["ruler", "--tasks", "niah_single_1,vt"], "ruler"),
    ],
)
def test_retrieval_commands(
    server: ToyServer, capsys: pytest.CaptureFixture[str], arguments: list[str], task: str
) -> None:
    flags = ["--address", server.address, "--lengths", "3K,4K", "--samples", "1", "--json", "-"]
    assert run(*arguments, *flags) == 0
    report = report_of(capsys.readouterr().out)
    rows = report["rows"]
    assert isinstance(rows, list)
    assert (report["task"], len(rows)) == (task, 4 if task == "ruler" else 2)
    assert {row["accuracy"] for row in rows} == {0}
    assert ("task" in rows[0]) is (task == "ruler")


def test_depths_may_be_counted(server: ToyServer, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--address", server.address, "--lengths", "3K", "--samples", "1", "--json", "-"]
    assert run("needle", *flags, "--depths", "5") == 0
    rows = report_of(capsys.readouterr().out)["rows"]
    assert isinstance(rows, list)
    assert [row["depth"] for row in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("family", "name", "entry"),
    [
        ("infinitebench", "passkey", {"context": "x", "input": "?", "answer": "1"}),
        ("longbench", "qasper", {"context": "x", "input": "?", "answers": ["1"]}),
        ("leval", "tpo", {"input": "x", "instructions": ["?"], "outputs": ["A"]}),
        ("scrolls", "qasper", {"input": "x", "output": "1"}),
    ],
)
def test_commands_on_files(
    server: ToyServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    family: str,
    name: str,
    entry: object,
) -> None:
    path = tmp_path / f"{name}.jsonl"
    path.write_text((json.dumps(entry) + "\n") * 3)
    flags = [
        "--address",
        server.address,
        "--truncate",
        "middle",
        "--max-length",
        "2K",
        "--output",
        str(tmp_path / "out"),
    ]
    assert run(family, str(path), *flags) == 0
    assert family in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (report["task"], report["rows"][0]["samples"]) == (family, 2 if family == "scrolls" else 3)
    path.write_text(json.dumps(entry) + "\n{\n")
    assert run(family, str(path), *flags[:2]) == 1
    assert f"{name}.jsonl:2: is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["ruler", "--qa-file", "squad.json"], "TASK=FILE"),
        (["infinitebench", "passkey=x.jsonl", "--max-length", "many"], "--max-length"),
    ],
)
def test_malformed_options(capsys: pytest.CaptureFixture[str], arguments: list[str], word: str) -> None:
    assert run(*arguments) == 2
    assert word in capsys.readouterr().err


def test_few_tasks_stand_side_by_side(
    server: ToyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--trained",
        "1K",
        "--scales",
        "1,2",
        "--samples",
        "2",
        "--windows",
        "1",
        "--preset",
        "full,keen",
    ]
    chosen = ["--tasks", "passkey,needle-4,kv-retrieval,perplexity", "--output", str(tmp_path / "out")]
    assert run("extrapolation", "--address", server.address, *flags, *chosen) == 0
    lines = (tmp_path / "out" / "summary.md").read_text().splitlines()
    columns = "preset|length|passkey|needle-4|kv-retrieval|perplexity|budget tokens|recall|seconds each"
    assert lines[2].replace(" ", "") == f"|{columns.replace(' ', '')}|"
    assert [line.split(" | ")[:5] for line in lines[4:8]] == [
        ["| full", "1K", "0.0%", "0.0%", "0.0%"],
        ["| full", "2K", "0.0%", "0.0%", "0.0%"],
        ["| keen", "1K", "100.0%", "0.0%", "0.0%"],
        ["| keen", "2K", "100.0%", "0.0%", "0.0%"],
    ]
    assert "(ppl " in lines[4]
    assert "300 (29.3%)" in lines[4]
    assert "0.500" in lines[4]
    assert run("extrapolation", "--address", server.address, *flags, "--tasks", "riddles") == 2
    assert "--tasks" in capsys.readouterr().err
