"""A chat template, rendered as transformers renders it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moorage.runtime.text.call_arguments import with_arguments
from moorage.runtime.text.tokenizer_files import TemplateSource
from moorage.workers.errors import InvalidModel, InvalidRequest

_BASIC_ROLES = frozenset({"system", "user", "assistant"})
_WRITTEN_ROLES = _BASIC_ROLES | {"developer", "tool", "function"}
"""Roles for a template that writes the role of a message as it is."""
_EXAMINING = frozenset(
    ("split", "rsplit", "partition", "rpartition", "startswith", "endswith", "find", "rfind")
) | {"index", "count", "replace", "removeprefix", "removesuffix"}
"""Methods and filters that look for a part of a text."""
_AS_IT_IS = "moorage_ascii_as_it_is"
"""Name of the characters that `tojson` does not escape."""


class ChatTemplate:
    """A template and what its source tells about it."""

    def __init__(self, source: TemplateSource, special_tokens: Mapping[str, str]) -> None:
        """Raises InvalidModel with the file when the source is not a template."""
        self.path, self.source = source.path, source.text
        self._names = dict(special_tokens)
        self.special_tokens = frozenset(special_tokens.values())
        """The named ones, such as the `eos_token`."""
        try:
            tree = _environment().parse(source.text)
        except (jinja2.TemplateError, RecursionError) as error:
            raise InvalidModel(
                f"{self.path}: the chat template can't be read ({_brief(error)}); download it again"
            ) from None
        self.literals = "\0".join(_literals(tree))
        """The text that the template itself writes, in pieces."""
        self.roles = _roles(tree)
        """Roles that a message may have."""
        self.examined = frozenset(_examined(tree))
        """Texts that the template looks for in others, as in `'</think>' in content`."""
        self.takes_tools = any(name.name == "tools" for name in tree.find_all(nodes.Name))
        """Whether the template writes the tools of a request."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        ascii_as_it_is: str = "",
        **extra: Any,
    ) -> str:
        """The text of a conversation. `tojson` escapes none of the characters `ascii_as_it_is`.

        Raises InvalidRequest with the file when the template refuses the messages or fails.
        """
        names: dict[str, Any] = {"tools": None, "documents": None, **self._names, **extra}
        names |= {
            "messages": list(map(with_arguments, messages)),
            "add_generation_prompt": add_generation_prompt,
        }
        names[_AS_IT_IS] = ascii_as_it_is
        try:
            return self._compiled.render(names)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"{self.path.name}: the model's chat template refuses the messages: {_brief(error)}"
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # a template can raise anything, such as ZeroDivisionError
            raise InvalidRequest(
                f"{self.path.name}: the model's chat template fails with {type(error).__name__}: "
                f"{_brief(error)}; mend the template, or send a plain prompt"
            ) from error

    @cached_property
    def _compiled(self) -> jinja2.Template:
        """Compiled at the first use, not at load: the compiler computes constants, however long that takes."""
        return _environment().from_string(self.source)

    def check_role(self, role: object, place: int) -> None:
        """Raises InvalidRequest for a role that the template does not know; `place` counts from 1."""
        if role not in self.roles:
            raise InvalidRequest(
                f"message {place}: role {str(role)[:40]!r} is unknown to the model's chat template; "
                f"use one of {', '.join(sorted(self.roles))}"
            )


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant wrote, for training. Here it only writes its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """A call that returns the body, with a scope of its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@jinja2.pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    if not ensure_ascii:
        return text
    kept = context.get(_AS_IT_IS, "")
    return re.sub(r"[^\x00-\x7f]", lambda found: _escaped(found.group(), kept), text)


def _escaped(character: str, kept: str) -> str:
    return character if character in kept else json.dumps(character)[1:-1]


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _literals(tree: nodes.Template) -> Iterator[str]:
    yield from (node.data for node in tree.find_all(nodes.TemplateData))
    yield from (node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))


def _examined(tree: nodes.Template) -> Iterator[str]:
    for test in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in test.ops):
            yield from (constant.value for constant in _constants(test.expr))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _EXAMINING:
            yield from (constant.value for argument in call.args for constant in _constants(argument))
    for filtered in tree.find_all(nodes.Filter):
        if filtered.name in _EXAMINING:
            yield from (constant.value for argument in filtered.args for constant in _constants(argument))


def _roles(tree: nodes.Template) -> frozenset[str]:
    """The names that the template compares a role with, or looks up; those in general use if it writes any role."""
    names = _role_names(tree)
    compared = [node for node in tree.find_all(nodes.Compare) if _has_role(node, names)]
    looked_up = [node for node in tree.find_all(nodes.Dict) if node.items]
    known = {
        constant.value
        for node in (*compared, *(pair.key for table in looked_up for pair in table.items))
        for constant in _constants(node)
    }
    inside = {id(role) for node in compared for role in _role_nodes(node, names)}
    writes = any(id(role) not in inside for role in _role_nodes(tree, names)) or not compared
    plain = {name for name in known if name.isprintable() and name != "role"}
    return frozenset(plain | (_WRITTEN_ROLES if writes else _BASIC_ROLES))


def _constants(node: nodes.Node) -> Iterator[nodes.Const]:
    found = (node,) if isinstance(node, nodes.Const) else node.find_all(nodes.Const)
    return (constant for constant in found if isinstance(constant.value, str))


def _role_names(tree: nodes.Template) -> frozenset[str]:
    """Variables that hold a role."""
    assigned = {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _is_role(node.node, frozenset())
    }
    return frozenset(assigned | {"role"})


def _is_role(node: nodes.Node, names: frozenset[str]) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "role"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "role"
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name in names


def _role_nodes(node: nodes.Node, names: frozenset[str]) -> Iterator[nodes.Node]:
    kinds = (nodes.Getattr, nodes.Getitem, nodes.Name)
    return (found for found in node.find_all(kinds) if _is_role(found, names))


def _has_role(node: nodes.Node, names: frozenset[str]) -> bool:
    return next(_role_nodes(node, names), None) is not None


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
