"""Where a query sees the keys: the scheme, and the rotary embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from moorage.workers.spec.kinds import Positions
from moorage.workers.spec.model import DualChunkSpec, RopeSpec
from moorage.workers.spec.setting import Limits, setting


@dataclass(frozen=True, slots=True)
class PositionSpec:
    """The positions of one session."""

    scheme: Positions = setting(
        Positions.ROPE,
        "Where a query sees keys: rope (each at its own position), clamped (beyond the local window all at "
        "local_windows_len - 1, as InfLLM), dca (within chunks, as Dual Chunk Attention) or rolling (only sinks and "
        "window, side by side, as StreamingLLM); default is rope, or dca where the checkpoint names dual chunks.",
    )
    rope: RopeSpec | None = None
    """Rotary embedding of this session, from RotarySettings and the model; None takes the model's."""
    pretraining_length: int | None = setting(
        None,
        "Length the model was trained for, where positions depend on it (dca, dynamic NTK, yarn); default is the "
        "checkpoint's.",
        Limits(unit="tokens"),
        of_preset=False,
        none="as the model",
    )
    dca_chunk: int | None = setting(
        None,
        "Tokens of one chunk of dca, a multiple of block_size; default is the checkpoint's "
        "dual_chunk_attention_config, else three quarters of pretraining_length.",
        Limits(unit="tokens"),
        none="3/4 trained",
    )
    mscale: float | None = setting(
        None,
        "Growth of dca's attention with the length L: q and k times max(1, mscale * ln(L / pretraining_length) + "
        "1); 0 is off, ChunkLlama has 0.05. Default is the checkpoint's.",
        Limits(least=0, most=100),
        none="as the model",
    )
    mscale_length: int = 1
    """The length from which `mscale` counts."""
    rebase_every: int = setting(
        16,
        "Decode steps between two adoptions of the current length by dynamic NTK and mscale.",
        of_preset=False,
        research=True,
    )

    @property
    def dual_chunk(self) -> DualChunkSpec:
        """The sizes of dca. Raises ValueError as long as they are not settled against a model."""
        if self.pretraining_length is None or self.dca_chunk is None:
            raise ValueError("dca has no length or no chunk; settle positions against a model first")
        return DualChunkSpec(self.pretraining_length, self.dca_chunk)

    def attention_growth(self, seq_len: int) -> float:
        """Factor on queries and on keys at this length, see `mscale`."""
        return max(1.0, (self.mscale or 0.0) * math.log(max(1, seq_len) / self.mscale_length) + 1.0)


@dataclass(frozen=True, slots=True)
class RotarySettings:
    """What differs from the model's own rotary embedding; `runtime` makes a RopeSpec of it and the model."""

    rope_scaling: dict[str, Any] | None = setting(
        None,
        "Rotary embedding in place of the checkpoint's, in transformers' words, such as {rope_type: yarn, factor: "
        "4}.",
        none="as the model",
    )
    rope_scaling_factor: float | None = setting(
        None,
        "LMDeploy's dynamic NTK in place of the checkpoint's scaling: base * (factor * L / max - (factor - 1)) ** "
        "(d / (d - 2)).",
        Limits(most=1e6, above=0),
        none="as the model",
    )
    session_len: int | None = setting(
        None,
        "L of dynamic NTK and longrope for every session; default is the prompt's length, and the current length "
        "while decoding.",
        Limits(unit="tokens"),
        none="each its own",
    )
    base: float | None = setting(
        None,
        "Base of the rotary embedding in place of the checkpoint's (InfLLM).",
        Limits(most=1e15, above=1),
        none="as the model",
    )
    distance_scale: float = setting(
        1.0,
        "Factor on every position, such as 0.25 for a fourfold interpolation (InfLLM).",
        Limits(least=1e-6, most=1e6),
    )
