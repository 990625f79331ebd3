"""The commands that the documents show exist, with the flags they are shown with."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "runtime/README.md",
    "runtime/api/http/README.md",
    "runtime/api/http/page/README.md",
    "workers/README.md",
    "kernels/README.md",
    "deploy/benchmarks/README.md",
    "deploy/models/moorage-pilot/README.md",
    "deploy/models/moorage-ref/README.md",
)
CONSOLE_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


def shown_commands(text: str) -> Iterator[list[str]]:
    """Words of every `$ command` in the ```console blocks, split at pipes; `\\` continues a line."""
    for block in CONSOLE_BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                lexer = shlex.shlex(line[2:], posix=True, punctuation_chars="|;&<>")
                lexer.whitespace_split = True
                words: list[str] = []
                for word in [*lexer, ";"]:
                    if set(word) <= set("|;&"):
                        yield words
                        words = []
                    else:
                        words.append(word)


COMMANDS = [
    pytest.param(words, id=" ".join(words)[:60])
    for document in DOCUMENTS
    for words in shown_commands((ROOT / document).read_text(encoding="utf-8"))
]


def test_commands_are_found() -> None:
    text = "```console\n$ make a\noutput\n$ runtime size \\\n    --json | head  # why\n```\n"
    assert list(shown_commands(text)) == [["make", "a"], ["runtime", "size", "--json"], ["head"]]
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("words", COMMANDS)
def test_shown_command_exists(words: list[str]) -> None:
    program, *arguments = words
    if program.rsplit("/", 1)[-1] == "runtime":
        flags = {word.split("=")[0] for word in arguments if word.startswith("-")}
        depth = 2 if arguments[0] in ("eval", "bench") else 1
        subcommand = [word for word in arguments[:depth] if not word.startswith("-")]
        known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_of(*subcommand)))
        assert flags <= known, f"`runtime {' '.join(subcommand)}` has no {flags - known}"
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
        assert {word for word in arguments if "=" not in word} <= targets
    else:
        assert program in {"cat", "cd", "curl", "git", "jq", "pre-commit", "source"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_linked_files_exist(document: str) -> None:
    path = ROOT / document
    links = LINK.findall(path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@cache
def help_of(*subcommand: str) -> str:
    """What `runtime SUBCOMMAND --help` prints."""
    code = "from moorage.runtime.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, *subcommand, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout
