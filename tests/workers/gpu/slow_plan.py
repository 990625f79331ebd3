"""The plans of InfLLM and ktransformers loop by loop, from their papers' definitions, in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.model.rope import rope_view
from moorage.workers.spec import AnchorType, HeadPool, MemorySpec, ModelSpec, Positions, Preselect

Array = NDArray[np.float64]


@dataclass
class SlowPlan:
    """Attention of one session; `attend` fits `Decoder.forward`, for the prompt at once and then token by token."""

    spec: ModelSpec
    memory: MemorySpec
    block_size: int
    anchor_type: AnchorType
    rotated_anchors: bool
    anchor_num: int
    repr_topk: int
    prompt_tokens: int
    keys: dict[int, Array] = field(default_factory=dict)
    values: dict[int, Array] = field(default_factory=dict)
    tail: dict[int, Array] = field(default_factory=dict)
    """By layer [Hkv, tokens]: attention from the prompt's last queries."""
    windowed: dict[int, Array] = field(default_factory=dict)
    """By layer [Hkv, tokens]: attention from queries that had the key in their window."""
    kept: dict[int, set[int]] = field(default_factory=dict)
    selected: list[tuple[int, int, list[list[int]]]] = field(default_factory=list)
    """(position, layer, ids of each selection) of each decode step that chose."""

    def __post_init__(self) -> None:
        self.inv_freq = rope_view(self.spec.rope, self.prompt_tokens).inv_freq.numpy()

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, Hq, D], k, v [T, Hkv, D], un-rotated -> [T, Hq, D]."""
        start = len(self.keys.get(layer, ()))
        for held, new in ((self.keys, k), (self.values, v)):
            rows = new.double().numpy()
            held[layer] = np.concatenate((held[layer], rows)) if layer in held else rows
        queries, end = q.double().numpy(), start + len(q)
        for received in (self.tail, self.windowed):
            old = received.get(layer, np.zeros((self.spec.num_kv_heads, 0)))
            received[layer] = np.pad(old, ((0, 0), (0, end - old.shape[1])))
        out = np.zeros_like(queries)
        for first, stop in self._runs(start, end):
            selection = self._select(layer, queries[first - start : stop - start], first)
            for i in range(first, stop):
                out[i - start] = self._one(layer, queries[i - start], i, first, selection)
        if start < self.prompt_tokens <= end:
            self._finish_prompt(layer, queries[-self.memory.selection.importance_queries :], end)
        return torch.from_numpy(out).float()

    def _runs(self, start: int, end: int) -> list[tuple[int, int]]:
        size = self.memory.selection.execution_block or end
        alone = self.prompt_tokens - self.memory.selection.last_tokens_alone
        cuts = [start, *(i for i in range(start + 1, end) if i % size == 0 or i >= alone), end]
        return list(pairwise(cuts))

    def _near_block(self, position: int) -> int:
        return max(0, position - self.memory.retention.window + 1) // self.block_size

    def _select(self, layer: int, queries: Array, first: int) -> list[list[int]]:
        """Ids of each selection for queries from position `first` on."""
        near = self._near_block(first)
        sinks = min(-(-self.memory.retention.sinks // self.block_size), near)
        decoding = first >= self.prompt_tokens
        mode, candidates = self.memory.selection.head_select_mode, list(range(sinks, near))
        num_selections = mode.num_selections(self.spec.num_heads, self.spec.num_kv_heads)
        exact = not decoding and not self.memory.selection.execution_block
        assert self.memory.selection.topk is not None
        if exact or len(candidates) <= self.memory.selection.topk:
            return [candidates] * num_selections
        if decoding and layer in self.kept:
            limit = self._near_block(self.prompt_tokens - 1)
            candidates = [b for b in candidates if b >= limit or b in self.kept[layer]]
        scoring = np.mean([self._scoring(query, first + i) for i, query in enumerate(queries)], axis=0)
        logits = np.array([self._logits(layer, scoring, block) for block in candidates])  # [n, Hq]
        groups = logits.reshape(len(candidates), num_selections, -1)
        pooled = groups.max(2) if self.memory.selection.head_pool is HeadPool.MAX else groups.mean(2)
        best = [
            np.argsort(-pooled[:, c], kind="stable")[: self.memory.selection.topk]
            for c in range(num_selections)
        ]
        ids = [sorted(candidates[i] for i in row) for row in best]
        if decoding:
            self.selected.append((first, layer, ids))
        return ids

    def _scoring(self, query: Array, position: int) -> Array:
        if self.rotated_anchors:
            return self._turn(query, position)
        if self.memory.positions.scheme is Positions.CLAMPED:
            return self._turn(query, self.memory.retention.window - 1)
        return query

    def _logits(self, layer: int, query: Array, block: int) -> Array:
        """[Hq]: the best of the block's anchors."""
        group = self.spec.group_size
        tokens = range(block * self.block_size, (block + 1) * self.block_size)
        found = np.zeros(len(query))
        for head in range(len(query)):
            kv = head // group
            keys = np.array(
                [
                    self._turn(self.keys[layer][j, kv], j)
                    if self.rotated_anchors
                    else self.keys[layer][j, kv]
                    for j in tokens
                ]
            )
            anchors = self._anchors(layer, kv, block, keys)
            found[head] = max(float(query[head] @ anchor) for anchor in anchors)
        return found

    def _anchors(self, layer: int, kv: int, block: int, keys: Array) -> list[Array]:
        generated = block >= self.prompt_tokens // self.block_size
        dynamic = self.anchor_type is AnchorType.DYNAMIC
        received = (self.tail if dynamic and not generated else self.windowed)[layer][kv]
        part = received[block * self.block_size : (block + 1) * self.block_size]
        num_top = self.anchor_num if dynamic else self.repr_topk
        ranked = np.argsort(-part, kind="stable")[:num_top]
        return [keys[rows].mean(0) for rows in np.split(ranked, self.anchor_num)]

    def _one(self, layer: int, query: Array, i: int, first: int, selection: list[list[int]]) -> Array:
        """The output [Hq, D] of the query at i, whose run begins at `first`."""
        heads, group, window = self.spec.num_heads, self.spec.group_size, self.memory.retention.window
        out, near = np.zeros_like(query), self._near_block(first)
        sinks = min(-(-self.memory.retention.sinks // self.block_size), near)
        for head in range(heads):
            kv, ids = head // group, selection[head * len(selection) // heads]
            blocks = {*range(sinks), *ids, *range(near, i // self.block_size + 1)}
            seen = [j for j in range(i + 1) if j // self.block_size in blocks]
            logits = np.array([self._logit(query[head], self.keys[layer][j, kv], i, j) for j in seen])
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            out[head] = weights @ self.values[layer][seen, kv]
            for j, weight in zip(seen, weights, strict=True):
                counts = self.anchor_type is AnchorType.REPR_TOPK or i >= self.prompt_tokens
                if counts and i - j < window:
                    self.windowed[layer][kv, j] += weight
        return out

    def _finish_prompt(self, layer: int, queries: Array, end: int) -> None:
        start = end - len(queries)
        for row, query in enumerate(queries):
            for head in range(self.spec.num_heads):
                i, kv = start + row, head // self.spec.group_size
                logits = np.array(
                    [self._logit(query[head], self.keys[layer][j, kv], i, j) for j in range(i + 1)]
                )
                weights = np.exp(logits - logits.max())
                self.tail[layer][kv, : i + 1] += weights / weights.sum()
        if self.memory.selection.preselect is Preselect.PROMPT:
            self._preselect(layer, end)

    def _preselect(self, layer: int, end: int) -> None:
        """Mass of [last quarter of the block before | block | first quarter of the next]."""
        size, mass = self.block_size, self.tail[layer].sum(0)
        near = self._near_block(end - 1)
        sinks = min(-(-self.memory.retention.sinks // size), near)
        scores = {
            b: mass[max(0, b * size - size // 4) : (b + 1) * size + size // 4].sum()
            for b in range(sinks, near)
        }
        ranked = sorted(scores, key=lambda b: -scores[b])
        self.kept[layer] = set(ranked[: self.memory.selection.preselect_blocks])

    def _logit(self, query: Array, key: Array, i: int, j: int) -> float:
        distance = i - j
        if self.memory.positions.scheme is Positions.CLAMPED:
            distance = min(distance, self.memory.retention.window - 1)
        return float(self._turn(query, distance) @ key) / math.sqrt(len(key))

    def _turn(self, vector: Array, position: int) -> Array:
        """vector [..., D] rotated by `position`."""
        cos, sin = np.cos(position * self.inv_freq), np.sin(position * self.inv_freq)
        half = len(cos)
        low, high, rest = vector[..., :half], vector[..., half : 2 * half], vector[..., 2 * half :]
        return np.concatenate((low * cos - high * sin, high * cos + low * sin, rest), axis=-1)
