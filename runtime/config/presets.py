"""Memory presets: published systems as named choices on the axes of one engine, and how they are resolved.

A configuration's own axes stand above those of its preset. A request may name another preset; then only what
belongs to the cluster stays as configured: the store (block_size, anchor_*, repr_topk, kv_type), the
device's window (local_windows_len), the model's trained length and the sampling of recall. Every other axis is
that preset's own. Budgets are in blocks, and are those of the preset's own block size: with another size they are
as many blocks as hold the same tokens. Against a model, axes that the configuration leaves alone follow its trained
length: no session attends more keys at once than the model was trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from moorage.runtime.api.quoting import quoted
from moorage.runtime.config.rope import RopeChoice, settle_positions
from moorage.runtime.planning.trained_length import trained_length
from moorage.workers.errors import InvalidConfig, InvalidRequest
from moorage.workers.spec import (
    CODE_ELEMENTS,
    AnchorPool,
    AnchorSpace,
    AnchorType,
    HeadPool,
    HeadSelectMode,
    KvLayout,
    MemorySpec,
    ModelSpec,
    Positions,
    Preselect,
    Scorer,
)

if TYPE_CHECKING:
    from moorage.runtime.config.schema import ClusterConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """One value for every axis; sizes in tokens, budgets in blocks."""

    name: str
    source: str
    """The published system that it stands for."""
    positions: Positions = Positions.ROPE
    n_init: int = 0
    local_windows_len: int = 4096
    topk: int | None = None
    exc_block_size: int = 0
    exc_last_alone: bool = False
    preselect_block: Preselect = Preselect.OFF
    preselect_block_count: int = 96
    head_select_mode: HeadSelectMode = HeadSelectMode.SHARED
    layer_step: int = 1
    token_step: int = 1
    dense_layer_num: int = 0
    lag: int = 0
    lag_cosine: float = 0.9
    head_pool: HeadPool = HeadPool.SUM
    anchor_pool: AnchorPool = AnchorPool.MAX
    dense_until: int = 8192
    importance_queries: int = 128
    block_size: int = 128
    anchor_type: AnchorType = AnchorType.QUEST
    anchor_num: int = 1
    anchor_space: AnchorSpace = AnchorSpace.PLAIN
    repr_topk: int = 4
    dca_chunk: int | None = None
    mscale: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_scaling_factor: float | None = None
    session_len: int | None = None
    base: float | None = None
    distance_scale: float = 1.0

    def axes(self) -> dict[str, Any]:
        """Every axis by name, without `name` and `source`."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "source")}


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("full", "exact attention over every key: the oracle that the others are measured against"),
        Preset(
            "ktransformers",
            "ktransformers long_context: exact prefill, then 96 of all blocks a step",
            n_init=128,
            topk=96,
            anchor_type=AnchorType.DYNAMIC,
            anchor_space=AnchorSpace.ROTATED,
        ),
        Preset(
            "inf-llm",
            "InfLLM (NeurIPS 2024): sinks, chosen blocks and a window, in prefill too; "
            "clamped positions, for any length",
            positions=Positions.CLAMPED,
            n_init=128,
            topk=16,
            exc_block_size=512,
            anchor_type=AnchorType.REPR_TOPK,
        ),
        Preset(
            "chunkllama",
            "ChunkLlama, Dual Chunk Attention (ICML 2024): every key, positions re-mapped per chunk, "
            "up to 16 times the trained length",
            positions=Positions.DCA,
        ),
        Preset(
            "lmdeploy",
            "LMDeploy TurboMind: every key, the checkpoint's RoPE scaling or, where it has none, dynamic "
            "NTK, up to twice the trained length",
            rope_scaling_factor=1.0,
        ),
        Preset(
            "stream-llm",
            "StreamingLLM (ICLR 2024): sinks and window alone, side by side in a rolling cache, for any length",
            positions=Positions.ROLLING,
            n_init=4,
            topk=0,
        ),
        Preset(
            "infinite-lm",
            "LM-Infinite (NAACL 2024): sinks and window alone, sinks never farther than the window, for any length",
            positions=Positions.CLAMPED,
            n_init=100,
            topk=0,
        ),
        Preset(
            "moorage",
            "exact prefill, then 256 blocks of 32 tokens a step, chosen by the channel bounds of their keys (QUEST)",
            n_init=128,
            topk=256,
            exc_last_alone=True,
            block_size=32,
        ),
    )
}
_LATER = ("kvquant",)

