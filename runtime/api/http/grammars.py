"""Fields that bind an answer to a schema or a grammar, in the words of OpenAI, vLLM and llama.cpp."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.guides import with_guide
from moorage.runtime.serving.protocol import GenerateParams
from moorage.runtime.text.grammar import Grammar
from moorage.workers.errors import InvalidRequest

_ANY_OBJECT = '{"type": "object"}'
_GUIDED = ("json", "regex", "choice", "grammar")
_META = re.compile(r"[\\.+*?()|\[\]{}^$]")
FIELDS = (
    "response_format",
    "structured_outputs",
    "json_schema",
    "grammar",
    *(f"guided_{kind}" for kind in _GUIDED),
)
"""Fields of a body that this module reads."""


def grammar_of(fields: Mapping[str, Any]) -> Grammar | None:
    """The grammar that a body asks for. Raises InvalidRequest for two of them, and for one that has no such form."""
    found = {name: fields[name] for name in FIELDS if fields.get(name) not in (None, {}, {"type": "text"})}
    if len(found) > 1:
        raise InvalidRequest(f"{min(found)}: stands beside {max(found)}; send one of the two")
    for name, value in found.items():
        if name == "response_format":
            return of_format(value, name)
        if name == "structured_outputs":
            return _structured(value)
        kind = {"json_schema": "json"}.get(name, name.removeprefix("guided_"))
        return _of_kind(kind, value, name)
    return None


def of_format(value: Any, field: str) -> Grammar | None:
    """The grammar of a format: text, json_object or json_schema."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_schema", _ANY_OBJECT)
    if kind == "json_schema":
        inner = value.get("json_schema") or value
        schema = inner.get("schema") if isinstance(inner, dict) else None
        return _of_kind("json", schema, f"{field}.schema")
    raise InvalidRequest(f"{field}.type: must be text, json_object or json_schema")


async def with_guides(engine: Engine, asked: Sequence[GenerateParams]) -> list[GenerateParams]:
    """The same parameters, each with the state of its own answer in the grammar, if there is one."""
    return [await with_guide(engine, one) for one in asked]


def _structured(value: Any) -> Grammar | None:
    """vLLM's newer form: one of several keys."""
    given = {key: one for key, one in value.items() if one} if isinstance(value, dict) else {"?": value}
    if given == {"json_object": True}:
        return Grammar("json_schema", _ANY_OBJECT)
    if len(given) != 1 or next(iter(given)) not in _GUIDED:
        raise InvalidRequest(
            "structured_outputs: must have one of json, regex, choice, grammar and json_object"
        )
    (kind, one), *_ = given.items()
    return _of_kind(kind, one, f"structured_outputs.{kind}")


def _of_kind(kind: str, value: Any, field: str) -> Grammar:
    if kind == "json" and isinstance(value, str | dict | bool):
        return Grammar("json_schema", value if isinstance(value, str) else json.dumps(value))
    if kind == "regex" and isinstance(value, str):
        return Grammar("regex", value)
    if kind == "grammar" and isinstance(value, str):
        return Grammar("lark", value)
    if kind == "choice" and isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return Grammar("regex", "|".join(_META.sub(r"\\\g<0>", one) for one in value))
    wanted = {"json": "a JSON schema", "choice": "a list of texts"}.get(kind, "a text")
    raise InvalidRequest(f"{field}: must be {wanted}")
