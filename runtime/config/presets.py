"""Memory presets: published systems as named choices on the axes of one engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

from moorage.workers.spec import (
    CODE_ELEMENTS,
    AnchorPool,
    AnchorSpace,
    AnchorType,
    HeadPool,
    HeadSelectMode,
    MemorySpec,
    Positions,
    PositionSpec,
    Preselect,
    RetentionSpec,
    SelectionSpec,
)


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

    def memory(self) -> MemorySpec:
        """The settings of a session under this preset; those that no preset gives are at their defaults."""
        return MemorySpec(
            preset=self.name,
            retention=RetentionSpec(sinks=self.n_init, window=self.local_windows_len),
            selection=SelectionSpec(
                topk=self.topk,
                execution_block=self.exc_block_size,
                last_token_alone=self.exc_last_alone,
                preselect=self.preselect_block,
                preselect_blocks=self.preselect_block_count,
                head_select_mode=self.head_select_mode,
                layer_step=self.layer_step,
                token_step=self.token_step,
                dense_layers=self.dense_layer_num,
                dense_until=self.dense_until,
                head_pool=self.head_pool,
                anchor_pool=self.anchor_pool,
                importance_queries=self.importance_queries,
                asynchronous=bool(self.lag),
                asynchronous_cosine=self.lag_cosine,
            ),
            positions=PositionSpec(scheme=self.positions, dca_chunk=self.dca_chunk, mscale=self.mscale),
        )

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


def codes_apply(preset: Preset, head_dim: int) -> bool:
    """Whether a block's score is one sum of products that four-bit codes can stand in for."""
    one_vector = preset.anchor_num == 1 and preset.head_pool is HeadPool.SUM
    return one_vector and preset.anchor_type.vectors * head_dim % CODE_ELEMENTS == 0


def check_preset_name(name: str) -> str:
    """`name` itself. Raises ValueError with the available presets when it is none of them."""
    if name in PRESETS:
        return name
    available = f"available: {', '.join(PRESETS)}"
    if name in _LATER:
        raise ValueError(f"preset {name} is not available in this version; {available}")
    near = get_close_matches(name, PRESETS, n=1)
    raise ValueError(f"no such preset{f'; did you mean {near[0]}?' if near else ''}; {available}")
