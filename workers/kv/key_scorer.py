"""Selects single keys by their one-bit codes, and reads what attention needs of them and of all others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
from moorage.workers.kv.messages import (
    Float32,
    Int32,
    KeyReply,
    KeyRequest,
    KeyRowsReply,
    KeyRowsRequest,
    Storage,
)
from moorage.workers.kv.shard_session import ShardSession
from moorage.workers.spec import AnchorType

Float64 = NDArray[np.float64]


class Run(NamedTuple):
    """Candidates that one rotation of the queries meets."""

    first: int
    """Position of the first of them in this shard."""
    codes: NDArray[np.uint8]
    """[n, bytes]"""
    means: Float32
    """[n, Hkv, D]"""
    queries: Float32
    """[Hq, D]"""


class KeyScorer:
    """Of one arena; holds nothing of any session."""

    def __init__(self, arena: Arena) -> None:
        self._arena, self._layout = arena, arena.layout

    def select(self, request: KeyRequest, session: ShardSession) -> KeyReply:
        """The best keys among the session's sealed blocks that the request names."""
        self._check(request, session)
        layout = self._layout
        parts = [
            estimated_logits(
                run.codes, run.means, run.queries, block_size=layout.block_size, scale=request.scale
            )
            for run in self._runs(request, session)
        ]
        logits = np.concatenate([np.zeros((len(request.near), 0)), *parts], axis=1)
        positions, scores = self._best(request, logits)
        if not request.with_rows:
            return KeyReply(positions, scores)
        heads, places = np.nonzero(positions >= 0)
        wanted = KeyRowsRequest(request, heads.astype(np.int32), positions[heads, places])
        return KeyReply(positions, scores, self.rows(wanted, session))

    def _runs(self, request: KeyRequest, session: ShardSession) -> Iterator[Run]:
        layer, size = request.layer, self._layout.block_size
        bounds = np.minimum(request.bounds, session.num_sealed[layer])
        for queries, begin, end in zip(request.queries, bounds, bounds[1:], strict=False):
            pages = session.table.pages[begin:end]
            means = from_storage(self._arena.anchors[layer][pages, :, 0])
            yield Run(int(begin) * size, self._arena.codes[layer][pages], means, queries)

    def _best(self, request: KeyRequest, logits: Float64) -> tuple[Int32, Float32]:
        """(positions, scores), each [Hkv, count], of estimated logits [Hq, T]."""
        layout = self._layout
        positions = np.full((layout.num_kv_heads, request.count), -1, np.int32)
        scores = np.full(positions.shape, -np.inf, np.float32)
        group = len(logits) // layout.num_kv_heads
        for head in range(layout.num_kv_heads):
            heads = slice(head * group, (head + 1) * group)
            values = key_values(logits[heads], request.near[heads].astype(np.float64)).astype(np.float32)
            best = best_keys(values, request.count)
            positions[head, : len(best)] = int(request.bounds[0]) * layout.block_size + best
            scores[head, : len(best)] = values[best]
        return positions, scores

    def rows(self, wanted: KeyRowsRequest, session: ShardSession) -> KeyRowsReply:
        """Keys and values of selected tokens, and the completion."""
        request, heads, positions = wanted
        self._check(request, session)
        layout = self._layout
        if heads.shape != positions.shape or not np.isin(heads, range(layout.num_kv_heads)).all():
            raise InvalidRequest(
                f"session {request.session_id}: {heads.shape} heads for rows at {positions.shape} positions; give "
                f"one of {layout.num_kv_heads} heads for each position"
            )
        blocks, offsets = np.divmod(positions, np.int32(layout.block_size))
        distinct, place = np.unique(blocks, return_inverse=True)
        pages = session.table.pages_of(request.layer, distinct, layout.block_size)
        found = self._arena.readable(request.layer, pages)
        rows: Storage = np.stack(
            [found.blocks[found.pages[place], part, heads, offsets] for part in range(2)]
        )
        return KeyRowsReply(rows, *self._completion(wanted, session))

    def _completion(self, wanted: KeyRowsRequest, session: ShardSession) -> tuple[Float32, Float32]:
        request, layout = wanted.request, self._layout
        selected = [wanted.positions[wanted.heads == head] for head in range(layout.num_kv_heads)]
        sizes = layout.num_kv_heads, layout.block_size, layout.head_dim
        parts = [
            complete(
                run.means,
                unpack_codes(run.codes, *sizes).mean_values,
                run.queries,
                selected,
                block_size=layout.block_size,
                scale=request.scale,
                first=run.first,
            )
            for run in self._runs(request, session)
        ]
        return joined(
            np.array([out for out, _ in parts]).reshape(-1, len(request.near), layout.head_dim),
            np.array([lse for _, lse in parts]).reshape(-1, len(request.near)),
        )

    def _check(self, request: KeyRequest, session: ShardSession) -> None:
        """Raises InvalidRequest where a request does not fit the layout."""
        layout, shape = self._layout, request.queries.shape
        session.table.check_layer(request.layer)
        if layout.anchor_type is not AnchorType.KEY_CODES:
            raise InvalidRequest(
                f"select keys: anchors of type {layout.anchor_type} have no codes of keys; set "
                "long_context.anchor_type to KEY_CODES"
            )
        if len(shape) != 3 or shape[1] % layout.num_kv_heads or shape[2] != layout.head_dim:
            raise InvalidRequest(
                f"select keys: queries of shape {shape}; expected [runs, a multiple of {layout.num_kv_heads}, "
                f"{layout.head_dim}]"
            )
        if request.near.shape != shape[1:2] or request.bounds.shape != (shape[0] + 1,) or request.count < 0:
            raise InvalidRequest(
                f"select keys: near {request.near.shape} and bounds {request.bounds.shape} for queries {shape}, "
                f"count {request.count}; give one near a head, one bound more than runs, and nothing negative"
            )
        if request.bounds[0] < 0 or (np.diff(request.bounds) < 0).any():
            raise InvalidRequest(
                f"select keys: bounds {request.bounds.tolist()} are not ascending; sort them"
            )


def joined(outs: NDArray[np.floating], lses: NDArray[np.floating]) -> tuple[Float32, Float32]:
    """(out [Hq, D], lse [Hq]) of parts [n, Hq, D] and [n, Hq]; 0 and -inf without any."""
    lse = np.logaddexp.reduce(lses, axis=0, initial=-np.inf)
    weights = np.exp(lses - np.where(lse > -np.inf, lse, 0.0))
    out = np.einsum("sh,shd->hd", weights, outs)
    return out.astype(np.float32), lse.astype(np.float32)
