"""`runtime chat` at a keyboard and from a pipe: nothing that is pasted, said or waited for gets lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moorage.runtime.cli import transcripts
from moorage.workers.errors import InvalidRequest
from tests.pdf_files import pdf_of
from tests.runtime.cli.conftest import Cli
from tests.runtime.cli.terminal import Terminal, terminal
from tests.toy_engine import ToyEngine
from tests.toy_server import ToyServer, toy_server

ROOT = Path(__file__).parents[3]
READY = "Ctrl-D ends."
PROMPT = "\n>"


@pytest.fixture
def prompts(server: ToyServer) -> Callable[[], list[str]]:
    """The prompts that the server got during the test."""
    before = len(server.engine.seen)
    return (
        lambda: [
            bytes(token for token in seen.prompt if token < 256).decode()  # type: ignore[union-attr]
            for seen in server.engine.seen[before:]
        ]
    )


@pytest.fixture
def talk(server: ToyServer, tmp_path: Path) -> Iterator[Terminal]:
    """A chat on a terminal that waits for its first turn."""
    with terminal(tmp_path, "chat", "--address", server.address) as opened:
        opened.wait_for(READY)
        yield opened


def test_a_paste_is_one_turn_and_enter_sends_it(talk: Terminal, prompts: Callable[[], list[str]]) -> None:
    talk.paste("first\n\necho pasted lines stay here\n/exit\n")
    talk.wait_for("/exit")
    assert prompts() == []
    talk.keys("\r")
    talk.wait_for("<user>first")
    talk.wait_for(PROMPT)
    assert prompts() == ["<user>first\n\necho pasted lines stay here\n/exit"]
    talk.keys("\x04")
    assert talk.exit_code() == 0


def test_a_terminal_that_does_not_mark_pastes(talk: Terminal, prompts: Callable[[], list[str]]) -> None:
    talk.keys("one\rtwo\r\rthree\r")
    talk.wait_for("<user>one")
    talk.wait_for(PROMPT)
    assert prompts() == ["<user>one\ntwo\n\nthree"]


def test_blank_lines_blocks_and_long_lines(talk: Terminal, prompts: Callable[[], list[str]]) -> None:
    for keys in ("\r", "\r", '"""', "\r", "a", "\r", "\r", 'b"""'):
        talk.keys(keys)
        time.sleep(0.05)  # a person's keys come one by one
    talk.keys("\r")
    talk.wait_for("<user>a")
    talk.wait_for(PROMPT)
    long = "x" * 20_000
    talk.paste(long)
    talk.keys("\r")
    talk.wait_for(PROMPT, timeout_s=60)
    talk.keys("/exit\r")
    assert talk.exit_code() == 0
    assert prompts()[0] == "<user>a\n\nb"
    assert prompts()[1].endswith(f"<user>{long}")


def test_ctrl_c_stops_the_answer_and_not_the_chat(server: ToyServer, tmp_path: Path) -> None:
    server.engine.ended.clear()
    with terminal(tmp_path, "chat", "--session", "endless", "--address", server.address) as talk:
        talk.wait_for(READY)
        talk.keys("go\r")
        talk.wait_for("AAA")
        talk.keys("\x03")
        talk.wait_for("the part of the answer above is remembered")
        talk.wait_for(PROMPT)
        talk.keys("\x03")
        talk.wait_for("ends the chat")
        talk.keys("\x04")
        assert talk.exit_code() == 0
    until_s = time.monotonic() + 10
    while not server.engine.ended.is_set():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_what_is_pasted_during_an_answer_is_the_next_turn(tmp_path: Path) -> None:
    long = "y" * 5000
    with (
        toy_server(engine=ToyEngine(step_s=0.05)) as slow,
        terminal(tmp_path, "chat", "--address", slow.address, "--max-new-tokens", "20") as talk,
    ):
        talk.wait_for(READY)
        talk.keys("a question\r")
        talk.wait_for("<user>")
        talk.keys(f"{long}\r")
        talk.wait_for("yyy", timeout_s=30)
        until_s = time.monotonic() + 20
        while len(slow.engine.seen) < 2:
            assert time.monotonic() < until_s
            time.sleep(0.02)
        assert bytes(list(slow.engine.seen[1].prompt)).decode().endswith(f"<user>{long}")  # type: ignore[union-attr]


def test_an_error_ends_no_chat_and_turns_are_found_again(
    server: ToyServer, tmp_path: Path, prompts: Callable[[], list[str]]
) -> None:
    with terminal(tmp_path, "chat", "--preset", "unheard-of", "--address", server.address) as talk:
        talk.wait_for(READY)
        talk.keys("a question\r")
        talk.wait_for("error: preset: 'unheard-of' is unknown")
        talk.wait_for("arrow up brings it back")
        talk.keys("\x1b[A\r")
        talk.wait_for("error: preset")
        talk.keys("\x04")
        assert talk.exit_code() == 0
    assert prompts() == ["<user>a question"] * 2
    history = tmp_path / "chat-history"
    assert "+a question" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_lost_server_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    cluster, ready_file = tmp_path / "cluster.yaml", tmp_path / "ready.json"
    model = ROOT / "deploy" / "models" / "moorage-pilot"
    cluster.write_text(f"model: {{path: {model}}}\nserver: {{grpc: '127.0.0.1:0'}}\n")
    environment = {**os.environ, "MOORAGE_RUN_DIR": str(tmp_path / "server")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.toy_server", cluster, ready_file, "0.02"],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    try:
        until_s = time.monotonic() + 30
        while not ready_file.exists():
            assert time.monotonic() < until_s
            time.sleep(0.02)
        address = json.loads(ready_file.read_text())["address"]
        with terminal(tmp_path, "chat", "--session", "endless", "--address", address) as talk:
            talk.wait_for(READY)
            talk.keys("first\r")
            talk.wait_for("AAA")
            talk.keys("\x03")
            talk.wait_for("is remembered")
            talk.keys("second\r")
            talk.wait_for("AAA")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            talk.wait_for("nothing of the conversation is lost")
            with toy_server(at=address) as again:
                talk.wait_for("the server answers again")
                talk.wait_for("AAA")
                prompt = bytes(list(again.engine.seen[-1].prompt)).decode()  # type: ignore[union-attr]
                talk.keys("\x03")
                talk.wait_for("is remembered")
        assert prompt.startswith("<user>first<assistant>AAA")
        assert prompt.endswith("A<user>second")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_piped_turns(server: ToyServer, cli: Cli, prompts: Callable[[], list[str]]) -> None:
    long = "z" * 100_000
    server.engine.max_seq_len = 1 << 20
    lines = f'a\n\n\n"""\nb\n\n/exit\nc"""\n{long}\n"""open'
    finished = cli("chat", "--max-new-tokens", 1, "--address", server.address, stdin=lines.encode())
    assert finished.returncode == 0, finished.stderr
    server.engine.max_seq_len = 4096
    said = [prompt.rsplit("<user>", 1)[1] for prompt in prompts()]
    assert said == ["a", "b\n\n/exit\nc", long, "open"]


