"""A configuration resolved: its preset, the axes of a session, and the layout of the store.

A configuration's own axes stand above those of its preset. A request may name another preset; then only what
belongs to the cluster stays as configured: the store (block_size, anchor_*, repr_topk, kv_type), the
device's window (local_windows_len), the model's trained length and the sampling of recall. Every other axis is
that preset's own. Budgets are in blocks, and are those of the preset's own block size: with another size they are
as many blocks as hold the same tokens. Against a model, axes that the configuration leaves alone follow its trained
length: no session attends more keys at once than the model was trained on.
"""

from __future__ import annotations

from dataclasses import replace

from moorage.runtime.config.presets import (
    MEMORY_AXES,
    PRESETS,
    SELECT_AXES,
    STORE_AXES,
    Preset,
    check_preset_name,
    codes_apply,
)
from moorage.runtime.config.rope import RopeChoice, settle_positions
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
    Scorer,
)


def resolve_preset(config: ClusterConfig, model: ModelSpec | None = None) -> Preset:
    """The cluster's preset with the configuration's own axes in place; with `model` it follows its trained length."""
    memory, long_context = config.memory, config.long_context
    own = {axis: getattr(memory, axis) for axis in MEMORY_AXES}
    own |= {axis: getattr(long_context, axis) for axis in SELECT_AXES + STORE_AXES}
    if own["topk"] is None:
        own["topk"] = long_context.second_select_num
    chosen = {axis: value for axis, value in own.items() if value is not None}
    if chosen.get("positions") is Positions.CLAMPED:
        # Distant keys are attended un-rotated then, so that anchors of rotated keys would say nothing of them.
        chosen.setdefault("anchor_space", AnchorSpace.PLAIN)
    preset = PRESETS[memory.preset]
    preset = _in_blocks_of(preset, chosen.get("block_size", preset.block_size))
    return replace(_within_trained(replace(preset, **chosen), config, model), **chosen)


def _in_blocks_of(preset: Preset, block_size: int) -> Preset:
    """The preset with its budgets in blocks of another size: the same tokens, rounded up."""
    chosen, kept = preset.topk, preset.preselect_block_count
    return replace(
        preset,
        topk=None if chosen is None else -(-chosen * preset.block_size // block_size),
        preselect_block_count=-(-kept * preset.block_size // block_size),
    )


def _within_trained(preset: Preset, config: ClusterConfig, model: ModelSpec | None) -> Preset:
    """The preset with no more keys attended at once than the model was trained on.

    Exact attention ends at the trained length. Sinks, window and chosen blocks together stay within it: the window
    takes at most half, or all beside the sinks where nothing is chosen.
    """
    if model is None:
        return preset
    trained, size = config.memory.pretraining_length or trained_length(model), preset.block_size
    sinks = -(-preset.n_init // size) * size
    room = trained - sinks if preset.topk == 0 else trained // 2
    window = min(preset.local_windows_len, max(size, room // size * size))
    if config.long_context.local_windows_len is not None:
        window = config.long_context.local_windows_len
    most = max(1, (trained - sinks - window) // size)
    return replace(
        preset,
        dense_until=min(preset.dense_until, trained),
        local_windows_len=window,
        topk=min(preset.topk, most) if preset.topk else preset.topk,
    )


def resolve_memory(
    config: ClusterConfig, preset_override: str | None = None, model: ModelSpec | None = None
) -> MemorySpec:
    """The axes of a session under the cluster's preset, or under the one that a request names.

    With `model` they follow its trained length, and its positions are settled: rotary embedding, trained length and
    dca's chunk. Raises InvalidRequest for a preset that there isn't, or that does not fit the model and the cluster's
    blocks.
    """
    preset = _asked_preset(config, preset_override, model)
    memory = _axes_of(config, preset)
    if model is None:
        return memory
    try:
        return settle_positions(memory, _rope_choice(config, preset), model, preset.block_size)
    except ValueError as error:
        raise InvalidRequest(f"preset {preset.name}: {error}") from error


def resolve_axes(config: ClusterConfig, preset_override: str | None, model: ModelSpec) -> MemorySpec:
    """As `resolve_memory`, but with positions unsettled: what sizes depend on, for presets that may not fit too."""
    return _axes_of(config, _asked_preset(config, preset_override, model))


def _asked_preset(config: ClusterConfig, preset_override: str | None, model: ModelSpec | None) -> Preset:
    """The cluster's preset, or the one that a request names on the cluster's store."""
    own = resolve_preset(config, model)
    if preset_override is None or preset_override == config.memory.preset:
        return own
    try:
        other = PRESETS[check_preset_name(preset_override)]
    except ValueError as error:
        raise InvalidRequest(f"preset {quoted(preset_override)}: {error}") from error
    window = config.long_context.local_windows_len
    preset = replace(_in_blocks_of(other, own.block_size), block_size=own.block_size)
    if window is not None:
        preset = replace(preset, local_windows_len=window)
    return _within_trained(preset, config, model)


def _axes_of(config: ClusterConfig, preset: Preset) -> MemorySpec:
    return preset.memory().replace(
        recall_every=config.memory.recall_every,
        pretraining_length=config.memory.pretraining_length,
        rebase_every=config.memory.rebase_every,
    )


def check_positions(config: ClusterConfig, model: ModelSpec) -> None:
    """Raises InvalidConfig when the cluster's own positions do not fit its model and blocks."""
    try:
        resolve_memory(config, model=model)
    except InvalidRequest as error:
        raise InvalidConfig(str(error)) from error


def _rope_choice(config: ClusterConfig, preset: Preset) -> RopeChoice:
    return RopeChoice(
        rope_scaling=preset.rope_scaling,
        rope_scaling_factor=preset.rope_scaling_factor,
        replaces_own=preset.rope_scaling_factor == config.memory.rope_scaling_factor,
        session_len=preset.session_len,
        base=preset.base,
        distance_scale=preset.distance_scale,
    )


def kv_layout(config: ClusterConfig, model: ModelSpec) -> KvLayout:
    """Sizes of the cluster's stored blocks and anchors."""
    preset = resolve_preset(config)
    return KvLayout(
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        block_size=preset.block_size,
        kv_type=config.long_context.kv_type,
        anchor_type=preset.anchor_type,
        anchor_num=preset.anchor_num,
        anchor_space=preset.anchor_space,
        repr_topk=preset.repr_topk,
        scorer=config.memory.scorer,
        anchor_codes=(
            config.memory.anchor_codes
            and config.memory.scorer is Scorer.NUMBA
            and codes_apply(preset, model.head_dim)
        ),
    )
