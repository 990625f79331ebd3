"""What one session attends: retention, selection and positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from moorage.workers.spec.kinds import AnchorPool, HeadPool, HeadSelectMode, Positions, Preselect
from moorage.workers.spec.model import RopeSpec


@dataclass(frozen=True, slots=True)
class RetentionSpec:
    """Tokens that are always attended."""

    sinks: int = 0
    """First tokens; rounded up to whole blocks."""
    window: int = 4096
    """Last tokens, the query included."""


@dataclass(frozen=True, slots=True)
class SelectionSpec:
    """Which blocks between the sinks and the local window are attended."""

    topk: int | None = None
    """Selected blocks per layer and step; None attends all, 0 none: exactly the sinks and the window."""
    execution_block: int = 0
    """Prompt tokens that share one selection in prefill; 0 prefills exactly, over all past keys."""
    last_token_alone: bool = False
    """The prompt's last token, which the first generated one comes from, selects for itself as generated ones do."""
    preselect: Preselect = Preselect.OFF
    """Restrict each step's selection to `preselect_blocks` blocks of a coarse selection."""
    preselect_blocks: int = 96
    head_select_mode: HeadSelectMode = HeadSelectMode.SHARED
    layer_step: int = 1
    """Layers that share one selection."""
    token_step: int = 1
    """Decode steps that share one selection."""
    dense_layers: int = 0
    """First layers that attend all blocks in decode."""
    dense_until: int = 0
    """Prompts of at most this many tokens are prefilled exactly, and a step with fewer tokens before it attends
    all blocks."""
    head_pool: HeadPool = HeadPool.SUM
    anchor_pool: AnchorPool = AnchorPool.MAX
    importance_queries: int = 128
    """Last prompt queries whose attention decides DYNAMIC anchors and a preselection from the prompt."""
    asynchronous: bool = False
    """Attend in each step what the last step's query selected; then `layer_step` and `token_step` are 1."""
    asynchronous_cosine: float = 0.9
    """If `asynchronous`, select anew at once where a query head has a smaller cosine with the last step's."""

    def in_prefill(self, prompt_tokens: int) -> bool:
        """Whether execution blocks of a prompt of so many tokens select what they attend."""
        return bool(self.topk) and self.execution_block > 0 and prompt_tokens > self.dense_until

    def resume_point(self, prompt_tokens: int) -> int:
        """Where a prompt that goes on from one of `prompt_tokens` finds what it would have made itself."""
        if not self.in_prefill(prompt_tokens):
            return prompt_tokens
        return (prompt_tokens - self.last_token_alone) // self.execution_block * self.execution_block


@dataclass(frozen=True, slots=True)
class PositionSpec:
    """Where a query sees the keys."""

    scheme: Positions = Positions.ROPE
    rope: RopeSpec | None = None
    """Rotary embedding of this session; None takes the model's."""
    pretraining_length: int | None = None
    """Positions that dca stays below."""
    dca_chunk: int | None = None
    """Tokens of one chunk of dca, a multiple of the block size."""
    mscale: float | None = None
    """Attention grows with the length L: q and k times max(1, mscale * ln(L / mscale_length) + 1)."""
    mscale_length: int = 1
    rebase_every: int = 1
    """Decode steps between two adoptions of the current length by RoPE that depends on it."""

    def attention_growth(self, seq_len: int) -> float:
        """Factor on queries and on keys at this length, see `mscale`."""
        return max(1.0, (self.mscale or 0.0) * math.log(max(1, seq_len) / self.mscale_length) + 1.0)


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """The settings of one session, resolved from a preset, the configuration and the request."""

    preset: str
    retention: RetentionSpec = RetentionSpec()
    selection: SelectionSpec = SelectionSpec()
    positions: PositionSpec = PositionSpec()
    recall_every: int = 0
    """Decode steps between two recall samples; 0 never measures."""

    def replace(self, **values: Any) -> MemorySpec:
        """This choice with some settings changed, each by its own name, whichever part holds it.

        Raises TypeError for a name that no part has.
        """
        changes: dict[str, Any] = {}
        for part, names in _names_by_part().items():
            own = {name: values.pop(name) for name in names if name in values}
            if own and part:
                changes[part] = replace(getattr(self, part), **own)
            else:
                changes |= own
        return replace(self, **changes, **values)

    def settings(self) -> dict[str, Any]:
        """The value of every setting by its name."""
        return {
            name: getattr(getattr(self, part) if part else self, name)
            for part, names in _names_by_part().items()
            for name in names
        }


_PARTS = {"retention": RetentionSpec, "selection": SelectionSpec, "positions": PositionSpec}


@cache
def _names_by_part() -> Mapping[str, dict[str, None]]:
    """Names of the settings of each part, in order; the part "" is MemorySpec itself."""
    own = {field.name: None for field in fields(MemorySpec) if field.name not in _PARTS}
    return {"": own} | {part: {field.name: None for field in fields(kind)} for part, kind in _PARTS.items()}