@pytest.mark.parametrize(
    ("preset", "turns", "words"),
    [
        ("full", b"\xff\nnever sent\n", b"not valid UTF-8"),
        ("unheard-of", b"x\nnever sent\n", b"'unheard-of'"),
    ],
)
def test_an_error_ends_piped_turns(
    server: ToyServer, cli: Cli, prompts: Callable[[], list[str]], preset: str, turns: bytes, words: bytes
) -> None:
    finished = cli("chat", "--preset", preset, "--address", server.address, stdin=turns)
    assert finished.returncode == 1
    assert words in finished.stderr
    assert finished.stderr.startswith(b"error: ")
    assert "never sent" not in "".join(prompts())


def test_commands(server: ToyServer, cli: Cli, tmp_path: Path, prompts: Callable[[], list[str]]) -> None:
    file = tmp_path / "said.json"
    typed = [
        f"/save {file}",
        "/reset",
        "b",
        f"/load {file}",
        "c",
        "/nope",
        "/help",
        "/sessions",
        "/exit",
        "d",
    ]
    turns = "\n".join(["a", *typed])
    finished = cli(
        "chat", "--system", "s", "--max-new-tokens", 1, "--address", server.address, stdin=turns.encode()
    )
    assert finished.returncode == 0
    assert prompts() == ["<system>s<user>a", "<system>s<user>b", "<system>s<user>a<assistant><<user>c"]
    assert json.loads(file.read_text())[0] == {"role": "system", "content": "s"}
    assert file.stat().st_mode & 0o077 == 0
    told = finished.stderr.decode()
    assert "error: /nope: no such command" in told
    assert "/sessions    list the conversations" in told
    assert "none is kept" in told


