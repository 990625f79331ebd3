"""Selects single keys by their one-bit codes, and reads what attention needs of them and of all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.key_codes.reference import codes_of
from moorage.kernels.key_select.completion import complete
from moorage.kernels.key_select.cpu import key_values
from moorage.kernels.top_blocks import top_blocks
from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.buffers import Buffers
from moorage.workers.kv.messages import (
    Float32,
    Int32,
    KeyReply,
    KeyRequest,
    KeyRowsReply,
    KeyRowsRequest,
    ReadableBlocks,
    Storage,
)
from moorage.workers.kv.packed_rows import PackedRows
from moorage.workers.kv.shard_session import ShardSession
from moorage.workers.spec import AnchorType


class Run(NamedTuple):
    """Candidates that one rotation of the queries meets."""

    first: int
    """Position of the first of them in this shard."""
    pages: Int32
    queries: Float32
    """[Hq, D]"""


class KeyScorer:
    """Selects single keys of one arena; it holds nothing of any session."""

    def __init__(self, arena: Arena, packed: PackedRows | None) -> None:
        self._arena, self._layout, self._packed = arena, arena.layout, packed
        self._buffers = Buffers()

    def select(self, request: KeyRequest, session: ShardSession) -> KeyReply:
        """The best keys among the session's sealed blocks that the request names."""
        self._check(request, session)
        layout, runs = self._layout, self._runs(request, session)
        first, total = runs[0].first, sum(len(run.pages) for run in runs) * layout.block_size
        shape = layout.num_kv_heads, request.num_keys
        positions, scores = np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)
        if total:
            values = self._buffers.scratch(layout.num_kv_heads * total)[: layout.num_kv_heads * total]
            values = values.reshape(layout.num_kv_heads, total)
            self._score(request, runs, values)
            top_blocks(values, np.full(shape[0], total, np.int32), request.num_keys, positions, scores)
            positions[positions >= 0] += np.int32(first)
        if not request.with_rows:
            return KeyReply(positions, scores)
        heads, places = np.nonzero(positions >= 0)
        wanted = KeyRowsRequest(request, heads.astype(np.int32), positions[heads, places])
        return KeyReply(positions, scores, self._rows(wanted, session))

    def _runs(self, request: KeyRequest, session: ShardSession) -> list[Run]:
        """The runs of candidates, at least one."""
        bounds = np.minimum(request.bounds, session.num_sealed[request.layer])
        return [
            Run(int(begin) * self._layout.block_size, session.table.pages[begin:end], queries)
            for queries, begin, end in zip(request.queries, bounds, bounds[1:], strict=False)
        ]

    def _score(self, request: KeyRequest, runs: Sequence[Run], values: Float32) -> None:
        """Writes the values [Hkv, T] of all candidates."""
        anchors, codes = self._arena.anchors[request.layer], self._arena.codes[request.layer]
        for run in runs:
            key_values(
                anchors,
                codes,
                run.pages,
                np.ascontiguousarray(run.queries),
                request.near,
                scale=request.scale,
                block_size=self._layout.block_size,
                out=values,
                first=run.first - runs[0].first,
            )

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
        return self._rows(wanted, session)

    def _rows(self, wanted: KeyRowsRequest, session: ShardSession) -> KeyRowsReply:
        request, heads, positions = wanted
        layout = self._layout
        blocks, offsets = np.divmod(positions, np.int32(layout.block_size))
        distinct, place = np.unique(blocks, return_inverse=True)
        found = self._readable(request.layer, session, distinct)
        # Numbers of rows in [P, 2, Hkv, B], of the keys and then of the values.
        keys = (
            2 * found.pages[place].astype(np.int64) * layout.num_kv_heads + heads
        ) * layout.block_size + offsets
        numbers = np.stack((keys, keys + layout.num_kv_heads * layout.block_size))
        rows: Storage = found.blocks.reshape(-1, layout.head_dim).take(numbers, axis=0)
        return KeyRowsReply(rows, *self._completion(wanted, session))

    def _readable(self, layer: int, session: ShardSession, blocks: Int32) -> ReadableBlocks:
        pages = session.table.pages_of(layer, blocks, self._layout.block_size)
        if self._packed is None:
            return ReadableBlocks(self._arena.kv[layer], pages)
        copies: Storage = np.empty((len(blocks), 2, *self._layout.block_shape), np.uint16)
        places = np.arange(len(blocks), dtype=np.int32)
        self._packed.gather(session, layer, blocks, copies, places)
        return ReadableBlocks(copies, places)

    def _completion(self, wanted: KeyRowsRequest, session: ShardSession) -> tuple[Float32, Float32]:
        request, layout = wanted.request, self._layout
        if not request.completes:
            shape = request.queries.shape[1:]
            return np.zeros(shape, np.float32), np.full(shape[0], -np.inf, np.float32)
        anchors, codes = self._arena.anchors[request.layer], self._arena.codes[request.layer]
        mean_values = codes_of(codes, layout.num_kv_heads, layout.block_size, layout.head_dim).mean_values
        selected = [wanted.positions[wanted.heads == head] for head in range(layout.num_kv_heads)]
        parts = [
            complete(
                anchors[run.pages, :, 0],
                mean_values[run.pages],
                run.queries,
                selected,
                block_size=layout.block_size,
                scale=request.scale,
                first=run.first,
            )
            for run in self._runs(request, session)
        ]
        outs, lses = zip(*parts, strict=True)
        return joined(np.array(outs), np.array(lses))

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
        if (
            not shape[0]
            or request.near.shape != shape[1:2]
            or request.bounds.shape != (shape[0] + 1,)
            or request.num_keys < 0
        ):
            raise InvalidRequest(
                f"select keys: near {request.near.shape} and bounds {request.bounds.shape} for queries {shape}, "
                f"{request.num_keys} keys; give one near a head, one bound more than runs, and nothing negative"
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
