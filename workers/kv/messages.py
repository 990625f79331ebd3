"""What is asked of a KV store and what it answers. Positions and block ids are those of one shard."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Storage = NDArray[np.uint16] | NDArray[np.float32]
"""Stored elements: the bits of fp16, or float32."""


class Pooling(StrEnum):
    """How the scaled logits of several query heads become one score per block.

    SUM and MAX need one shard's blocks only. SOFTMAX needs the sum of exponentials over the blocks of all
    shards, so with more than one shard it takes a second round (`score`, then `choose`).
    """

    SUM = "sum"
    """Mean of the logits over the heads (InfLLM, ktransformers)."""
    SOFTMAX = "softmax"
    """Mean over the heads of each head's softmax over the candidates."""
    MAX = "max"
    """Largest logit of any head."""


@dataclass(frozen=True, slots=True)
class SelectRequest:
    """The `k` best of the sealed blocks [first, limits[r]) for each row r of `queries`."""

    session_id: int
    layer: int
    queries: Float32
    """[R, Hq, D]"""
    first: int
    limits: Int32
    """[R]; a limit beyond the sealed blocks counts as their number."""
    k: int
    shared: bool
    """One choice for all heads; otherwise one for each KV head."""
    scale: float
    """Multiplies the logits, usually 1 / sqrt(D)."""
    use_preselected: bool = False
    """Choose among the blocks of an earlier `keep` only, when there was one."""
    pooling: Pooling = Pooling.SOFTMAX


@dataclass(frozen=True, slots=True)
class SelectReply:
    """Chosen blocks: S = 1 row for all heads, or one for each KV head."""

    ids: Int32
    """[R, S, k], ascending, padded at the end with -1."""
    scores: Float32
    """[R, S, k] pooled scores, padded with -inf."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds now."""

    num_pages: int
    free_pages: int
    num_sessions: int
    num_sealed: int
    """Blocks that are sealed in every layer."""
    used_bytes: int
    """Pages reserved by sessions, anchors included."""
    capacity_bytes: int
    anchor_bytes: int
    """Part of `capacity_bytes` that anchors take."""
