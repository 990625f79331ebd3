"""Selects single keys by their one-bit codes, and reads their rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.half import from_storage
from moorage.kernels.key_select.reference import (
    best_keys,
    complete,
    estimated_logits,
    key_values,
    unpack_codes,
)
from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.messages import Int32, KeyReply, KeyRequest, KeyRowsRequest, Storage
from moorage.workers.kv.shard_session import ShardSession
from moorage.workers.spec import AnchorType

Float64 = NDArray[np.float64]


class KeyScorer:
    """Of one arena; holds nothing of any session."""

    def __init__(self, arena: Arena) -> None:
        self._arena, self._layout = arena, arena.layout

    def select(self, request: KeyRequest, session: ShardSession) -> KeyReply:
        """The best keys among the session's sealed blocks that the request names."""
        self._check(request)
        session.table.check_layer(request.layer)
        layout, layer = self._layout, request.layer
        end = max(request.first, min(request.limit, session.num_sealed[layer]))
        pages = session.table.pages[request.first : end]
        codes = self._arena.codes[layer][pages]
        means = from_storage(self._arena.anchors[layer][pages, :, 0])
        sizes = layout.num_kv_heads, layout.block_size, layout.head_dim
        how = {"block_size": layout.block_size, "scale": request.scale}
        logits = estimated_logits(codes, means, request.queries, **how)
        rest = complete(means, unpack_codes(codes, *sizes).mean_values, request.queries, **how)
        positions, scores = self._best(request, logits)
        return KeyReply(
            positions,
            scores,
            rest[0].astype(np.float32),
            rest[1].astype(np.float32),
            self._padded_rows(request, session, positions) if request.with_rows else None,
        )

    def _best(self, request: KeyRequest, logits: Float64) -> tuple[Int32, NDArray[np.float32]]:
        """(positions, scores), each [Hkv, count], of estimated logits [Hq, T]."""
        layout = self._layout
        positions = np.full((layout.num_kv_heads, request.count), -1, np.int32)
        scores = np.full(positions.shape, -np.inf, np.float32)
        group = len(logits) // layout.num_kv_heads
        for head in range(layout.num_kv_heads):
            heads = slice(head * group, (head + 1) * group)
            values = key_values(logits[heads], request.near[heads].astype(np.float64)).astype(np.float32)
            best = best_keys(values, request.count)
            positions[head, : len(best)] = request.first * layout.block_size + best
            scores[head, : len(best)] = values[best]
        return positions, scores

    def _padded_rows(self, request: KeyRequest, session: ShardSession, positions: Int32) -> Storage:
        heads, places = np.nonzero(positions >= 0)
        named = heads.astype(np.int32), positions[heads, places]
        rows = self.rows(KeyRowsRequest(request.session_id, request.layer, *named), session)
        padded: Storage = np.zeros((2, *positions.shape, rows.shape[-1]), rows.dtype)
        padded[:, heads, places] = rows
        return padded

    def rows(self, wanted: KeyRowsRequest, session: ShardSession) -> Storage:
        """Keys and values [2, n, D] of storage type."""
        layout, heads, positions = self._layout, wanted.heads, wanted.positions
        if heads.shape != positions.shape or not np.isin(heads, range(layout.num_kv_heads)).all():
            raise InvalidRequest(
                f"session {wanted.session_id}: {heads.shape} heads for rows at {positions.shape} positions; give "
                f"one of {layout.num_kv_heads} heads for each position"
            )
        blocks, offsets = np.divmod(positions, np.int32(layout.block_size))
        distinct, place = np.unique(blocks, return_inverse=True)
        pages = session.table.pages_of(wanted.layer, distinct, layout.block_size)
        found = self._arena.readable(wanted.layer, pages)
        return np.stack([found.blocks[found.pages[place], part, heads, offsets] for part in range(2)])

    def _check(self, request: KeyRequest) -> None:
        """Raises InvalidRequest where a request does not fit the layout."""
        layout, shape = self._layout, request.queries.shape
        if layout.anchor_type is not AnchorType.KEY_CODES:
            raise InvalidRequest(
                f"select keys: anchors of type {layout.anchor_type} have no codes of keys; set "
                "long_context.anchor_type to KEY_CODES"
            )
        if len(shape) != 2 or shape[0] % layout.num_kv_heads or shape[1] != layout.head_dim:
            raise InvalidRequest(
                f"select keys: queries of shape {shape}; expected [a multiple of {layout.num_kv_heads}, "
                f"{layout.head_dim}]"
            )
        if request.near.shape != shape[:1] or min(request.first, request.count) < 0:
            raise InvalidRequest(
                f"select keys: near {request.near.shape} for {shape[0]} query heads, first {request.first}, count "
                f"{request.count}; give one near a head, and nothing negative"
            )
