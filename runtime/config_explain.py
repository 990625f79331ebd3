"""The reference of `cluster.yaml`, made from the configuration's own fields."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from moorage.runtime.config import ClusterConfig
from moorage.runtime.config_errors import keys_of
from moorage.runtime.presets import MEMORY_AXES, POSITION_AXES, PRESETS, SELECT_AXES, STORE_AXES
from moorage.runtime.units import format_bytes, format_tokens

_FROM_PRESET = frozenset(MEMORY_AXES + SELECT_AXES + STORE_AXES) - {*POSITION_AXES} | {"second_select_num"}
_SECTION_WORDS = {name: field.description or "" for name, field in ClusterConfig.model_fields.items()}


@dataclass(frozen=True, slots=True)
class KeyReference:
    """One key as the reference shows it."""

    section: str
    key: str
    default: str
    description: str


def reference() -> tuple[KeyReference, ...]:
    """Every key in order, with its default in the units that people write."""
    rows = []
    for section, key, field in keys_of(ClusterConfig):
        default = "required" if field.is_required() else _default(key, field.default)
        rows.append(KeyReference(section, key, default, field.description or ""))
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


def _default(key: str, value: Any) -> str:
    if value is None:
        full = PRESETS["full"].axes().get("topk" if key == "second_select_num" else key)
        return f"from the preset (full: {_plain(full)})" if key in _FROM_PRESET else "as described"
    if key in ("dram", "object_store_memory", "max_message_bytes"):
        return format_bytes(value).replace(".00 ", "")
    if key in ("chunk_size", "max_seq_len"):
        return f"{value} ({format_tokens(value)})"
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if value is None:
        return "all"
    return str(value).lower() if isinstance(value, bool) else str(value)
