"""Attention of a prompt chunk over its past: exact over everything, or over blocks selected per execution block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.merge_lse import merge_lse
from moorage.kernels.prefill_attention import attend_dense, carries
from moorage.workers.gpu.attention.sinks import AttentionSinks
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.model.rope import rotate
from moorage.workers.gpu.positions.rotary import BlockRanges, RotaryCache
from moorage.workers.gpu.positions.schemes import FOREVER, Part, Variant
from moorage.workers.gpu.selection.key_importance import KeyImportance
from moorage.workers.gpu.selection.queries import attention_scale, scoring_queries
from moorage.workers.gpu.selection.selector import StoreSelector
from moorage.workers.gpu.transfer.block_loader import BlockLoader
from moorage.workers.spec import KvLayout

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Partial = tuple[torch.Tensor, torch.Tensor]
"""(out [Hq, T, D], lse [Hq, T]) in fp32."""
Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values [Hkv, n, D]."""

MOST_PARTS = 8
"""Partial results held before they are merged, so that memory does not grow with the context."""


class DenseKeys(NamedTuple):
    """Successive keys with their values, [heads, tokens, D]."""

    start: int
    """Position of the first."""
    plain: torch.Tensor
    rotated: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class Chunk:
    """One layer of a chunk: its queries in every variant, and the near keys before and in it.

    Tensors are [heads, tokens, D].
    """

    start: int
    queries: torch.Tensor
    """Un-rotated."""
    turned: dict[Variant, torch.Tensor]
    near: DenseKeys
    """The keys from the first near key on; where blocks are packed, up to the chunk's last block, as decoded."""
    own: DenseKeys | None
    """Where blocks are packed: from the beginning of the first query's block on, as they were given."""


@dataclass(slots=True)
class Rows:
    """Rows [first, end) of a chunk that share their parts, and their results so far."""

    first: int
    end: int
    parts: tuple[Part, ...]
    held: list[Partial]


