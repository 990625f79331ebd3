"""Settings: fields of a record that people set, each declared once with all that is to be known of it.

The sections of the cluster file, its checks, its reference and the presets are made from these declarations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_type_hints

Unit = Literal["", "tokens", "bytes"]
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Limits:
    """The values that a number may have, in its unit."""

    least: float | None = None
    """None is 1 for a whole number."""
    most: float | None = None
    above: float | None = None
    """As `least`, but the number itself is too small."""
    unit: Unit = ""
    """Tokens and bytes are also read as people write them: 128K, 8GiB."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the field of a setting says beside its name, type and default."""

    description: str
    limits: Limits = Limits()
    none: str = "unset"
    """What None stands for, in a word or two."""
    of_preset: bool = True
    """Whether a preset gives the value where the cluster file does not; otherwise the default does."""
    research: bool = False
    """Whether only who studies selection changes it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A declared setting."""

    name: str
    kind: Any
    """Its type."""
    default: Any
    declared: Declaration


def setting(
    default: Any,
    description: str,
    limits: Limits = Limits(),
    *,
    none: str = "unset",
    of_preset: bool = True,
    research: bool = False,
) -> Any:
    """A field that people set, with its default; see Declaration."""
    return field(
        default=default, metadata={"declared": Declaration(description, limits, none, of_preset, research)}
    )


def part(kind: type[Any]) -> Any:
    """A field that holds a record of settings of its own, with all defaults."""
    return field(default_factory=kind, metadata={"part": kind})


_settings: dict[type, tuple[Setting, ...]] = {}
_paths: dict[type, dict[str, tuple[str, ...]]] = {}


def settings_of(kind: type) -> tuple[Setting, ...]:
    """The settings of a record and of its parts, in order."""
    if kind not in _settings:
        found: list[Setting] = []
        hints = get_type_hints(kind)
        for each in fields(kind):
            if "part" in each.metadata:
                found += settings_of(each.metadata["part"])
            elif "declared" in each.metadata:
                found.append(Setting(each.name, hints[each.name], each.default, each.metadata["declared"]))
        _settings[kind] = tuple(found)
    return _settings[kind]


def _paths_of(kind: type) -> dict[str, tuple[str, ...]]:
    """Where each field lies, by its own name: in the record, or in a part of it."""
    if kind not in _paths:
        found: dict[str, tuple[str, ...]] = {}
        for each in fields(kind):
            if "part" in each.metadata:
                inside = _paths_of(each.metadata["part"])
                found |= {name: (each.name, *path) for name, path in inside.items()}
            else:
                found[each.name] = (each.name,)
        _paths[kind] = found
    return _paths[kind]


def values_of(record: Any) -> dict[str, Any]:
    """Every value of a record and of its parts by its own name, in order."""
    found: dict[str, Any] = {}
    for name, path in _paths_of(type(record)).items():
        value = record
        for step in path:
            value = getattr(value, step)
        found[name] = value
    return found


def replaced(record: Record, values: Mapping[str, Any]) -> Record:
    """The record with some values changed, each by its own name, whichever part holds it.

    Raises TypeError for a name that neither the record nor a part of it has.
    """
    changes: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        path = _paths_of(type(record)).get(name, (name,))
        if len(path) > 1:
            inside.setdefault(path[0], {})[name] = value
        else:
            changes[name] = value
    changes |= {name: replaced(getattr(record, name), own) for name, own in inside.items()}
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]
