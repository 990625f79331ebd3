"""What is asked of a KV store and what it answers. Positions and block ids are those of one shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.workers.spec import AnchorPool, HeadPool

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Storage = NDArray[np.uint16] | NDArray[np.float32]
"""Stored elements: the bits of fp16, or float32."""


class ReadableBlocks(NamedTuple):
    """Some blocks of a layer."""

    blocks: Storage
    """[n, 2, Hkv, B, D] of storage type."""
    pages: Int32
    """Where they lie in `blocks`."""


@dataclass(frozen=True, slots=True)
class AnchorRotation:
    """What a store needs to rotate keys at their own positions: the angles, and where its blocks lie."""

    inv_freq: NDArray[np.float64]
    """[rotary_dim / 2] radians per token, or by layer [L, rotary_dim / 2]."""
    shard: int = 0
    num_shards: int = 1
    stripe_blocks: int = 1


def no_pages() -> Int32:
    """A list without pages."""
    return np.empty(0, np.int32)


@dataclass(slots=True)
class RawPages:
    """Pages that hold rows of one session in fp16, beside its packed blocks; none where the format is native.

    Row t of a block, or token t of the session, lies in page t // layout.raw_rows at row t % layout.raw_rows.
    """

    open_pages: Int32 = field(default_factory=no_pages)
    """Pages of the open block."""
    sink_pages: Int32 = field(default_factory=no_pages)
    """Pages of the first tokens, in the store that has them."""
    block: list[int] = field(default_factory=list)
    """The open block of each layer, which the last written row is in, full or not; -1 where nobody reads the rows."""


class Attached(NamedTuple):
    """What a store holds of a session that a worker takes over."""

    pages: Int32
    num_tokens: Int32
    """[L]"""
    num_sealed: Int32
    """[L]: the first blocks of each layer, full and with anchors."""
    open_pages: Int32
    """See RawPages; nobody may count on the rows of the open block, which a lost worker may have half written."""
    sink_pages: Int32
    rotation: AnchorRotation | None = None


class SelectRequest(NamedTuple):
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
    """One selection for all heads; otherwise one for each KV head."""
    scale: float
    """Multiplies the logits, usually 1 / sqrt(D)."""
    use_preselected: bool = False
    """Select among the blocks of an earlier preselection only, when there was one."""
    pooling: HeadPool = HeadPool.SOFTMAX
    """SUM and MAX need one shard's blocks only. SOFTMAX needs the sum of exponentials over the blocks of all
    shards, so with more than one shard it takes a second round (`Score`, then `SelectScored`)."""
    anchor_pool: AnchorPool = AnchorPool.MAX
    perhead: bool = False
    """One selection for each query head; `shared` is False then."""

    def num_selections(self, num_kv_heads: int) -> int:
        """Selections for each row."""
        if self.shared:
            return 1
        return self.queries.shape[1] if self.perhead else num_kv_heads


class SelectReply(NamedTuple):
    """Selected blocks: S = 1 row for all heads, or one for each KV head or query head."""

    ids: Int32
    """[R, S, k], ascending, padded at the end with -1."""
    scores: Float32
    """[R, S, k] pooled scores, padded with -inf."""


class KeyRequest(NamedTuple):
    """The best single keys of each KV head in the sealed blocks [bounds[0], bounds[-1]), by their codes."""

    session_id: int
    layer: int
    queries: Float32
    """[V, Hq, D]: as they meet the codes; number v those of blocks [bounds[v], bounds[v + 1])."""
    bounds: Int32
    """[V + 1], ascending; bounds beyond the sealed blocks count as their number."""
    near: Float32
    """[Hq]: log-sum-exp of the logits of sinks and window, with which estimated logits are compared."""
    num_keys: int
    """Keys of each KV head."""
    scale: float
    """Multiplies the logits, usually 1 / sqrt(D)."""
    with_rows: bool = False
    """Whether the answer has the rows of these keys, since no other shard has any."""
    completes: bool = True
    """Whether the completion stands for the keys that are not selected."""


class KeyRowsRequest(NamedTuple):
    """Keys and values of the tokens that were selected in a shard, and what stands for all others."""

    request: KeyRequest
    """The request by which they were selected."""
    heads: Int32
    """[n]: KV heads."""
    positions: Int32
    """[n]"""


class KeyRowsReply(NamedTuple):
    """See KeyRowsRequest."""

    rows: Storage
    """[2, n, D]"""
    rest_out: Float32
    """[Hq, D] of the completion in this shard; see `kernels.key_select.reference`. 0 where it is not asked for."""
    rest_lse: Float32
    """[Hq]; -inf where it is not asked for."""


class KeyReply(NamedTuple):
    """The best single keys of a shard."""

    positions: Int32
    """[Hkv, n], ascending, padded at the end with -1."""
    scores: Float32
    """[Hkv, n]: by key the largest over the query heads of (logit - near), padded with -inf."""
    rows: KeyRowsReply | None = None
    """Rows of all positions but -1, KV head by KV head; None where they were not asked for."""


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
