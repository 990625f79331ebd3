"""Behaviour that all commands share: exit codes, one-line errors, version, help."""

import subprocess
import sys

import pytest

from moorage.runtime.cli import main
from moorage.runtime.cli.app import COMMANDS


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert (code, out.split()[0]) == (0, "runtime")
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


@pytest.mark.parametrize(
    "arguments", [("nope",), ("size", "--nope"), ("size", "--sessions", "0", "--model", "x")]
)
def test_wrong_command_lines_exit_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


def test_failures_exit_1_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "config", "no-such.yaml")
    assert (code, out) == (1, "")
    assert err == "error: no-such.yaml: no such file; give the path of a cluster.yaml\n"


def test_as_a_process() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from moorage.runtime.cli import main; main()", "presets", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"ktransformers"' in result.stdout
    assert result.stderr == ""