def test_files_of_other_things_are_not_loaded(
    server: ToyServer, cli: Cli, tmp_path: Path, prompts: Callable[[], list[str]]
) -> None:
    raw = '{"token_ids": [1], "num_questions": 1}'
    files = [tmp_path / f"{number}.json" for number in range(6)]
    for file, content in zip(files, ["", "{}", "[]", '[{"role": "user"}]', raw], strict=False):
        file.write_text(content)
    turns = "\n".join([*(f"/load {file}" for file in files), "/load", "a"])
    finished = cli("chat", "--address", server.address, stdin=turns.encode())
    assert finished.returncode == 0
    *refused, without_name, _cut = finished.stderr.decode().splitlines()
    assert [f"{file}: " in line for file, line in zip(files, refused, strict=True)] == [True] * 6
    assert without_name.startswith("error: /load: needs a file")
    assert prompts() == ["<user>a"]


@pytest.mark.parametrize("raw", [(), ("--raw",)])
def test_a_session_goes_on_where_it_was(
    server: ToyServer, cli: Cli, tmp_path: Path, prompts: Callable[[], list[str]], raw: tuple[str, ...]
) -> None:
    arguments = ("chat", *raw, "--session", "a/b é", "--max-new-tokens", 1, "--address", server.address)
    assert cli(*arguments, stdin=b"one\n").returncode == 0
    finished = cli(*arguments, stdin=b"two\n/sessions\n")
    assert "goes on from 1 question" in finished.stderr.decode()
    assert "a/b é (this one)" in finished.stdout.decode()
    assert prompts()[1] == ("oneotwo" if raw else "<user>one<assistant><<user>two")
    (file,) = (tmp_path / "chats").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0
    other = cli(*[word for word in arguments if word != "--raw"], *([] if raw else ["--raw"]), stdin=b"x\n")
    assert other.returncode == 1
    assert b"raw" in other.stderr


def test_names_of_sessions_never_leave_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_RUN_DIR", str(tmp_path))
    names = ["../../x", ".", "n" * 1000, "n" * 1001, "a\nb", "\ud800"]
    for name in names:
        transcripts.save(name, "toy", 1, [name])
    assert len(list((tmp_path / "chats").iterdir())) == len(names)
    for name in names:
        kept = transcripts.load(name)
        assert kept is not None
        assert kept.turns == [name]
    assert len(transcripts.saved()) == len(names)


def test_a_transcript_of_other_things_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_RUN_DIR", str(tmp_path))
    (transcripts.folder() / "x.json").write_text("[]")
    with pytest.raises(InvalidRequest, match=r"x\.json: is no conversation"):
        transcripts.load("x")
    assert transcripts.saved() == []


def test_a_model_without_a_template_needs_raw(cli: Cli) -> None:
    with toy_server(engine=ToyEngine(has_chat_template=False)) as plain:
        finished = cli("chat", "--address", plain.address, stdin=b"a\n")
        assert finished.returncode == 1
        assert b"has no chat template; `runtime chat --raw`" in finished.stderr
        assert cli("chat", "--raw", "--address", plain.address, stdin=b"a\n").stdout == b"a\n"


def test_only_a_chat_at_a_keyboard_loads_prompt_toolkit() -> None:
    code = "import sys, moorage.runtime.cli.chat; print('prompt_toolkit' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "False\n"


def test_documents_go_before_the_next_question_alone(
    server: ToyServer, cli: Cli, tmp_path: Path, prompts: Callable[[], list[str]]
) -> None:
    report, note = tmp_path / "report.pdf", tmp_path / "note.txt"
    report.write_bytes(pdf_of("Ships came at six."))
    note.write_text("Fog at nine.")
    turns = f"When?\n/load {note}\nAnd fog?\n/load {tmp_path / 'none.pdf'}\nBye.\n".encode()
    finished = cli("chat", "--pdf", report, "--address", server.address, stdin=turns)
    assert finished.returncode == 0, finished.stderr
    asked = [prompt.split("<user>")[-1] for prompt in prompts()]
    assert asked == [
        "report.pdf:\nShips came at six.\n\nWhen?",
        "note.txt:\nFog at nine.\n\nAnd fog?",
        "Bye.",
    ]
    assert prompts()[1].startswith(prompts()[0])
    assert b"(report.pdf: 18 characters go before your next question)" in finished.stderr
    assert b"none.pdf: No such file" in finished.stderr
