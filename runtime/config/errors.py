"""A validation error as one line: where the value was given, the key, what is wrong, and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from moorage.runtime.config.names import REMOVED, SETTINGS
from moorage.runtime.config.source import Source
from moorage.runtime.config.units import shown_value

_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def one_line(error: ValidationError, source: Source, root: type[BaseModel]) -> str:
    """The first complaint of `error`, and how many more there are.

    Unknown keys come first, since a key that is missing was often given under a wrong name.
    """
    errors = error.errors(include_url=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    keys = tuple(str(part) for part in first["loc"])[:2]
    text = f"{source.where(keys)}: {'.'.join(keys)}: {_complaint(first, keys, root)}"
    return text if len(errors) == 1 else f"{text} (and {len(errors) - 1} more)"


def keys_of(root: type[BaseModel]) -> Iterator[tuple[str, str, FieldInfo]]:
    """(section, key, field) of every key, in order."""
    for section, field in root.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key, inner in model.model_fields.items():
            yield section, key, inner


def _complaint(error: ErrorDetails, keys: tuple[str, ...], root: type[BaseModel]) -> str:
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return _unknown(keys, root)
    if kind == "missing":
        return "missing; add it, as in `model: {path: DIR}`"
    if kind in ("model_type", "model_attributes_type"):
        return f"should be a mapping of keys, got {_shown(given)}; write it like `{keys[0]}: {{key: value}}`"
    if kind == "invalid_key":
        return f"got {_shown(given)} as a key; keys are words such as chunk_size"
    if kind == "path_type":
        return f"got {_shown(given)}: should be a path, as in `path: models/my-model`"
    message = _message(error, keys[-1])
    if kind == "value_error" and isinstance(given, dict):
        return message
    if kind == "value_error":
        return f"got {_shown(given)}: {message}"
    return f"got {_shown(given)}: {message}{_fix(keys, root)}"


def _message(error: ErrorDetails, key: str) -> str:
    """What a value should be, with limits in the units that people write."""
    for limit, words in _LIMITS.items():
        if limit in error.get("ctx", {}):
            return f"should be {words} {shown_value(key, error['ctx'][limit])}"
    if error["type"].startswith("int_"):
        return "should be a whole number"
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _unknown(keys: tuple[str, ...], root: type[BaseModel]) -> str:
    removed = REMOVED.get(".".join(keys))
    if removed is not None:
        return removed
    known = [(section, key) for section, key, _ in keys_of(root)]
    if len(keys) == 1:
        sections = list(dict.fromkeys(section for section, _ in known))
        near = get_close_matches(keys[0], sections, n=1)
        hint = near[0] if near else next((f"{s}.{k}" for s, k in known if k == keys[0]), None)
        return _did_you_mean(hint, "section", sections)
    siblings = [key for section, key in known if section == keys[0]]
    elsewhere = [f"{section}.{key}" for section, key in known if key == keys[1]]
    near = elsewhere or get_close_matches(keys[1], siblings, n=1, cutoff=0.5)
    return _did_you_mean(near[0] if near else None, "key", siblings)


def _did_you_mean(hint: str | None, kind: str, known: list[str]) -> str:
    return f"unknown {kind}; " + (f"did you mean {hint}?" if hint else f"use one of {', '.join(known)}")


def _fix(keys: tuple[str, ...], root: type[BaseModel]) -> str:
    """A value that would do: the default, unless the message already lists what can be used."""
    field = next((f for section, key, f in keys_of(root) if (section, key) == keys), None)
    if field is None or field.is_required():
        return ""
    if field.default is None:
        setting = SETTINGS.get(".".join(keys))
        of_preset = setting is not None and setting.declared.of_preset
        return f"; leave it out to take {'the value of the preset' if of_preset else 'its default'}"
    return f"; the default is {shown_value(keys[1], field.default)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
