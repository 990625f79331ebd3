"""A configuration resolved: its preset with the configuration's own settings above it, and the layout of the store.

A request may name another preset; then only what belongs to the cluster stays as configured: the store, the device's
window (local_windows_len) and what no preset gives, such as the model's trained length. Every other setting is that
preset's own. Budgets are in blocks, and are those of the preset's own block size: with another size they are as many
blocks as hold the same tokens. Against a model, settings that the configuration leaves alone follow its trained
length: no session attends more keys at once than the model was trained on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from moorage.runtime.config.names import SETTINGS
from moorage.runtime.config.presets import PRESETS, Preset, Settings, check_preset_name
from moorage.runtime.config.rope import settle_positions
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning.trained_length import trained_length
from moorage.runtime.text.quoting import quoted
from moorage.workers.errors import InvalidConfig, InvalidRequest
from moorage.workers.spec import (
    AnchorSpace,
    KvLayout,
    MemorySpec,
    ModelSpec,
    Positions,
    StoreSpec,
)
from moorage.workers.spec.setting import settings_of

_OF_CLUSTER = {"window"} | {each.name for each in settings_of(StoreSpec)}
"""Settings that stay the configuration's own under another preset, as those do that no preset gives."""


def given(config: ClusterConfig, kind: type[Any] | None = None) -> dict[str, Any]:
    """The settings that a configuration gives, by name; with `kind` only those of this record."""
    wanted = {each.name for each in settings_of(Settings if kind is None else kind)}
    found: dict[str, Any] = {}
    for place, each in SETTINGS.items():
        section, _, key = place.partition(".")
        value = getattr(getattr(config, section), key)
        if value is not None and each.name in wanted:
            found.setdefault(each.name, value)
    return found


def resolve_settings(
    config: ClusterConfig, model: ModelSpec | None = None, without: Collection[str] = ()
) -> Settings:
    """The cluster's preset with the configuration's own settings, save those of the names `without`.

    With `model` the others follow its trained length.
    """
    own = {name: value for name, value in given(config).items() if name not in without}
    return _above(PRESETS[config.memory.preset], own, model)


def _above(preset: Preset, own: dict[str, Any], model: ModelSpec | None) -> Settings:
    """The preset with settings above it."""
    if own.get("scheme") is Positions.CLAMPED:
        # Distant keys are attended un-rotated then, so that anchors of rotated keys would say nothing of them.
        own = {"anchor_space": AnchorSpace.PLAIN} | own
    settings = _in_blocks_of(preset.settings(), own)
    return _within_trained(settings.replace(own), own, model).replace(own)


def _in_blocks_of(settings: Settings, own: dict[str, Any]) -> Settings:
    """A preset's settings with its budgets in blocks of another size: the same tokens, rounded up."""
    selection, size = settings.memory.selection, settings.store.block_size
    new_size = own.get("block_size", size)
    budgets = {"topk": selection.topk, "preselect_blocks": selection.preselect_blocks}
    return settings.replace(
        {name: None if blocks is None else -(-blocks * size // new_size) for name, blocks in budgets.items()}
    )


def _within_trained(settings: Settings, own: dict[str, Any], model: ModelSpec | None) -> Settings:
    """The settings with no more keys attended at once than the model was trained on.

    Exact attention ends at the trained length. Sinks, window and chosen blocks together stay within it: the window
    takes at most half, or all beside the sinks where nothing is chosen.
    """
    if model is None:
        return settings
    memory, size = settings.memory, settings.store.block_size
    trained, topk = memory.positions.pretraining_length or trained_length(model), memory.selection.topk
    sinks = -(-memory.retention.sinks // size) * size
    space = trained - sinks if topk == 0 else trained // 2
    window = own.get("window", min(memory.retention.window, max(size, space // size * size)))
    most = max(1, (trained - sinks - window) // size)
    return settings.replace(
        {
            "dense_until": min(memory.selection.dense_until, trained),
            "window": window,
            "topk": min(topk, most) if topk else topk,
        }
    )


def resolve_memory(
    config: ClusterConfig, preset_override: str | None = None, model: ModelSpec | None = None
) -> MemorySpec:
    """The settings of a session under the cluster's preset, or under the one that a request names.

    With `model` they follow its trained length, and its positions are settled: rotary embedding, trained length and
    dca's chunk. Raises InvalidRequest for a preset that there isn't, or that does not fit the model and the cluster's
    blocks.
    """
    settings = _asked(config, preset_override, model)
    memory = settings.memory
    if model is None:
        return memory
    own_factor = settings.rotary.rope_scaling_factor == config.memory.rope_scaling_factor
    try:
        return settle_positions(memory, settings.rotary, model, settings.store.block_size, own_factor)
    except ValueError as error:
        raise InvalidRequest(f"preset {memory.preset}: {error}") from error


def resolve_axes(config: ClusterConfig, preset_override: str | None, model: ModelSpec) -> MemorySpec:
    """As `resolve_memory`, but with positions unsettled: what sizes depend on, for presets that may not fit too."""
    return _asked(config, preset_override, model).memory


def _asked(config: ClusterConfig, preset_override: str | None, model: ModelSpec | None) -> Settings:
    """Settings under the cluster's preset, or under the one that a request names on the cluster's store."""
    if preset_override is None or preset_override == config.memory.preset:
        return resolve_settings(config, model)
    try:
        preset = PRESETS[check_preset_name(preset_override)]
    except ValueError as error:
        raise InvalidRequest(f"preset {quoted(preset_override)}: {error}") from error
    of_preset = {each.name for each in SETTINGS.values() if each.declared.of_preset} - _OF_CLUSTER
    own = {name: value for name, value in given(config).items() if name not in of_preset}
    return _above(preset, asdict(resolve_settings(config).store) | own, model)


def check_positions(config: ClusterConfig, model: ModelSpec) -> None:
    """Raises InvalidConfig when the cluster's own positions do not fit its model and blocks."""
    try:
        resolve_memory(config, model=model)
    except InvalidRequest as error:
        raise InvalidConfig(str(error)) from error


def kv_layout(config: ClusterConfig, model: ModelSpec) -> KvLayout:
    """Sizes of the cluster's stored blocks and anchors."""
    return resolve_settings(config).layout(model)
