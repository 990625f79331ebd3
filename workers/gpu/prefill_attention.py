"""Attention of a prompt chunk over its past: exact over everything, or over blocks chosen per execution block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.merge_lse import merge_lse
from moorage.kernels.prefill_attention import attend_dense
from moorage.workers.gpu.choosing import Chooser
from moorage.workers.gpu.importance import Importance
from moorage.workers.gpu.model.rope import rotate
from moorage.workers.gpu.positions import Rotations, Span
from moorage.workers.gpu.reader import BlockReader
from moorage.workers.gpu.session import WorkerSession
from moorage.workers.gpu.timing import PartTimer
from moorage.workers.spec import KvLayout

Int32 = NDArray[np.int32]
Partial = tuple[torch.Tensor, torch.Tensor]
"""(out [Hq, T, D], lse [Hq, T]) in fp32."""

FOREVER = 1 << 62
"""Upper end of a band that has none."""
MOST_PARTS = 8
"""Partial results held before they are merged, so that memory does not grow with the context."""


@dataclass(slots=True)
class Chunk:
    """One layer of a chunk: queries and the near keys before and in it, un-rotated and rotated.

    Tensors are [heads, tokens, D]; `near_start` is the position of the first near key.
    """

    start: int
    queries: torch.Tensor
    rotated_queries: torch.Tensor
    clamped_queries: torch.Tensor | None
    near_start: int
    keys: torch.Tensor
    rotated_keys: torch.Tensor
    values: torch.Tensor


class PrefillAttention:
    """A chunk of one session in one layer. Its K and V must already be stored."""

    def __init__(
        self,
        reader: BlockReader,
        chooser: Chooser,
        importance: Importance,
        layout: KvLayout,
        timer: PartTimer,
    ) -> None:
        self._importance = importance
        self._reader = reader
        self._chooser = chooser
        self._layout = layout
        self._timer = timer

    def __call__(
        self,
        session: WorkerSession,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Output [T, Hq, D] for q [T, Hq, D] and k, v [T, Hkv, D], all un-rotated, from the session's end on."""
        memory = session.memory
        chunk = self._chunk(session, layer, queries, keys, values)
        count = len(queries)
        if memory.topk is None or memory.exc_block_size == 0 or session.prompt_tokens <= memory.dense_until:
            blocks = np.arange(
                Span.at(chunk.start, memory, self._layout.block_size).near_block, dtype=np.int32
            )
            out = self._attend(session, layer, chunk, 0, count, blocks[None])
        else:
            out = self._selected(session, layer, chunk, count)
        return out.transpose(0, 1)

    def _chunk(
        self,
        session: WorkerSession,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> Chunk:
        start, size = session.num_tokens, self._layout.block_size
        near_block = Span.at(start, session.memory, size).near_block
        past_keys, past_values = self._reader.rows(session.session_id, layer, near_block, start)
        dtype = self._reader.compute_dtype
        new_keys, new_values, new_queries = (t.to(dtype).transpose(0, 1) for t in (keys, values, queries))
        with self._timer("attend"):
            near_keys = torch.cat((past_keys, new_keys), dim=1)
            near_values = torch.cat((past_values, new_values), dim=1)
            near_start = near_block * size
            cos, sin = self._rotation(session.rotations, near_start, near_keys.shape[1])
            offset = start - near_start
            return Chunk(
                start,
                new_queries,
                rotate(new_queries, cos[offset:], sin[offset:]),
                self._clamped(session.rotations, new_queries),
                near_start,
                near_keys,
                rotate(near_keys, cos, sin),
                near_values,
            )

    def _rotation(self, rotations: Rotations, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = (torch.from_numpy(part) for part in rotations.absolute(first, count))
        return cos.to(self._reader.device), sin.to(self._reader.device)

    def _clamped(self, rotations: Rotations, queries: torch.Tensor) -> torch.Tensor | None:
        if not rotations.clamped:
            return None
        cos, sin = (torch.from_numpy(part).to(queries.device) for part in rotations.clamp)
        return rotate(queries, cos, sin)

    def _selected(self, session: WorkerSession, layer: int, chunk: Chunk, count: int) -> torch.Tensor:
        """One choice per execution block; blocks are aligned to the prompt, so chunking changes nothing."""
        memory, size = session.memory, session.memory.exc_block_size
        end = chunk.start + count
        edges = [chunk.start, *range((chunk.start // size + 1) * size, end, size), end]
        rows = [(a - chunk.start, b - chunk.start) for a, b in pairwise(edges)]
        spans = [Span.at(chunk.start + a, memory, self._layout.block_size) for a, _ in rows]
        scoring = self._chooser.scoring_queries(session, chunk.queries.transpose(0, 1), chunk.start)
        means = torch.stack([scoring[a:b].mean(dim=0) for a, b in rows])
        outs = []
        # Where anchors change with every execution block, each choice has to wait for those before it.
        turn = 1 if self._importance.in_prefill else len(rows)
        for first in range(0, len(rows), turn):
            part = slice(first, first + turn)
            choices = self._chooser.for_prefill(session, layer, means[part], spans[part])
            for (a, b), span, ids in zip(rows[part], spans[part], choices, strict=True):
                session.stats.add_choice(ids.shape[1])
                sinks = np.tile(span.sinks, (len(ids), 1))
                outs.append(self._attend(session, layer, chunk, a, b, np.concatenate((sinks, ids), axis=1)))
        return torch.cat(outs, dim=1)

    def _attend(
        self, session: WorkerSession, layer: int, chunk: Chunk, first: int, end: int, blocks: Int32
    ) -> torch.Tensor:
        """Rows [first, end) over near keys and distant `blocks` [S, n]: out [Hq, rows, D]."""
        parts = self._near(session, chunk, first, end)
        for index, ids in enumerate(blocks):
            choice = None if len(blocks) == 1 else (index, len(blocks))
            for part in self._distant(session, layer, chunk, first, end, ids[ids >= 0], choice):
                parts.append(part)
                if len(parts) == MOST_PARTS:
                    parts = [self._merge(parts)]
        out, lse = self._merge(parts)
        self._importance.add(session, layer, chunk.start + first, chunk.queries[:, first:end], lse)
        return out

    def _merge(self, parts: list[Partial]) -> Partial:
        if len(parts) == 1:
            return parts[0]
        with self._timer("attend"):
            outs, lses = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
            return merge_lse(outs, lses)

    def _near(self, session: WorkerSession, chunk: Chunk, first: int, end: int) -> list[Partial]:
        """Keys from the first row's near block on, each at its true distance or, beyond the window, clamped."""
        size, window = self._layout.block_size, session.memory.local_windows_len
        start = chunk.start + first
        near_start = Span.at(start, session.memory, size).near_block * size
        keys = slice(near_start - chunk.near_start, chunk.start + end - chunk.near_start)
        rows = slice(first, end)
        scale = self._scale(session)
        with self._timer("attend"):
            parts = [
                attend_dense(
                    chunk.rotated_queries[:, rows],
                    chunk.rotated_keys[:, keys],
                    chunk.values[:, keys],
                    scale,
                    band=(0, window if chunk.clamped_queries is not None else FOREVER),
                    q_start=start,
                    k_start=near_start,
                )
            ]
            aged = chunk.start + end - window - near_start
            if chunk.clamped_queries is not None and aged > 0:
                keys = slice(keys.start, keys.start + aged)
                parts.append(
                    attend_dense(
                        chunk.clamped_queries[:, rows],
                        chunk.keys[:, keys],
                        chunk.values[:, keys],
                        scale,
                        band=(window, FOREVER),
                        q_start=start,
                        k_start=near_start,
                    )
                )
        return parts

    def _distant(
        self,
        session: WorkerSession,
        layer: int,
        chunk: Chunk,
        first: int,
        end: int,
        blocks: Int32,
        choice: tuple[int, int] | None,
    ) -> Iterator[Partial]:
        """Whole blocks before the near ones, streamed in pieces; `choice` i of n limits them to its heads."""
        queries = chunk.rotated_queries if chunk.clamped_queries is None else chunk.clamped_queries
        queries = queries[:, first:end]
        scale = self._scale(session)
        for piece, keys, values in self._reader.pieces(session.session_id, layer, blocks):
            with self._timer("attend"):
                if chunk.clamped_queries is None:
                    keys = self._rotate_blocks(session.rotations, keys, piece)
                if choice is None:
                    yield attend_dense(queries, keys, values, scale)
                else:
                    yield self._attend_group(queries, keys, values, scale, *choice)

    def _attend_group(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float,
        index: int,
        num_choices: int,
    ) -> Partial:
        """A part for the heads of one choice, as a part of all heads in which the others weigh nothing."""
        group = len(queries) // num_choices
        kv_head = index * self._layout.num_kv_heads // num_choices
        rows, head = slice(index * group, (index + 1) * group), slice(kv_head, kv_head + 1)
        out, lse = attend_dense(queries[rows], keys[head], values[head], scale)
        full_out = out.new_zeros((len(queries), *out.shape[1:]))
        full_lse = lse.new_full((len(queries), *lse.shape[1:]), -math.inf)
        full_out[rows], full_lse[rows] = out, lse
        return full_out, full_lse

    def _rotate_blocks(self, rotations: Rotations, keys: torch.Tensor, blocks: Int32) -> torch.Tensor:
        """K [Hkv, n * B, D] of `blocks`, each key at its own position."""
        size = self._layout.block_size
        runs = np.split(blocks, np.flatnonzero(np.diff(blocks) != 1) + 1)
        parts = [rotations.absolute(int(run[0]) * size, len(run) * size) for run in runs if len(run)]
        cos, sin = (torch.from_numpy(np.concatenate(p)).to(keys.device) for p in zip(*parts, strict=True))
        return rotate(keys, cos, sin)

    def _scale(self, session: WorkerSession) -> float:
        return session.rotations.view.attention_scale**2 / math.sqrt(self._layout.head_dim)
