"""`runtime generate --batch`: answers a file, writes refusals down, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.cli.conftest import Cli
from tests.toy_engine import ToyEngine
from tests.toy_server import ToyServer, toy_server


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers(path: Path) -> dict[Any, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def test_each_prompt_is_answered_with_its_own_options(server: ToyServer, cli: Cli, tmp_path: Path) -> None:
    prompts = write(
        tmp_path / "prompts.jsonl",
        {"id": "text", "prompt": "hello"},
        {"id": "short", "prompt": "hello", "max_new_tokens": 2},
        {"token_ids": [7, 8, 9]},
        {"id": "talk", "messages": [{"role": "user", "content": "hi"}]},
    )
    out = tmp_path / "answers.jsonl"
    finished = cli("generate", "--batch", prompts, "--output", out, "--raw", "--address", server.address)
    assert (finished.returncode, finished.stdout) == (0, b"")
    found = answers(out)
    assert (found["text"]["text"], found["short"]["text"]) == ("hello", "he")
    assert found[3]["token_ids"] == [7, 8, 9]
    assert found["talk"]["usage"]["prompt_tokens"] > 2
    assert b"4 of 4 prompts answered" in finished.stderr


def test_a_refused_prompt_is_written_down_and_asked_again(
    server: ToyServer, cli: Cli, tmp_path: Path
) -> None:
    prompts = write(tmp_path / "p.jsonl", {"id": 1, "prompt": "a"}, {"id": 2, "prompt": "b", "top_p": 7})
    out = tmp_path / "answers.jsonl"
    command = ("generate", "--batch", prompts, "--output", out, "--raw", "--address", server.address)
    finished = cli(*command)
    assert finished.returncode == 1
    assert b"error: 1 of 2 prompts failed" in finished.stderr
    assert answers(out)[2]["error"]["type"] == "InvalidRequest"
    write(prompts, {"id": 1, "prompt": "other, but answered"}, {"id": 2, "prompt": "b", "top_p": 1})
    finished = cli(*command)
    assert finished.returncode == 0
    assert b"1 of 2 prompts had been answered before" in finished.stderr
    assert {key: line["text"] for key, line in answers(out).items()} == {1: "a", 2: "b"}


def test_a_run_that_was_killed_goes_on(tmp_path: Path, cli: Cli) -> None:
    prompts = write(tmp_path / "p.jsonl", *({"id": place, "prompt": "abcd"} for place in range(40)))
    out = tmp_path / "answers.jsonl"
    with toy_server(engine=ToyEngine(step_s=0.02)) as slow:
        words = [
            "generate",
            "--batch",
            prompts,
            "--output",
            out,
            "--raw",
            "--address",
            slow.address,
            "--at-once",
            "2",
        ]
        run = subprocess.Popen(
            [sys.executable, "-c", "from moorage.runtime.cli import main; main()", *map(str, words)],
            env={**os.environ, "MOORAGE_RUN_DIR": str(tmp_path)},
        )
        while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        with out.open("ab") as file:
            file.write(b'{"id": 39, "te')  # what a kill in the middle of a line leaves
        held = set(out.read_bytes().splitlines()[:2])
        finished = cli(*words)
    assert finished.returncode == 0, finished.stderr
    assert answers(out).keys() == set(range(40))
    assert held <= set(out.read_bytes().splitlines())


def test_a_server_that_is_gone_ends_the_run_with_one_line(cli: Cli, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", {"prompt": "a"})
    finished = cli("generate", "--batch", prompts, "--output", tmp_path / "a", "--address", "127.0.0.1:9")
    assert finished.returncode == 1
    assert finished.stderr.count(b"\n") == 1
    assert b"goes on where this one ended" in finished.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", ":1: is no JSON object"),
        ("{", ":1: is no JSON object"),
        ('{"id": 1}', ":1: needs one of prompt, messages, token_ids, and has 0"),
        ('{"prompt": "a", "token_ids": [1]}', "and has 2 of them"),
        ('{"prompt": [1]}', ":1: prompt: must be a text"),
        ('{"prompt": "a", "id": null}', ":1: id: must be"),
        ('{"prompt": "a", "temprature": 1}', "'temprature' is no option"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}', ":2: id '1' is that of another line"),
        ("", "has no prompts"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_asked(
    server: ToyServer, cli: Cli, tmp_path: Path, line: str, message: str
) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text(line)
    before = len(server.engine.seen)
    finished = cli("generate", "--batch", prompts, "--output", out, "--address", server.address)
    assert finished.returncode == 1
    assert finished.stderr.startswith(b"error: ")
    assert message in finished.stderr.decode()
    assert (len(server.engine.seen), out.exists()) == (before, False)


def test_a_file_of_other_things_is_not_written_over(server: ToyServer, cli: Cli, tmp_path: Path) -> None:
    prompts, out = write(tmp_path / "p.jsonl", {"prompt": "a"}), tmp_path / "notes.txt"
    out.write_text("my notes\n")
    finished = cli("generate", "--batch", prompts, "--output", out, "--address", server.address)
    assert finished.returncode == 1
    assert b"is no answer of a batch" in finished.stderr
    assert out.read_text() == "my notes\n"


def test_half_of_a_batch_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", {"prompt": "a"})
    assert cli("generate", "--batch", prompts).returncode == 2
    assert cli("generate", "text", "--batch", prompts, "--output", tmp_path / "a").returncode == 2
