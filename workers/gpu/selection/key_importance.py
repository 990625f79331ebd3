"""How much attention keys received: what DYNAMIC and REPR_TOPK anchors and a preselection from the prompt go by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.block_importance import attention_lse, token_importance
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.model.rope import rotate
from moorage.workers.gpu.positions.rotary import BlockRanges
from moorage.workers.gpu.positions.schemes import FOREVER
from moorage.workers.gpu.selection.device_scorer import DeviceScorer
from moorage.workers.gpu.selection.queries import attention_scale
from moorage.workers.gpu.selection.received_attention import ReceivedAttention
from moorage.workers.gpu.transfer.block_loader import BlockLoader
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import AnchorType, KvLayout, Preselect

Int32 = NDArray[np.int32]

REANCHOR_BLOCKS = 256
"""Blocks whose importance travels at once."""


@dataclass(frozen=True, slots=True)
class _View:
    """Keys as some queries see them; [heads, tokens, D], rotated."""

    queries: torch.Tensor
    rows: slice
    """Which of the queries."""
    keys: torch.Tensor
    band: tuple[int, int]
    k_start: int


class KeyImportance:
    """Attention received by keys of one worker's sessions, sent to the store that makes anchors of it."""

    def __init__(
        self,
        reader: BlockLoader,
        kv: ShardedKv,
        layout: KvLayout,
        timer: PartTimer,
        scorer: DeviceScorer | None = None,
    ) -> None:
        """`scorer` keeps copies of anchors that must follow."""
        self._scorer = scorer
        self._reader, self._kv, self._layout, self._timer = reader, kv, layout, timer
        self._type = layout.anchor_type

    @property
    def in_prefill(self) -> bool:
        """Whether anchors change with each execution block of a prompt."""
        return self._type is AnchorType.REPR_TOPK

    @property
    def reads_rows(self) -> bool:
        """Whether each generated token's own key is read from DRAM in its step."""
        return self._type in (AnchorType.DYNAMIC, AnchorType.REPR_TOPK)

    def wants_tail(self, session: WorkerSession) -> bool:
        """Whether the prompt's last queries decide something."""
        return self._type is AnchorType.DYNAMIC or session.memory.selection.preselect is Preselect.PROMPT

    def add(
        self,
        session: WorkerSession,
        layer: int,
        start: int,
        queries: torch.Tensor,
        lse: torch.Tensor,
        own: tuple[int, torch.Tensor] | None = None,
    ) -> None:
        """Counts what the window's keys receive from `queries` [Hq, R, D], un-rotated, at `start` and after.

        `lse` [Hq, R] is that of all attended keys. Blocks that no later query has in its window get anchors of it, as
        InfLLM does; DYNAMIC anchors are made so of generated tokens only. `own` are keys [Hkv, n, D] as they were
        given, with the position of the first: each query sees those of its own block, and others as they are stored.
        """
        if self._type is AnchorType.DYNAMIC:
            if start < session.prompt_tokens:
                return
            first = session.prompt_tokens // self._layout.block_size
        elif self._type is AnchorType.REPR_TOPK:
            first = session.kept_tokens // self._layout.block_size
        else:
            return
        size, count = self._layout.block_size, queries.shape[1]
        end = start + count
        with self._timer("importance"):
            received = session.received.get(layer)
            if received is None:
                near = BlockRanges.at(start, session.memory, size).near_block
                received = session.received[layer] = ReceivedAttention(
                    max(near, first), torch.zeros((self._layout.num_kv_heads, 0), device=self._reader.device)
                )
            received.extend((self._layout.num_blocks(end) - received.first_block) * size)
            for rows, keys in self._seen(session, layer, received.first_block, start, count, own):
                at = start + rows.start
                self._count_window(session, layer, at, queries[:, rows], keys, lse[:, rows], received)
            after = BlockRanges.at(end, session.memory, size).near_block
            leaving = received.take_until(after, size)
            if leaving is not None:
                self._rebuild_anchors(session, layer, *leaving)
            if self.in_prefill and end == session.resume_point:
                session.received_at_resume[layer] = received.copy()

    def _count_window(
        self,
        session: WorkerSession,
        layer: int,
        start: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        lse: torch.Tensor,
        received: ReceivedAttention,
    ) -> None:
        first, window = received.first_block * self._layout.block_size, session.memory.retention.window
        for view in self._views(session, layer, queries, start, keys, first, window):
            found = token_importance(
                view.queries,
                view.keys,
                lse[:, view.rows],
                attention_scale(session, layer),
                view.band,
                start + view.rows.start,
                view.k_start,
                session.softcap,
            )
            received.add(view.k_start - first, found)

    def _seen(
        self,
        session: WorkerSession,
        layer: int,
        first_block: int,
        start: int,
        count: int,
        own: tuple[int, torch.Tensor] | None,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Which of `count` queries from `start` on see which K [Hkv, n, D], from `first_block` on."""
        end, size = start + count, self._layout.block_size
        if own is None:
            yield slice(0, count), self._window_keys(session, layer, first_block, end)
            return
        own_start, given = own
        stored = self._window_keys(session, layer, first_block, max(first_block, (end - 1) // size) * size)
        edges = [start, *range((start // size + 1) * size, end, size), end]
        for a, b in pairwise(edges):
            block = max(first_block, a // size) * size
            before = stored[:, : block - first_block * size]
            keys = torch.cat((before, given[:, block - own_start : b - own_start]), dim=1)
            yield slice(a - start, b - start), keys

    def _window_keys(self, session: WorkerSession, layer: int, first_block: int, end: int) -> torch.Tensor:
        """K [Hkv, n, D] of tokens [first_block * B, end): from slots, where generated tokens find them, or DRAM."""
        slots = session.cache.slots_of(layer, first_block, self._layout.num_blocks(end))
        if slots is None:
            return self._reader.rows(session.session_id, layer, first_block, end)[0]
        return self._reader.keys_of(slots)[:, : end - first_block * self._layout.block_size]

    def finish_prompt(self, session: WorkerSession, layer: int, queries: torch.Tensor) -> None:
        """Makes anchors of the prompt, or preselects from it, by its last `queries` [R, Hq, D], un-rotated."""
        size, end = self._layout.block_size, session.prompt_tokens
        with self._timer("importance"):
            received = self._from_all(session, layer, queries.transpose(0, 1), end)
            if self._type is AnchorType.DYNAMIC:
                self._rebuild_anchors(session, layer, 0, received[:, : end // size * size])
            if session.memory.selection.preselect is Preselect.PROMPT:
                self._preselect(session, layer, received, BlockRanges.at(end - 1, session.memory, size))

    def _preselect(
        self, session: WorkerSession, layer: int, received: torch.Tensor, span: BlockRanges
    ) -> None:
        """Keeps the blocks of most mass; the nearest quarters of both neighbours count too (ktransformers)."""
        tokens = received.mean(dim=0).view(-1, self._layout.block_size)
        quarter = self._layout.block_size // 4
        scores = tokens.sum(dim=1)
        scores[1:] += tokens[:-1, self._layout.block_size - quarter :].sum(dim=1)
        scores[:-1] += tokens[1:, :quarter].sum(dim=1)
        masses = scores[span.num_sinks : span.near_block].cpu().numpy()
        best = np.argsort(-masses, kind="stable")[: session.memory.selection.preselect_blocks]
        kept = np.sort(best + span.num_sinks).astype(np.int32)
        self._kv.preselect(session.session_id, layer, kept, span.near_block)

    def _rebuild_anchors(
        self, session: WorkerSession, layer: int, first: int, received: torch.Tensor
    ) -> None:
        """Sends the importance [Hkv, n * B] of blocks from `first` on."""
        heads, size = self._layout.num_kv_heads, self._layout.block_size
        blocks = received.view(heads, -1, size).transpose(0, 1).contiguous().cpu().numpy()
        for start in range(0, len(blocks), REANCHOR_BLOCKS):
            part = blocks[start : start + REANCHOR_BLOCKS]
            self._kv.rebuild_anchors(session.session_id, layer, first + start, part)
        if self._scorer is not None:
            self._scorer.invalidate(session.session_id, layer, first)

    def _from_all(self, session: WorkerSession, layer: int, queries: torch.Tensor, end: int) -> torch.Tensor:
        """[Hkv, n * B]: what all keys receive from `queries` [Hq, R, D] at the end; causal softmax per head.

        Two streaming passes: the sums of exponentials, then each key's share of them.
        """
        num_tokens = self._layout.num_blocks(end) * self._layout.block_size
        start, scale = end - queries.shape[1], attention_scale(session, layer)
        lse = torch.full(queries.shape[:2], -math.inf, device=self._reader.device)
        for view in self._views_of_all(session, layer, queries, end):
            rows, q_start = view.rows, start + view.rows.start
            part = attention_lse(
                view.queries, view.keys, scale, view.band, q_start, view.k_start, session.softcap
            )
            lse[:, rows] = torch.logaddexp(lse[:, rows], part)
        received = torch.zeros((self._layout.num_kv_heads, num_tokens), device=self._reader.device)
        for view in self._views_of_all(session, layer, queries, end):
            rows, q_start = view.rows, start + view.rows.start
            part = token_importance(
                view.queries,
                view.keys,
                lse[:, rows],
                scale,
                view.band,
                q_start,
                view.k_start,
                session.softcap,
            )
            received[:, view.k_start : view.k_start + part.shape[1]] += part
        return received

    def _views_of_all(
        self, session: WorkerSession, layer: int, queries: torch.Tensor, end: int
    ) -> Iterator[_View]:
        start, size = end - queries.shape[1], self._layout.block_size
        blocks = np.arange(self._layout.num_blocks(end), dtype=np.int32)
        for piece, keys, _ in self._reader.pieces(session.session_id, layer, blocks):
            yield from self._views(session, layer, queries, start, keys, int(piece[0]) * size, FOREVER)

    def _views(
        self,
        session: WorkerSession,
        layer: int,
        queries: torch.Tensor,
        start: int,
        keys: torch.Tensor,
        first: int,
        most: int,
    ) -> Iterator[_View]:
        """Keys [Hkv, n, D] from position `first` on, as the scheme shows them at distances below `most`."""
        rotations = session.rotations_of(layer)
        scheme, size = rotations.scheme, self._layout.block_size
        blocks = np.arange(first // size, self._layout.num_blocks(first + keys.shape[1]), dtype=np.int32)
        rotated = self._turned(keys, *(part[: keys.shape[1]] for part in rotations.keys(blocks)))
        for begin, end in scheme.groups(start, start + queries.shape[1]):
            rows = slice(begin - start, end - start)
            for part in scheme.parts(begin, end):
                low, high = part.clipped(begin, end)
                low, high = max(low, first), min(high, first + keys.shape[1])
                band = (part.least, min(part.most, most))
                if low >= high or band[0] >= band[1]:
                    continue
                turned = self._turned(queries[:, rows], *rotations.queries(part.variant, begin, end))
                seen = (rotated if scheme.rotates_keys(part.variant) else keys)[:, low - first : high - first]
                yield _View(turned, rows, seen, band, low)

    def _turned(
        self, vectors: torch.Tensor, cos: NDArray[np.float32], sin: NDArray[np.float32]
    ) -> torch.Tensor:
        turns = (torch.from_numpy(part).to(vectors.device) for part in (cos, sin))
        return rotate(vectors.float(), *turns)
