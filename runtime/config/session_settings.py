"""The settings of one session: the cluster's, or those of a request that names another preset or settings of its own.

Only what belongs to the cluster stays as configured: the store, a window (local_windows_len) that the configuration
itself gives, and what no preset gives, such as the model's trained length. Under another preset every other setting
is that preset's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from moorage.runtime.config.load import build_config
from moorage.runtime.config.names import REMOVED, SETTINGS, keys_of_setting, shown_key
from moorage.runtime.config.presets import PRESETS, check_preset_name
from moorage.runtime.config.resolve import given, resolve_settings
from moorage.runtime.config.rope import settle_positions
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.source import Source
from moorage.runtime.config.yaml_reading import parse_value
from moorage.runtime.text.quoting import quoted
from moorage.workers.errors import InvalidConfig, InvalidRequest
from moorage.workers.spec import MemorySpec, ModelSpec, RotarySettings
from moorage.workers.spec.setting import settings_of

_OF_SESSION = {
    each.name
    for kind in (MemorySpec, RotarySettings)
    for each in settings_of(kind)
    if each.declared.of_preset and each.name != "window"
}
"""Settings that a request may choose; the memory of windows is reserved when the cluster starts."""
_IN_PLACE_OF = {"topk": "topk_keys", "topk_keys": "topk"}
"""Setting -> the one that a request leaves behind when it gives the first."""
SESSION_KEYS = {
    place.partition(".")[2]: place for place, each in SETTINGS.items() if each.name in _OF_SESSION
}
"""Key -> `section.key` of every setting that a request may choose."""


def resolve_memory(
    config: ClusterConfig,
    preset: str | None = None,
    model: ModelSpec | None = None,
    settings: Mapping[str, str] | None = None,
) -> MemorySpec:
    """The settings of a session under the cluster's preset, or under the one that a request names.

    `settings` are a request's own, by the keys of a cluster file, in YAML. With `model` all follow its trained
    length, and positions are settled: rotary embedding, trained length and dca's chunk. Raises InvalidRequest for a
    preset or a setting that there isn't, a value that can't be, and what does not fit the model and the store.
    """
    asked = asked_config(config, preset, settings, model)
    found = resolve_settings(asked, model)
    if model is None:
        return found.memory
    factors = (config.memory.rope_scaling_factor, asked.memory.rope_scaling_factor)
    own_factor = found.rotary.rope_scaling_factor in factors
    try:
        return settle_positions(found.memory, found.rotary, model, found.store.block_size, own_factor)
    except ValueError as error:
        raise InvalidRequest(f"preset {found.memory.preset}: {error}") from error


def unsettled_memory(config: ClusterConfig, preset: str | None, model: ModelSpec) -> MemorySpec:
    """As `resolve_memory`, but with positions unsettled: what sizes depend on, for presets that may not fit too."""
    return resolve_settings(asked_config(config, preset, model=model), model).memory


def check_positions(config: ClusterConfig, model: ModelSpec) -> None:
    """Raises InvalidConfig when the cluster's own positions do not fit its model and blocks."""
    try:
        resolve_memory(config, model=model)
    except InvalidRequest as error:
        raise InvalidConfig(str(error)) from error


def preset_differs(config: ClusterConfig, preset: str | None) -> tuple[str, ...]:
    """What a request's preset says of the store and the window, and the cluster has otherwise.

    Each is in the form `block_size 64, not 128`: first what the cluster has, then what the preset says. Details of
    anchors are compared under one anchor type alone.
    """
    if preset in (None, config.memory.preset) or not PRESETS[preset].settings().memory.selection.selects:
        return ()
    theirs, ours = PRESETS[preset].settings().store, resolve_settings(config).store
    names = ["block_size", "anchor_type"]
    if theirs.anchor_type is ours.anchor_type:
        # Codes of keys follow the positions.
        names += ["anchor_num"] if theirs.anchor_type.codes_keys else ["anchor_num", "anchor_space"]
    values = [(name, getattr(ours, name), getattr(theirs, name)) for name in names]
    own = given(config)
    if "window" in own:
        values.append(("window", own["window"], PRESETS[preset].settings().memory.retention.window))
    return tuple(f"{shown_key(name)} {here}, not {there}" for name, here, there in values if here != there)


def asked_config(
    config: ClusterConfig,
    preset: str | None = None,
    settings: Mapping[str, str] | None = None,
    model: ModelSpec | None = None,
) -> ClusterConfig:
    """The configuration of a request that names a preset, or settings as a cluster file has them, in YAML.

    What belongs to the cluster is given in it as it is for `model`.
    Raises InvalidRequest for a preset or a setting that there isn't, or a value that can't be.
    """
    if preset is not None and preset != config.memory.preset:
        config = _under(config, preset, model)
    return _with_settings(config, settings, model) if settings else config


def _under(config: ClusterConfig, preset: str, model: ModelSpec | None) -> ClusterConfig:
    """The configuration with another preset, and nothing of its own that belongs to a session."""
    try:
        check_preset_name(preset)
    except ValueError as error:
        raise InvalidRequest(f"preset {quoted(preset)}: {error}") from error
    left_out = {place: None for place, each in SETTINGS.items() if each.name in _OF_SESSION}
    store = asdict(resolve_settings(config, model).store)
    return _changed(config, left_out | _by_key(store) | {"memory.preset": preset})


def _by_key(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings by the keys that are shown for them."""
    return {keys_of_setting(name)[0]: value for name, value in values.items()}


def _changed(config: ClusterConfig, values: Mapping[str, Any]) -> ClusterConfig:
    sections: dict[str, dict[str, Any]] = {}
    for place, value in values.items():
        section, _, key = place.partition(".")
        sections.setdefault(section, {})[key] = value
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=own) for name, own in sections.items()}
    )


def _with_settings(
    config: ClusterConfig, settings: Mapping[str, str], model: ModelSpec | None
) -> ClusterConfig:
    """The configuration with a request's settings in place of its own, checked as a cluster file is."""
    found = resolve_settings(config, model)
    config = _changed(config, _by_key(asdict(found.store) | {"window": found.memory.retention.window}))
    source = Source(Path("memory"), config.model_dump(mode="json"))
    for key, text in settings.items():
        place = _place(key)
        asked = SETTINGS[place].name
        for other in [*keys_of_setting(asked), *keys_of_setting(_IN_PLACE_OF.get(asked, asked))]:
            section, _, name = other.partition(".")
            if name not in settings:
                source.put(section, name, None, "memory")
        section, _, name = place.partition(".")
        source.put(section, name, _value(key, text), "memory")
    try:
        return build_config(source)
    except InvalidConfig as error:
        raise InvalidRequest(str(error)) from error


def _value(key: str, text: str) -> Any:
    try:
        return parse_value(text, "memory")
    except InvalidConfig as error:
        raise InvalidRequest(f"memory: {key}: the value is not YAML; put it in quotes") from error


def _place(key: str) -> str:
    if key in SESSION_KEYS:
        return SESSION_KEYS[key]
    if any(place.endswith(f".{key}") for place in SETTINGS):
        raise InvalidRequest(f"memory: {key} belongs to the cluster and not to a request; leave it out")
    for place, why in REMOVED.items():
        if place.endswith(f".{key}"):
            raise InvalidRequest(f"memory: {key}: {why}")
    near = get_close_matches(key, SESSION_KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(SESSION_KEYS)}"
    raise InvalidRequest(f"memory: {quoted(key)} is no setting of a request; {hint}")
