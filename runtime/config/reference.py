"""The reference of `cluster.yaml`, made from the configuration's own fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from moorage.runtime.config.errors import keys_of
from moorage.runtime.config.load import build_config
from moorage.runtime.config.presets import (
    MEMORY_AXES,
    POSITION_AXES,
    PRESET_KEYS,
    SELECT_AXES,
    STORE_AXES,
)
from moorage.runtime.config.resolve import resolve_preset
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.shown import shown_value
from moorage.runtime.config.source import Source

_BUDGETS = ("topk", "second_select_num")
"""Two names of one axis."""
_SECTION_WORDS = {name: field.description or "" for name, field in ClusterConfig.model_fields.items()}


@dataclass(frozen=True, slots=True)
class KeyReference:
    """One key as the reference shows it."""

    section: str
    key: str
    default: str
    """As people write it, with the preset that it comes from; unset where the description says what that means."""
    given: str | None
    """The configuration's own value, where it differs from the default."""
    description: str


def explained(overrides: Iterable[str] = ()) -> ClusterConfig:
    """A configuration without a file, for its defaults under `section.key=value` flags."""
    source = Source(Path("runtime config"), {"model": {"path": "."}})
    source.put_overrides(overrides)
    return build_config(source)


def reference(config: ClusterConfig | None = None) -> tuple[KeyReference, ...]:
    """Every key in order, with its default under the preset of `config` and what `config` itself gives."""
    config = config or explained()
    rows = []
    for section, key, field in keys_of(ClusterConfig):
        default = "required" if field.is_required() else _default(config, key, field.default)
        value = getattr(getattr(config, section), key)
        given = None if value == field.default or field.is_required() else shown_value(key, value)
        rows.append(KeyReference(section, key, default, given, field.description or ""))
    return tuple(rows)


def section_words(section: str) -> str:
    """What a section is for, in one sentence."""
    return _SECTION_WORDS[section]


def json_schema() -> dict[str, Any]:
    """JSON schema of `cluster.yaml`, for editors and machines."""
    return ClusterConfig.model_json_schema(mode="validation")


def resolved(config: ClusterConfig, axes: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration with every axis of the preset filled in."""
    values = config.model_dump(mode="json")
    for section, names in (("memory", MEMORY_AXES), ("long_context", SELECT_AXES + STORE_AXES)):
        for name in names:
            value = axes[name]
            values[section][name] = value.value if isinstance(value, Enum) else value
    values["long_context"]["second_select_num"] = axes["topk"]
    if config.long_context.chunk_size != "auto":
        values["scheduler"]["max_step_tokens"] = config.max_step_tokens
    return values


def _default(config: ClusterConfig, key: str, value: Any) -> str:
    if value is not None or key not in PRESET_KEYS:
        return "unset" if value is None else shown_value(key, value)
    axis = "topk" if key in _BUDGETS else key
    found = getattr(resolve_preset(_without(config, _BUDGETS if key in _BUDGETS else (key,))), axis)
    if found is None and axis in POSITION_AXES:
        return "unset"
    return f"{'all' if found is None else shown_value(key, found)} (preset {config.memory.preset})"


def _without(config: ClusterConfig, keys: tuple[str, ...]) -> ClusterConfig:
    """The configuration with these keys of `memory` and `long_context` left to the preset."""
    memory = {key: None for key in keys if key in type(config.memory).model_fields}
    long_context = {key: None for key in keys if key in type(config.long_context).model_fields}
    return config.model_copy(
        update={
            "memory": config.memory.model_copy(update=memory),
            "long_context": config.long_context.model_copy(update=long_context),
        }
    )
