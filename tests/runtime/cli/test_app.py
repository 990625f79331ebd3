"""Behaviour that all commands share: exit codes, one-line errors, version, help."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import moorage
from moorage.runtime.cli import main
from moorage.runtime.cli import tokenize as tokenize_command
from moorage.runtime.cli.app import COMMANDS, PROGRAMS

INTERRUPTED_IMPORT = """\
import sys

class Interrupted:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "moorage.runtime.cli.config":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted)
"""
"""Ctrl-C while the module of `runtime config` is imported, as a sitecustomize module."""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def called(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a console script of the environment that these tests run in."""
    command = [Path(sys.executable).with_name(program), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"moorage {moorage.__version__}\n")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    is_group = "\nCommands:\n" in out
    assert is_group or f"runtime {name}" in out.split("Examples:")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_values_as_people_do(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """No Python type is shown: `--seed N`, not `--seed <int range>`."""
    out = run(capsys, name, "--help")[1]
    commands = re.findall(r"^  ([a-z-]+)", out.partition("\nCommands:\n")[2], re.MULTILINE)
    shown = out + "".join(run(capsys, name, command, "--help")[1] for command in commands)
    assert re.findall(r"<[\w\[\]| ]+>", shown) == []
    assert re.findall(r"\b(?:INTEGER|PATH|list\[\w+\])", shown) == []


def test_values_are_named_by_their_type(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "generate", "--help")[1]
    for shown in (
        "--seed N ",
        "--top-p X ",
        "--stop TEXT ",
        "--messages FILE ",
        "--session NAME ",
        "\n  TEXT ",
    ):
        assert shown in out
    assert "--style text|garbage|" in run(capsys, "eval", "passkey", "--help")[1]


@pytest.mark.parametrize(
    "arguments", [("nope",), ("size", "--nope"), ("size", "--sessions", "0", "--model", "x")]
)
def test_wrong_command_lines_exit_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: runtime ")
    assert err.splitlines()[-1].startswith("error: ")
    assert "Error: " not in err


def test_failures_exit_1_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "config", "no-such.yaml")
    assert (code, out) == (1, "")
    assert (
        err
        == "error: no-such.yaml: no such file or directory; give the path of a cluster file or of a model directory\n"
    )


def test_as_a_process() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from moorage.runtime.cli import main; main()", "presets", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"ktransformers"' in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_both_console_scripts_show_the_name_they_were_called_by(program: str) -> None:
    shown = called(program, "status", "--help").stdout
    assert shown.startswith(f"Usage: {program} status ")
    assert set(re.findall(r"\w+(?= status)", shown.split("Examples:")[1])) == {program}
    wrong = called(program, "status", "--nope")
    assert wrong.stderr.startswith(f"Usage: {program} status ")


def test_python_m_moorage_is_the_same_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "moorage", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"moorage {moorage.__version__}\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_shell_completes_commands_and_flags(program: str) -> None:
    variable = f"_{program.upper()}_COMPLETE"
    complete = {variable: "complete_bash", "COMP_CWORD": "1"}
    assert called(program, **complete, COMP_WORDS=f"{program} tok").stdout.split() == ["tokenize"]
    complete["COMP_CWORD"] = "2"
    flags = called(program, **complete, COMP_WORDS=f"{program} status --ad").stdout.split()
    assert flags == ["--address"]


def test_completion_installs(tmp_path: Path) -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # a test may have no shell above it
    installed = called("moorage", "--install-completion", "bash", HOME=str(tmp_path), **named)
    assert installed.returncode == 0, installed.stderr
    (script,) = tmp_path.glob(".bash_completions/*")
    assert "_MOORAGE_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_ctrl_c_before_the_command_has_loaded_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED_IMPORT)
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    interrupted = called("runtime", "config", "cluster.yaml", PYTHONPATH=paths)
    assert (interrupted.returncode, interrupted.stdout, interrupted.stderr) == (130, "", "")


@pytest.mark.parametrize("kind", [ZeroDivisionError, asyncio.CancelledError])
def test_an_unforeseen_error_is_one_line_and_its_traceback_a_private_file(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
) -> None:
    def broken(*_: object) -> bytes:
        raise kind("a fault\nof two lines")

    monkeypatch.setenv("MOORAGE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(tokenize_command.o, "read_text", broken)
    code, out, err = run(capsys, "tokenize", "text")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: unexpected {kind.__name__}: a fault of two lines; ")
    (file,) = (tmp_path / "run").glob("error-*.log")
    assert line.endswith(str(file))
    assert file.stat().st_mode & 0o077 == 0
    assert "in broken" in file.read_text()
    assert f"moorage {moorage.__version__}" in file.read_text()


def test_a_run_directory_that_can_not_be_written_hides_no_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("MOORAGE_RUN_DIR", str(blocked / "run"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, _, err = run(capsys, "stop")
    assert code == 1
    (line,) = err.splitlines()
    (file,) = tmp_path.glob("moorage-error-*.log")
    assert line.endswith(str(file))