POSITION_AXES = (
    "dca_chunk",
    "mscale",
    "rope_scaling",
    "rope_scaling_factor",
    "session_len",
    "base",
    "distance_scale",
)
"""Axes of positions beside the scheme; with `positions` itself they belong to a session."""
MEMORY_AXES = (
    "positions",
    "n_init",
    "topk",
    "exc_block_size",
    "exc_last_alone",
    "head_pool",
    "anchor_pool",
    "dense_until",
    "importance_queries",
    "lag",
    "lag_cosine",
    "anchor_space",
    "repr_topk",
    *POSITION_AXES,
)
"""Axes that the `memory` section sets; anchor_space and repr_topk are of the store, fixed for the cluster's life."""
SELECT_AXES = (
    "local_windows_len",
    "preselect_block",
    "preselect_block_count",
    "head_select_mode",
    "layer_step",
    "token_step",
    "dense_layer_num",
)
"""Axes of a session that the `long_context` section sets."""
STORE_AXES = ("block_size", "anchor_type", "anchor_num")
"""Axes of the store, fixed for the cluster's life, that the `long_context` section sets."""
PRESET_KEYS = frozenset((*MEMORY_AXES, *SELECT_AXES, *STORE_AXES, "second_select_num"))
"""Keys of `memory` and `long_context` that a preset gives where they are left out."""


def check_preset_name(name: str) -> str:
    """`name` itself. Raises ValueError with the available presets when it is none of them."""
    if name in PRESETS:
        return name
    available = f"available: {', '.join(PRESETS)}"
    if name in _LATER:
        raise ValueError(f"preset {name} is not available in this version; {available}")
    near = get_close_matches(name, PRESETS, n=1)
    raise ValueError(f"no such preset{f'; did you mean {near[0]}?' if near else ''}; {available}")


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
    return MemorySpec(
        preset=preset.name,
        positions=preset.positions,
        n_init=preset.n_init,
        local_windows_len=preset.local_windows_len,
        topk=preset.topk,
        exc_block_size=preset.exc_block_size,
        exc_last_alone=preset.exc_last_alone,
        preselect_block=preset.preselect_block,
        preselect_block_count=preset.preselect_block_count,
        head_select_mode=preset.head_select_mode,
        layer_step=preset.layer_step,
        token_step=preset.token_step,
        dense_layer_num=preset.dense_layer_num,
        recall_every=config.memory.recall_every,
        head_pool=preset.head_pool,
        anchor_pool=preset.anchor_pool,
        dense_until=preset.dense_until,
        importance_queries=preset.importance_queries,
        pretraining_length=config.memory.pretraining_length,
        dca_chunk=preset.dca_chunk,
        mscale=preset.mscale,
        rebase_every=config.memory.rebase_every,
        lag=preset.lag,
        lag_cosine=preset.lag_cosine,
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
        anchor_codes=config.memory.anchor_codes and _codes_apply(config, preset, model),
    )


def _codes_apply(config: ClusterConfig, preset: Preset, model: ModelSpec) -> bool:
    """Whether a block's score is one sum of products that four-bit codes can stand in for."""
    one_vector = preset.anchor_num == 1 and preset.head_pool is HeadPool.SUM
    fits = preset.anchor_type.vectors * model.head_dim % CODE_ELEMENTS == 0
    return one_vector and fits and config.memory.scorer is Scorer.NUMBA
