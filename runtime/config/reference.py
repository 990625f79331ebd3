"""The reference of `cluster.yaml`, made from the configuration's own fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from moorage.runtime.config.errors import keys_of
from moorage.runtime.config.load import build_config
from moorage.runtime.config.names import SETTINGS
from moorage.runtime.config.presets import Settings
from moorage.runtime.config.resolve import resolve_settings
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.source import Source
from moorage.runtime.config.units import shown_value

_SECTION_WORDS = {name: field.description or "" for name, field in ClusterConfig.model_fields.items()}


@dataclass(frozen=True, slots=True)
class KeyReference:
    """One key as the reference shows it."""

    section: str
    key: str
    default: str
    """The default as people write it, with the preset that it comes from."""
    given: str | None
    """The configuration's own value, where it differs from the default."""
    description: str
    research: bool = False
    """Whether only who studies selection changes it."""


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
        default = "required" if field.is_required() else _default(config, f"{section}.{key}", field.default)
        value = getattr(getattr(config, section), key)
        given = None if value == field.default or field.is_required() else shown_value(key, value)
        setting = SETTINGS.get(f"{section}.{key}")
        research = setting is not None and setting.declared.research
        rows.append(KeyReference(section, key, default, given, field.description or "", research))
    return tuple(rows)


def section_words(section: str) -> str:
    """What a section is for, in one sentence."""
    return _SECTION_WORDS[section]


def json_schema() -> dict[str, Any]:
    """JSON schema of `cluster.yaml`, for editors and machines."""
    return ClusterConfig.model_json_schema(mode="validation")


def resolved(config: ClusterConfig, settings: Settings) -> dict[str, Any]:
    """The whole configuration with every setting of the preset filled in."""
    values, found = config.model_dump(mode="json"), settings.values()
    for place, each in SETTINGS.items():
        if each.declared.of_preset:
            section, _, key = place.partition(".")
            value = found[each.name]
            values[section][key] = value.value if isinstance(value, Enum) else value
    if config.long_context.chunk_size != "auto":
        values["scheduler"]["max_step_tokens"] = config.max_step_tokens
    return values


def _default(config: ClusterConfig, place: str, value: Any) -> str:
    setting, key = SETTINGS.get(place), place.partition(".")[2]
    none = "unset" if setting is None else setting.declared.none
    if value is not None or setting is None or not setting.declared.of_preset:
        return none if value is None else shown_value(key, value)
    values = resolve_settings(config, without=(setting.name,)).values()
    if setting.name == "topk" and values["topk_keys"]:
        none = "unset, since topk_keys selects single keys"
    found = values[setting.name]
    return f"{none if found is None else shown_value(key, found)} (preset {config.memory.preset})"
