"""`runtime generate`, `score`, `chat`, `tokenize`, `detokenize` and `status`, as users call them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.cli.conftest import Cli
from tests.toy_engine import BOS, ToyEngine
from tests.toy_server import ToyServer, toy_server

USAGE = {
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "time_to_first_token_s",
    "decode_tokens_per_s",
    "recall",
}


def last_json(finished: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert finished.returncode == 0, finished.stderr
    value: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return value


def test_text_streams_to_stdout(server: ToyServer, cli: Cli) -> None:
    finished = cli("generate", "hello", "--raw", "--address", server.address)
    assert finished.returncode == 0
    assert finished.stdout == b"hello\n"
    assert finished.stderr == b""


def test_json_is_the_contract_s(server: ToyServer, cli: Cli) -> None:
    value = last_json(cli("generate", "hi", "--raw", "--address", server.address, "--json", "--logprobs", 1))
    assert list(value) == ["token_ids", "text", "logprobs", "finish_reason", "usage", "top_logprobs"]
    assert (value["token_ids"], value["text"], value["logprobs"]) == ([104, 105], "hi", [-0.5, -0.5])
    assert value["finish_reason"] == "length"
    assert value["usage"].keys() >= USAGE
    assert value["usage"]["prompt_tokens"] == 3


def test_every_option_arrives(server: ToyServer, cli: Cli, tmp_path: Path) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text("[7, 8, 9]")
    words = (
        "--max-new-tokens 2 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 4 --stop a --stop b"
    )
    words += " --repetition-penalty 1.2 --presence-penalty 1 --frequency-penalty -1 --ignore-eos"
    words += " --preset full --memory topk=64 --memory token_step=2 --session s --json --timeout 30"
    value = last_json(cli("generate", "--token-ids-file", ids, "--address", server.address, *words.split()))
    assert value["token_ids"] == [7, 8]
    seen: Any = server.engine.seen[-1]
    assert list(seen.prompt) == [7, 8, 9]
    assert (seen.max_new_tokens, seen.ignore_eos, seen.stop) == (2, True, ("a", "b"))
    assert (seen.preset, seen.session) == ("full", "s")
    assert seen.memory == {"topk": "64", "token_step": "2"}
    sampling = seen.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 3, 0.9, 0.1)
    assert (sampling.repetition_penalty, sampling.seed) == (1.2, 4)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)


@pytest.mark.parametrize("text", ["plain", "zwei\nZeilen é"])
def test_prompt_from_file_or_stdin(server: ToyServer, cli: Cli, tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    options = ("--raw", "--json", "--address", server.address)
    from_file = last_json(cli("generate", "--prompt-file", file, *options))
    from_stdin = last_json(cli("generate", *options, stdin=text.encode()))
    assert from_file["token_ids"] == from_stdin["token_ids"] == list(text.encode())


def test_a_chat_model_is_asked_through_its_template(server: ToyServer, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    file.write_text('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]')

    def answer(*arguments: object, stdin: bytes = b"") -> bytes:
        finished = cli("generate", *arguments, "--address", server.address, stdin=stdin)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    assert answer("hi") == answer(stdin=b"hi") == b"<user>hi\n"
    assert answer("hi", "--system", "be brief") == b"<system>be brief<user>hi\n"
    assert answer("--messages", file) == b"<user>a<assistant>b\n"
    assert answer("--messages", file, "--system", "s") == b"<system>s<user>a<assistant>b\n"


def test_a_model_without_a_template_continues_the_text(cli: Cli) -> None:
    with toy_server(engine=ToyEngine(has_chat_template=False)) as plain:
        assert cli("generate", "hi", "--address", plain.address).stdout == b"hi\n"
        refused = cli("generate", "hi", "--system", "s", "--address", plain.address)
        assert refused.stderr == b"error: --system: toy has no chat template; put it before the text\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "is no JSON"),
        ("{}", "must be a JSON list of messages"),
        ("[]", "must be a JSON list of messages"),
        ('[{"role": "user"}]', "message 1"),
        ('[{"role": "system", "content": "t"}]', "leave --system out"),
    ],
)
def test_bad_messages_file(server: ToyServer, cli: Cli, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "messages.json"
    file.write_text(content)
    finished = cli("generate", "--messages", file, "--system", "s", "--address", server.address)
    assert finished.returncode == 1
    (line,) = finished.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert str(file) in line
    assert words in line


def test_score(server: ToyServer, cli: Cli) -> None:
    value = last_json(cli("score", "ab", "--address", server.address, "--json"))
    assert list(value) == ["logprobs", "loss", "perplexity", "num_tokens"]
    assert value["logprobs"][0] is None
    assert (len(value["logprobs"]), value["num_tokens"]) == (3, 3)
    assert value["loss"] == pytest.approx(-sum(value["logprobs"][1:]) / 2)
    plain = cli("score", "ab", "--address", server.address)
    assert plain.stdout.startswith(b"3 tokens, loss ")


def test_tokenize_and_back(server: ToyServer, cli: Cli) -> None:
    assert cli("tokenize", "ab", "--address", server.address).stdout == f"{BOS} 97 98\n".encode()
    bare = last_json(cli("tokenize", "ab", "--no-special", "--json", "--address", server.address))
    assert bare == {"token_ids": [97, 98], "num_tokens": 2}
    assert cli("detokenize", 97, 98, "--address", server.address).stdout == b"ab\n"


def test_chat_keeps_the_conversation(server: ToyServer, cli: Cli) -> None:
    finished = cli("chat", "--system", "s", "--session", "talk", "--address", server.address, stdin=b"a\nb\n")
    assert finished.returncode == 0
    seen: Any = server.engine.seen[-1]
    first = "<system>s<user>a"
    assert bytes(list(seen.prompt)).decode() == f"{first}<assistant>{first}<user>b"
    assert seen.session == "talk"


def test_raw_chat_goes_on_from_its_own_tokens(server: ToyServer, cli: Cli) -> None:
    finished = cli("chat", "--raw", "--address", server.address, stdin=b"a\nb\n")
    assert finished.stdout == b"a\naab\n"
    assert list(server.engine.seen[-1].prompt) == [BOS, *b"aab"]  # type: ignore[union-attr]


def test_status(server: ToyServer, cli: Cli) -> None:
    finished = cli("status", "--json", "--address", server.address)
    value = json.loads(finished.stdout)
    assert (value["address"], value["state"], value["running"]) == (server.address, "serving", 1)
    assert value["kv_actors"][0]["capacity_bytes"] == 1 << 34
    assert value["model"]["default_sampling"]["top_p"] == 1.0
    table = cli("status", "--address", server.address).stdout.decode()
    assert "8.59 of 17.18 GB, 3 sessions, pid 11" in table
    rows = [line.replace("│", " ").split() for line in table.splitlines()]
    assert ["default", "sampling", "greedy"] in rows
    assert ["end", "token", "ids", str(BOS)] in rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "x", "--temperature", "nan"), "temperature: nan"),
        (("generate", "x", "--top-k", "-1"), "top_k: -1"),
        (("generate", "x", "--max-new-tokens", "0"), "max_new_tokens: 0"),
        (("generate", ""), "prompt: is empty"),
        (("generate",), "prompt: is empty"),
        (("generate", b"\xff"), "prompt: is not valid UTF-8"),
        (("generate", "x", "--preset", "unheard-of"), "preset: 'unheard-of'"),
        (("score", "x", "--preset", "broken"), "internal error"),
        (("detokenize", "99999"), "token_ids[0]: 99999"),
        (("detokenize", "--", "-1"), "token_ids: must be"),
    ],
)
def test_failure_is_one_line_and_exit_1(
    server: ToyServer, cli: Cli, arguments: tuple[object, ...], words: str
) -> None:
    command, *rest = arguments
    finished = cli(command, "--address", server.address, *rest)
    assert finished.returncode == 1
    (line,) = finished.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize("content", ["{}", "[1, 2.5]", "[true]", "not json", '["1"]'])
def test_bad_token_ids_file(server: ToyServer, cli: Cli, tmp_path: Path, content: str) -> None:
    file = tmp_path / "ids.json"
    file.write_text(content)
    finished = cli("generate", "--token-ids-file", file, "--address", server.address)
    assert finished.returncode == 1
    assert b"must hold a JSON list of whole numbers" in finished.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--no-such-option"),
        ("generate", "x", "--prompt-file", __file__),
        ("generate", "x", "--token-ids-file", __file__),
        ("generate", "x", "--messages", __file__),
        ("generate", "--raw", "--messages", __file__),
        ("generate", "x", "--raw", "--system", "s"),
        ("generate", "--token-ids-file", __file__, "--system", "s"),
        ("generate", "--prompt-file", "/no/such/file"),
        ("generate", "x", "--temperature", "warm"),
        ("detokenize",),
    ],
)
def test_wrong_command_line_is_exit_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli(*arguments).returncode == 2


def test_nobody_listens(cli: Cli) -> None:
    finished = cli("generate", "x", "--address", "127.0.0.1:1")
    assert finished.returncode == 1
    assert b"error: no server answers at 127.0.0.1:1; start one with" in finished.stderr


def test_a_time_limit_names_its_flag(server: ToyServer, cli: Cli) -> None:
    words = ["x", "--session", "endless", "--timeout", 0.3, "--address", server.address]
    finished = cli("generate", *words)
    assert finished.returncode == 1
    assert finished.stderr == b"error: no answer within 0.3 s; raise --timeout or ask for less\n"


@pytest.mark.parametrize("arguments", [("status",), ("stop",)])
def test_the_environment_names_the_server(
    server: ToyServer, cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MOORAGE_ADDRESS", server.address)
    finished = cli(*arguments)
    if arguments == ("stop",):
        assert b"no cluster runs on this host" in finished.stderr
    else:
        assert finished.returncode == 0, finished.stderr
    monkeypatch.setenv("MOORAGE_ADDRESS", "http://127.0.0.1:9")
    finished = cli(*arguments)
    assert finished.stderr.startswith(b"error: MOORAGE_ADDRESS http://127.0.0.1:9: should be HOST:PORT")


def test_ctrl_c_stops_the_work(server: ToyServer) -> None:
    server.engine.ended.clear()
    # A shell's background job ignores SIGINT, and so would what it starts.
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listening}; from moorage.runtime.cli import main; main()"
    words = ["generate", "x", "--session", "endless", "--address", server.address]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"A"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode in (1, 130)
    assert b"Traceback" not in errors
    until_s = time.monotonic() + 10
    while not server.engine.ended.is_set():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.mark.parametrize(
    "command",
    ["launch", "status", "stop", "generate", "chat", "score", "tokenize", "detokenize", "demo"],
)
def test_help_has_examples(cli: Cli, command: str) -> None:
    finished = cli(command, "--help")
    assert finished.returncode == 0
    assert f"runtime {command}".encode() in finished.stdout.split(b"Examples:")[1]


@pytest.mark.parametrize(
    "module", ["moorage.client", "moorage.runtime.cli.generate", "moorage.runtime.cli.launch"]
)
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*({{'torch', 'ray', 'numba'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""


def test_special_tokens_of_messages_are_read_where_asked_for(server: ToyServer, cli: Cli) -> None:
    for arguments, begin in (((), "<user>"), (("--parse-special",), "{user>")):
        finished = cli("generate", "a", "--json", "--address", server.address, *arguments)
        assert json.loads(finished.stdout)["text"].startswith(begin)