class ChunkAttention:
    """A chunk of one session in one layer. Its K and V must already be stored."""

    def __init__(
        self,
        reader: BlockLoader,
        selector: StoreSelector,
        importance: KeyImportance,
        sinks: AttentionSinks,
        layout: KvLayout,
        timer: PartTimer,
    ) -> None:
        self._importance, self._sinks = importance, sinks
        self._reader = reader
        self._selector = selector
        self._layout = layout
        self._timer = timer

    def __call__(
        self,
        session: WorkerSession,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        before: Pair | None = None,
    ) -> torch.Tensor:
        """Output [T, Hq, D] for q [T, Hq, D] and k, v [T, Hkv, D], all un-rotated, from the session's end on.

        `before` is what `open_rows` gave before the chunk was stored.
        """
        memory = session.memory
        chunk = self._chunk(session, layer, queries, keys, values, before)
        count = len(queries)
        dense = session.prompt_tokens <= memory.selection.dense_until
        if not memory.selection.topk_of_prefill or memory.selection.execution_block == 0 or dense:
            span = BlockRanges.at(chunk.start, memory, self._layout.block_size)
            blocks = span.sinks if memory.selection.topk == 0 else np.arange(span.near_block, dtype=np.int32)
            out = self._attend(session, layer, chunk, 0, count, blocks[None])
        else:
            out = self._selected(session, layer, chunk, count)
        return out

    def open_rows(self, session: WorkerSession, layer: int) -> Pair | None:
        """K, V [Hkv, n, D] of the block that the next token is in, as they were given; None where none is packed.

        Once that token's chunk is stored, they may be packed.
        """
        if not self._layout.is_packed:
            return None
        block, end = session.num_tokens // self._layout.block_size, session.num_tokens
        return self._reader.rows(session.session_id, layer, block, end)

    def _chunk(
        self,
        session: WorkerSession,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        before: Pair | None,
    ) -> Chunk:
        start, size = session.num_tokens, self._layout.block_size
        near_block = BlockRanges.at(start, session.memory, size).near_block
        dtype, rotations = self._reader.compute_dtype, session.rotations_of(layer)
        new_keys, new_values, new_queries = (t.to(dtype).transpose(0, 1) for t in (keys, values, queries))
        if before is None:
            past = self._reader.rows(session.session_id, layer, near_block, start)
            near, own = self._dense(rotations, near_block, past, (new_keys, new_values)), None
        else:
            end = (start + len(queries) - 1) // size * size
            near = self._dense(
                rotations, near_block, self._reader.rows(session.session_id, layer, near_block, end)
            )
            own = self._dense(rotations, start // size, before, (new_keys, new_values))
        turned = self._turned(rotations, new_queries, start)
        return Chunk(start, new_queries, turned, near, own)

    def _dense(self, rotations: RotaryCache, first_block: int, *parts: Pair) -> DenseKeys:
        """Keys and values of successive tokens from the beginning of a block on."""
        size = self._layout.block_size
        keys, values = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        blocks = np.arange(first_block, first_block - (-keys.shape[1] // size), dtype=np.int32)
        return DenseKeys(first_block * size, keys, self._rotated(rotations, keys, blocks), values)

    def _turned(
        self, rotations: RotaryCache, queries: torch.Tensor, start: int
    ) -> dict[Variant, torch.Tensor]:
        """The queries from position `start` on in every variant that some part asks for."""
        scheme, end = rotations.scheme, start + queries.shape[1]
        wanted = {part.variant for group in scheme.groups(start, end) for part in scheme.parts(*group)}
        with self._timer("attend"):
            return {
                variant: rotate(queries, *self._on_device(rotations.queries(variant, start, end)))
                for variant in wanted
            }

    def _on_device(self, turns: tuple[Float32, Float32]) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = (torch.from_numpy(part).to(self._reader.device) for part in turns)
        return cos, sin

    def _selected(self, session: WorkerSession, layer: int, chunk: Chunk, count: int) -> torch.Tensor:
        """One selection per execution block; blocks are aligned to the prompt, so chunking changes nothing."""
        memory, size = session.memory, session.memory.selection.execution_block
        end = chunk.start + count
        edges = {chunk.start, *range((chunk.start // size + 1) * size, end, size), end}
        alone = memory.selection.first_alone(session.prompt_tokens)
        edges |= set(range(max(chunk.start, alone), end))
        rows = [(a - chunk.start, b - chunk.start) for a, b in pairwise(sorted(edges))]
        spans = [BlockRanges.at(chunk.start + a, memory, self._layout.block_size) for a, _ in rows]
        scoring = scoring_queries(session, layer, chunk.queries.transpose(0, 1), chunk.start)
        means = torch.stack([scoring[a:b].mean(dim=0) for a, b in rows])
        outs = []
        # Where anchors change with every execution block, each selection has to wait for those before it.
        turn = 1 if self._importance.in_prefill else len(rows)
        for first in range(0, len(rows), turn):
            part = slice(first, first + turn)
            selections = self._selector.prefill(session, layer, means[part], spans[part])
            for (a, b), span, ids in zip(rows[part], spans[part], selections, strict=True):
                session.stats.add_selection(ids.shape[1])
                sinks = np.tile(span.sinks, (len(ids), 1))
                outs.append(self._attend(session, layer, chunk, a, b, np.concatenate((sinks, ids), axis=1)))
        return torch.cat(outs)

    def _attend(
        self, session: WorkerSession, layer: int, chunk: Chunk, first: int, end: int, blocks: Int32
    ) -> torch.Tensor:
        """Rows [first, end) over near keys and distant `blocks` [S, n], ascending: out [rows, Hq, D]."""
        scheme, start = session.rotations_of(layer).scheme, chunk.start
        near_block = BlockRanges.at(start + first, session.memory, self._layout.block_size).near_block
        rows = [
            Rows(a - start, b - start, scheme.parts(a, b), [])
            for a, b in scheme.groups(start + first, start + end)
        ]
        for group in rows:
            self._near(session, layer, chunk, near_block * self._layout.block_size, group)
        for index, ids in enumerate(blocks):
            selection = None if len(blocks) == 1 else (index, len(blocks))
            self._distant(session, layer, chunk, rows, ids[ids >= 0], selection)
        merged = [self._merge(group.held) for group in rows]
        if len(merged) == 1:
            out, lse = merged[0]
        else:
            out, lse = (torch.cat([part[i] for part in merged], dim=1) for i in (0, 1))
        own = None if chunk.own is None else (chunk.own.start, chunk.own.plain)
        self._importance.add(session, layer, start + first, chunk.queries[:, first:end], lse, own)
        return self._sinks.weigh(layer, out.transpose(0, 1), lse.T)

    def _merge(self, parts: list[Partial]) -> Partial:
        if len(parts) == 1:
            return parts[0]
        with self._timer("attend"):
            outs, lses = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
            return merge_lse(outs, lses)

    def _near(self, session: WorkerSession, layer: int, chunk: Chunk, near_start: int, rows: Rows) -> None:
        """Keys from `near_start` on up to the rows' own."""
        first, end = chunk.start + rows.first, chunk.start + rows.end
        if chunk.own is None:
            self._see(session, layer, chunk, chunk.near, (near_start, end), rows)
            return
        size, found = self._layout.block_size, []
        edges = [first, *range((first // size + 1) * size, end, size), end]
        for a, b in pairwise(edges):
            some, own_start = Rows(a - chunk.start, b - chunk.start, rows.parts, []), a // size * size
            self._see(session, layer, chunk, chunk.near, (near_start, own_start), some)
            self._see(session, layer, chunk, chunk.own, (max(near_start, own_start), b), some)
            found.append(self._merge(some.held))
        rows.held.append((torch.cat([out for out, _ in found], 1), torch.cat([lse for _, lse in found], 1)))

    def _see(
        self,
        session: WorkerSession,
        layer: int,
        chunk: Chunk,
        dense: DenseKeys,
        bounds: tuple[int, int],
        rows: Rows,
    ) -> None:
        """The keys of `dense` at positions within `bounds`, as far as the rows see them."""
        first, end = chunk.start + rows.first, chunk.start + rows.end
        scheme, scale = session.rotations_of(layer).scheme, attention_scale(session, layer)
        for part in rows.parts:
            low, high = part.clipped(first, end)
            low, high = max(low, bounds[0]), min(high, bounds[1])
            if low >= high:
                continue
            rotated = scheme.rotates_keys(part.variant)
            keys = slice(low - dense.start, high - dense.start)
            with self._timer("attend"):
                partial = attend_dense(
                    chunk.turned[part.variant][:, rows.first : rows.end],
                    (dense.rotated if rotated else dense.plain)[:, keys],
                    dense.values[:, keys],
                    scale,
                    band=(part.least, part.most),
                    q_start=first,
                    k_start=low,
                    softcap=session.softcap,
                )
            rows.held.append(partial)

    def _distant(
        self,
        session: WorkerSession,
        layer: int,
        chunk: Chunk,
        rows: list[Rows],
        blocks: Int32,
        selection: tuple[int, int] | None,
    ) -> None:
        """Whole blocks before the near ones, streamed in pieces; `selection` i of n limits them to its heads."""
        rotations, size = session.rotations_of(layer), self._layout.block_size
        scheme, scale = rotations.scheme, attention_scale(session, layer)
        # Blocks before the near ones lie beyond the window, so only parts without end reach them.
        reaching = [(group, part) for group in rows for part in group.parts if part.most == FOREVER]
        rotates = any(scheme.rotates_keys(part.variant) for _, part in reaching)
        for piece, keys, values in self._reader.pieces(session.session_id, layer, blocks):
            rotated = self._rotated(rotations, keys, piece) if rotates else keys
            for group, part in reaching:
                low, high = np.searchsorted(piece, (part.low // size, -(-part.high // size)))
                if low < high:
                    seen = slice(low * size, high * size)
                    queries = chunk.turned[part.variant][:, group.first : group.end]
                    carried = group.held and selection is None and carries(queries, scale)
                    partial = self._attend_blocks(
                        session,
                        layer,
                        queries,
                        (rotated if scheme.rotates_keys(part.variant) else keys)[:, seen],
                        values[:, seen],
                        selection,
                        group.held.pop() if carried else None,
                    )
                    group.held.append(partial)
                if len(group.held) == MOST_PARTS:
                    group.held = [self._merge(group.held)]

    def _attend_blocks(
        self,
        session: WorkerSession,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        selection: tuple[int, int] | None,
        held: Partial | None,
    ) -> Partial:
        """All keys for all queries, or for the heads of selection i of n; the parts of other heads then weigh 0.

        The keys of `held` are among those that the result is of.
        """
        scale, softcap = attention_scale(session, layer), session.softcap
        with self._timer("attend"):
            if selection is None:
                return attend_dense(queries, keys, values, scale, softcap=softcap, held=held)
            index, num_selections = selection
            group = len(queries) // num_selections
            kv_head = index * self._layout.num_kv_heads // num_selections
            rows, head = slice(index * group, (index + 1) * group), slice(kv_head, kv_head + 1)
            out, lse = attend_dense(queries[rows], keys[head], values[head], scale, softcap=softcap)
            full_out = out.new_zeros((len(queries), *out.shape[1:]))
            full_lse = lse.new_full((len(queries), *lse.shape[1:]), -math.inf)
            full_out[rows], full_lse[rows] = out, lse
            return full_out, full_lse

    def _rotated(self, rotations: RotaryCache, keys: torch.Tensor, blocks: Int32) -> torch.Tensor:
        """K [Hkv, n, D] of the first n tokens of `blocks`, each key at its own position."""
        with self._timer("attend"):
            cos, sin = self._on_device(rotations.keys(blocks))
            return rotate(keys, cos[: keys.shape[1]], sin[: keys.shape[1]])
