"""A configuration resolved: its preset with the configuration's own settings above it, and the layout of the store.

Budgets are in blocks, and are those of the preset's own block size: with another size they are as many blocks as hold
the same tokens. Against a model, settings that the configuration leaves alone follow its trained length: no session
attends more keys at once than the model was trained on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from moorage.runtime.config.names import SETTINGS
from moorage.runtime.config.presets import PRESETS, Preset, Settings
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.single_keys import can_select_keys, space_of_codes
from moorage.runtime.planning.trained_length import claimed_length, trained_length
from moorage.workers.spec import (
    FIRST_LEVEL_BLOCKS,
    AnchorSpace,
    KvLayout,
    ModelSpec,
    Positions,
)
from moorage.workers.spec.setting import settings_of

_OF_POSITIONS = {"scheme", "pretraining_length", "rope_scaling", "rope_scaling_factor"}
"""Settings of which one is enough that positions do not follow the checkpoint's dual chunks."""


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
    preset = PRESETS[config.memory.preset]
    settings = _above(preset.settings(), own, preset, model)
    of_blocks = "topk" in own or not can_select_keys(settings)
    if preset.otherwise and not own.get("topk_keys") and of_blocks:
        return _above(preset.selecting_blocks(), own, preset, model)
    return settings


def _above(settings: Settings, own: dict[str, Any], preset: Preset, model: ModelSpec | None) -> Settings:
    """The settings of a preset with `own` above them."""
    if own.get("scheme") is Positions.CLAMPED:
        # Distant keys are attended un-rotated then, so that anchors of rotated keys would say nothing of them.
        own = {"anchor_space": AnchorSpace.PLAIN} | own
    own = _one_selection(own)
    settings = _in_blocks_of(settings, own)
    settings = _with_own_chunks(settings.replace(own), preset, own, model)
    if settings.store.anchor_type.codes_keys:
        settings = settings.replace({"anchor_space": space_of_codes(settings.memory.positions.scheme)})
    return _within_trained(settings, own, model).replace(own)


def _one_selection(own: dict[str, Any]) -> dict[str, Any]:
    """Own settings that select blocks or single keys, in place of what the preset selects."""
    if own.get("topk_keys"):
        return {"topk": None} | own
    return {"topk_keys": 0} | own if "topk" in own else own


def _with_own_chunks(
    settings: Settings, preset: Preset, own: dict[str, Any], model: ModelSpec | None
) -> Settings:
    """The settings with dual chunks, where the checkpoint names them and nobody says anything else of positions."""
    said = own.keys() | preset.differs.keys()
    if model is None or model.dual_chunk is None or said & _OF_POSITIONS:
        return settings
    return settings.replace({"scheme": Positions.DCA})


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

    Exact attention ends at the trained length. Sinks, window and selected blocks or keys together stay within it: the
    window takes at most half, or all beside the sinks where nothing is selected.
    """
    if model is None:
        return settings
    memory, size = settings.memory, settings.store.block_size
    trained, topk = memory.positions.pretraining_length or trained_length(model), memory.selection.topk
    sinks = -(-memory.retention.sinks // size) * size
    space = trained - sinks if topk == 0 else trained // 2
    window = own.get("window", min(memory.retention.window, max(size, space // size * size)))
    space = trained - sinks - window
    return settings.replace(
        {
            "dense_until": min(memory.selection.dense_until, trained),
            "window": window,
            "topk": min(topk, max(1, space // size)) if topk else topk,
            "topk_keys": min(memory.selection.topk_keys, max(1, space)),
        }
    )


def kv_layout(config: ClusterConfig, model: ModelSpec) -> KvLayout:
    """Sizes of the cluster's stored blocks and their index.

    Centres of keys are kept where a session of the cluster may become so long that it scans a part of its blocks.
    """
    settings = resolve_settings(config)
    longest = config.long_context.max_seq_len or claimed_length(model)
    layout, selection = settings.layout(model), settings.memory.selection
    scans_all = selection.completion or not (selection.topk_keys and layout.anchor_type.codes_keys)
    enough = FIRST_LEVEL_BLOCKS * selection.topk_keys
    return replace(layout, keeps_centres=not scans_all and longest // layout.block_size > enough)
