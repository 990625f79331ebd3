"""The forms in which other systems are configured: a YAML mapping, a command line, a Python snippet, a page of these.

Python is parsed and never run: only literals, and names that the snippet gives one, are read.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from moorage.runtime.config.yaml_reading import parse_value
from moorage.workers.errors import InvalidConfig

ENGINE_CALL = "TurbomindEngineConfig"
_CALL = re.compile(rf"\b{ENGINE_CALL}\s*\(")
_FENCED = re.compile(r"^ {0,3}```[^\n]*\n(.*?)^ {0,3}```", re.MULTILINE | re.DOTALL)
_KTRANSFORMERS = re.compile(
    r"\s*(?:\w+=\S+\s+)*(?:python[\d.]*\s+(?:-m\s+)?)?(?P<program>\S*(?:ktransformers|local_chat)\S*)\s+(?=.*--)",
    re.DOTALL,
)
"""How a command line of ktransformers begins: its server, or its chat."""
_COMMAND_WORDS = ("lmdeploy", "serve", "api_server", "chat")
_PARSE_ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(slots=True)
class Given:
    """A configuration as its keys, and what of it could not be read."""

    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    is_lmdeploy: bool = False
    """Whether the form alone tells that it is LMDeploy's."""
    is_ktransformers_command: bool = False


def read_forms(text: str, origin: str) -> Iterator[Given]:
    """The configurations in a text: one, or that of each fenced block of a Markdown page.

    Raises InvalidConfig, with `origin` and the fix, for a text that is in none of the forms.
    """
    blocks = _FENCED.findall(text)
    if not blocks:
        yield _read_form(text, origin)
        return
    for block in blocks:
        try:
            yield _read_form(block, origin)
        except InvalidConfig:
            continue


def _read_form(text: str, origin: str) -> Given:
    if text.lstrip().startswith("lmdeploy "):
        return Given(_lmdeploy_command(text, origin), is_lmdeploy=True)
    if command := _KTRANSFORMERS.match(text):
        values, positional = _command_line(text[command.end() :], origin)
        if positional:
            values.setdefault("model_path", positional[0])
        return Given(values, is_ktransformers_command=True)
    if _CALL.search(text):
        return _snippet(text, origin)
    values = parse_value(text, origin)
    if not isinstance(values, dict):
        raise InvalidConfig(f"{origin}: holds no mapping of keys; give a configuration file")
    return Given(values)


def _lmdeploy_command(text: str, origin: str) -> dict[str, Any]:
    """`lmdeploy serve api_server MODEL --session-len N ...` as a mapping."""
    values, positional = _command_line(text, origin)
    if positional[-1] not in _COMMAND_WORDS:
        values["model_path"] = positional[-1]
    return values


def _command_line(text: str, origin: str) -> tuple[dict[str, Any], list[str]]:
    """The options of a command line as a mapping, and its other words."""
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise InvalidConfig(f"{origin}: not a command line ({error}); correct its quotes") from None
    values: dict[str, Any] = {}
    positional: list[str] = []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        values[name.replace("-", "_")] = parse_value(value, f"{origin}: --{name}")
    return values, positional


def _snippet(text: str, origin: str) -> Given:
    """The keywords of a TurbomindEngineConfig(...) call, and the model of the pipeline(...) beside it."""
    try:
        tree = ast.parse(_dedented(text))
    except _PARSE_ERRORS as error:
        line = getattr(error, "lineno", None) or 1
        raise InvalidConfig(
            f"{origin}:{line}: not Python ({type(error).__name__}); give the call alone"
        ) from None
    calls = sorted((n for n in ast.walk(tree) if isinstance(n, ast.Call)), key=lambda call: call.lineno)
    configs = [call for call in calls if _name(call.func) == ENGINE_CALL]
    if not configs:
        raise InvalidConfig(f"{origin}: has no {ENGINE_CALL}(...) call outside text; give the call alone")
    names = _literal_names(tree)
    given = Given({}, is_lmdeploy=True)
    if len(configs) > 1:
        given.notes.append(
            f"{ENGINE_CALL}: the first of {len(configs)} calls is taken; give others by themselves"
        )
    _read_keywords(configs[0], names, given)
    model = next((found for call in calls if (found := _model_of(call)) is not None), None)
    if model is not None:
        _put(given, "model_path", model, names)
    return given


def _read_keywords(call: ast.Call, names: dict[str, ast.expr], given: Given) -> None:
    if call.args:
        given.notes.append(f"{ENGINE_CALL}: arguments without a name are left out; write them as key=value")
    for keyword in call.keywords:
        if keyword.arg is None:
            given.notes.append(f"**{ast.unparse(keyword.value)[:40]}: is not a literal; set its keys by hand")
        else:
            _put(given, keyword.arg, keyword.value, names)


def _put(given: Given, key: str, value: ast.expr, names: dict[str, ast.expr]) -> None:
    """Sets a key to a literal, or to the literal that the snippet gives its name."""
    literal = names.get(value.id, value) if isinstance(value, ast.Name) else value
    try:
        plain = ast.literal_eval(literal)
    except _PARSE_ERRORS:
        plain = ...
    if plain is None or isinstance(plain, str | int | float | list | dict):
        given.values[key] = plain
    else:
        given.notes.append(f"{key}: {ast.unparse(value)[:40]}: is not a literal; set it by hand")


def _model_of(call: ast.Call) -> ast.expr | None:
    """The model of `pipeline(model, ...)` or `serve(model, ...)`."""
    if _name(call.func) not in ("pipeline", "serve"):
        return None
    named = next((keyword.value for keyword in call.keywords if keyword.arg == "model_path"), None)
    return named if named is not None else next(iter(call.args), None)


def _literal_names(tree: ast.Module) -> dict[str, ast.expr]:
    """What plain assignments at the top of the snippet give to each name, the last one for each."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def _name(function: ast.expr) -> str:
    """`f` of `f(...)` and of `module.f(...)`."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _dedented(text: str) -> str:
    """The text without the indentation of a snippet from a page, or the prompt of an interactive session."""
    lines = [line.removeprefix(">>> ").removeprefix("... ") for line in text.expandtabs().splitlines()]
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    return "\n".join(line[min(indents, default=0) :] for line in lines)
