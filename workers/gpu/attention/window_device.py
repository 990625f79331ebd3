"""Generated tokens in sliding-window layers on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from moorage.kernels.block_attention import gpu
from moorage.kernels.triton_support import upload
from moorage.workers.gpu.attention.window_decode import WindowDecode, cos_sin_of, first_seen, ring_of
from moorage.workers.gpu.engine.batch import DecodeBatch
from moorage.workers.gpu.model.rope import rotate
from moorage.workers.gpu.positions import rotary_tables
from moorage.workers.spec import RING_BLOCK


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """What the layers of one kind share in a step."""

    cos: torch.Tensor
    """[N, 1, rotary_dim / 2], as is `sin`."""
    sin: torch.Tensor
    entries: torch.Tensor
    """int32 [6, n]: blocks of all sessions' windows, as `attend_lists` takes them."""
    first: torch.Tensor
    """int32 [N + 1]: where the entries of each session begin."""
    most_entries: int
    """Most entries of one session."""
    scale: float


@dataclass(frozen=True, slots=True)
class DeviceWindowStep:
    """What the layers of one step share, on a GPU."""

    batch: DecodeBatch
    pages: torch.Tensor
    """int64 [N]: of the new rows."""
    rows: torch.Tensor
    """int64 [N], within their blocks."""
    kinds: list[DeviceKind]


class DeviceWindowDecode(WindowDecode[DeviceWindowStep]):
    """One launch a layer for all sessions, over blocks in the rings. Nothing waits for the device."""

    def prepare(self, batch: DecodeBatch) -> DeviceWindowStep:
        """See AttentionBackend."""
        positions = np.array([step.ranges.position for step in batch.steps], np.int64)
        blocks = positions[:, None] // RING_BLOCK
        pages = [self._rings.pages(ring_of(step), own) for step, own in zip(batch.steps, blocks, strict=True)]
        page_ids, rows = upload((np.concatenate(pages), positions % RING_BLOCK), self._rings.device)
        kinds = [self._kind(batch, kind) for kind in range(len(self._layers.kinds))]
        return DeviceWindowStep(batch, page_ids, rows, kinds)

    def _kind(self, batch: DecodeBatch, at: int) -> DeviceKind:
        kind, found = self._layers.kinds[at], []
        for row, step in enumerate(batch.steps):
            position = step.ranges.position
            low = first_seen(position, kind)
            blocks = np.arange(low // RING_BLOCK, position // RING_BLOCK + 1)
            begin = np.maximum(low - blocks * RING_BLOCK, 0)
            end = np.minimum(position + 1 - blocks * RING_BLOCK, RING_BLOCK)
            none = np.zeros_like(blocks)
            found.append(
                np.stack((self._rings.pages(ring_of(step), blocks), begin, end, none + row, none, none))
            )
        first = np.cumsum([0, *(each.shape[1] for each in found)], dtype=np.int32)
        fields = np.concatenate(found, axis=1).astype(np.int32)
        cos, sin, entries, bounds = upload((*cos_sin_of(batch.steps, at), fields, first), self._rings.device)
        most = int(np.diff(first).max())
        # No length changes it, so that all sessions of a model have the same.
        scale = self.scale_of(ring_of(batch.steps[0]), at)
        return DeviceKind(cos[:, None], sin[:, None], entries, bounds, most, scale)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: DeviceWindowStep
    ) -> torch.Tensor:
        """See AttentionBackend."""
        kind, memory = metadata.kinds[self._layers.kind_of[layer]], self._rings.layers[layer]
        with self._timer("attend"):
            key = rotate(k, kind.cos, kind.sin)
            memory[metadata.pages, :, :, metadata.rows] = torch.stack((key, v), dim=1).to(memory.dtype)
            found = self._attend(rotate(q.float(), kind.cos, kind.sin), memory, kind)
            return self._sinks.weigh(layer, *found)

    def _attend(
        self, queries: torch.Tensor, memory: torch.Tensor, kind: DeviceKind
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(out [N, Hq, D], lse [N, Hq]) in fp32."""
        if not rotary_tables.uses_tables(memory.device):
            return self._attend_plainly(queries, memory, kind)
        from moorage.kernels.block_attention import triton

        none, count = queries.new_empty((1, 0)), len(queries)
        splits = triton.splits_for(kind.most_entries, count * memory.shape[2], queries.device)
        tables = triton.Turns(none, none, none, none)
        return triton.attend_lists(
            queries.contiguous(),
            memory,
            kind.entries,
            kind.first,
            tables,
            kind.scale,
            count,
            splits,
            softcap=self._softcap,
        )

    def _attend_plainly(
        self, queries: torch.Tensor, memory: torch.Tensor, kind: DeviceKind
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`attend_lists` in plain torch operations, session by session."""
        fields, bounds = kind.entries.cpu().numpy(), kind.first.tolist()
        found = []
        for row, (begin, end) in enumerate(pairwise(bounds)):
            slot, low, high = fields[:3, begin:end]
            none = np.zeros((end - begin, 0), np.float32)
            rotations = none, none, np.zeros(end - begin, np.uint8), *np.zeros((2, RING_BLOCK, 0), np.float32)
            found.append(
                gpu.attend_blocks(
                    queries[row], memory, (slot, low, high), rotations, kind.scale, self._softcap
                )
            )
        outs, lses = zip(*found, strict=True)
        return torch.stack(outs), torch.stack(lses)
