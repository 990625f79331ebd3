"""The commands that documents, example files and helps show can be parsed, and what documents link to exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from moorage.runtime.cli.app import COMMANDS as COMMAND_MODULES
from moorage.runtime.cli.app import PROGRAMS, app
from moorage.runtime.config.reference import explained
from moorage.runtime.evals.variants import parse_variant

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
_FOLDERS = ("deploy", "kernels", "runtime", "workers")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(path for folder in _FOLDERS for path in (ROOT / folder).rglob("*.md"))]
    if path.name != "CHANGELOG.md"
)
EXAMPLE_FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "deploy").glob("*.yaml"))
OTHER_PROGRAMS = {"cat", "cd", "curl", "git", "head", "jq", "pre-commit", "source"}
CONSOLE_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`]+)`")
COMMAND_SPAN = re.compile(r"(?:runtime|moorage) [a-z].*")
REDIRECTION = re.compile(r" [<>]+ *\S+")
COMMENTED_COMMAND = re.compile(r"^# +(runtime .*)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
KERNEL_CALLS = re.compile(r"^\| [^|]+ \| (`[^|]+) \|", re.MULTILINE)
TEST_FILE = re.compile(r"`(?:\w+/)*(test_\w+\.py)`")


def in_pieces(line: str) -> Iterator[list[str]]:
    """The words of the commands of one line, split at pipes, without redirections and the comment at its end."""
    lexer = shlex.shlex(REDIRECTION.sub("", line), posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|;&"):
            yield words
            words = []
        else:
            words.append(word)


def shown_commands(text: str) -> Iterator[list[str]]:
    """Words of every `$ command` in the ```console blocks; `\\` continues a line."""
    for block in CONSOLE_BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield from in_pieces(line[2:])


def commands_in_sentences(text: str) -> Iterator[list[str]]:
    """Words of every `runtime …` between backticks outside blocks of code."""
    for span in CODE_SPAN.findall(re.sub(r"\s*\n\s*", " ", CODE_BLOCK.sub("", text))):
        if COMMAND_SPAN.fullmatch(span):
            yield next(in_pieces(span))


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@cache
def program() -> Any:
    """The command line with all of its commands."""
    for module in COMMAND_MODULES.values():
        import_module(module)
    return typer.main.get_command(app)


def helps(command: Any = None) -> Iterator[str]:
    """The examples below the help of every command."""
    command = command or program()
    yield command.epilog or ""
    for each in getattr(command, "commands", {}).values():
        yield from helps(each)


def fault(words: list[str]) -> str | None:
    """What the command line finds wrong in a command, other than that a file of an example does not exist."""
    command, rest, parent = program(), words[1:], None
    try:
        while True:
            parent = command.make_context(command.name, list(rest), parent=parent)
            rest = [*getattr(parent, "_protected_args", ()), *parent.args]
            if not rest or not hasattr(command, "commands"):
                return None
            _, command, rest = command.resolve_command(parent, rest)
    except typer.BadParameter.__bases__[0] as error:
        told = error.format_message()
        return None if "does not exist" in told else told


def settings_of(words: list[str]) -> Iterator[list[str]]:
    """The settings of `--set` alone, and beside those of each `--variant`."""
    values = list(pairwise(words))
    shared = [value for option, value in values if option == "--set"]
    yield shared
    for option, value in values:
        if option == "--variant":
            yield [*shared, *parse_variant(value).overrides_at(4096, 1024)]


def named(commands: Iterator[list[str]], where: str) -> list[Any]:
    return [pytest.param(words, id=f"{where}: {' '.join(words)[:60]}") for words in commands if words]


SHOWN = [
    *(each for document in DOCUMENTS for each in named(shown_commands(read(document)), document)),
    *(
        each
        for file in EXAMPLE_FILES
        for line in COMMENTED_COMMAND.findall(read(file))
        for each in named(in_pieces(line), file)
    ),
    *(
        each
        for help_text in helps()
        for line in help_text.splitlines()
        if re.search(r"\bruntime [a-z]", line)
        for each in named(in_pieces(line.strip()), "help")
    ),
]
MENTIONED = [
    each for document in DOCUMENTS for each in named(commands_in_sentences(read(document)), document)
]


def test_commands_are_found() -> None:
    text = (
        "```console\n$ make a\noutput\n$ runtime size \\\n    --json | head  # why\n```\n`runtime\nstatus`\n"
    )
    assert list(shown_commands(text)) == [["make", "a"], ["runtime", "size", "--json"], ["head"]]
    assert list(commands_in_sentences(text)) == [["runtime", "status"]]
    assert len(SHOWN) >= 100
    assert len(MENTIONED) >= 20


def test_a_wrong_command_is_a_fault() -> None:
    assert fault(["runtime", "eval", "needle", "--needles", "4"]) is None
    assert "No such option" in (fault(["runtime", "eval", "needle", "--pins", "4"]) or "")
    assert "No such command" in (fault(["runtime", "eval", "haystack"]) or "")
    assert "Missing" in (fault(["runtime", "bench", "verify"]) or "")


@pytest.mark.parametrize("words", SHOWN)
def test_a_shown_command_can_be_parsed(words: list[str]) -> None:
    name = words[0].rsplit("/", 1)[-1]
    if name in PROGRAMS:
        assert fault(words) is None
        for settings in settings_of(words):
            explained(settings)
    elif name == "make":
        targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets
    else:
        assert name in OTHER_PROGRAMS


@pytest.mark.parametrize("words", MENTIONED)
def test_what_a_sentence_says_of_a_command_exists(words: list[str]) -> None:
    """It may leave out what the command requires."""
    assert not (fault(words) or "").startswith("No such")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_exists(document: str) -> None:
    path = ROOT / document
    for name, section in LINK.findall(read(document)):
        linked = path.parent / name if name else path
        assert linked.exists(), f"{name} does not exist"
        if section:
            assert section in sections(linked), f"{name} has no section {section}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_tests_that_exist(document: str) -> None:
    existing = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(TEST_FILE.findall(read(document))) <= existing


def test_the_page_of_the_kernels_names_every_part() -> None:
    page = read("kernels/README.md")
    parts = {path.name for path in KERNELS.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert {part for part in parts if not re.search(rf"\b{re.escape(part)}\b", page)} == set()


@pytest.mark.parametrize("row", KERNEL_CALLS.findall(read("kernels/README.md")))
def test_the_page_of_the_kernels_names_calls_that_exist(row: str) -> None:
    """A name without a module belongs to that of the name before it."""
    module = ""
    for call in CODE_SPAN.findall(row):
        module, _, name = call.rpartition(".") if "." in call else (module, "", call)
        path = KERNELS.joinpath(*module.split("."))
        sources = [path.with_suffix(".py"), *path.glob("*.py")]
        assert any(re.search(rf"\bdef {name}\b", file.read_text()) for file in sources if file.exists()), call


def sections(document: Path) -> set[str]:
    """The sections of a document as a link names them."""
    headings = HEADING.findall(CODE_BLOCK.sub("", document.read_text(encoding="utf-8")))
    shown = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w -]", "", heading).strip().replace(" ", "-") for heading in shown}
