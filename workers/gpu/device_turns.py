"""Rotation tables of a session on its device, so that a decode step sends whole numbers alone.

An entry names its block's turn and the variant of the query by number; the kernel multiplies them. What travels in a
layer is then 24 bytes an entry instead of the sine and cosine of every channel, and the host computes no angle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.triton_support import has_triton, upload
from moorage.workers.gpu.schemes import Variant

if TYPE_CHECKING:
    from moorage.workers.gpu.positions import Entries, Rotations

Int32 = NDArray[np.int32]
Partial = tuple[torch.Tensor, torch.Tensor]
"""(out [Hq, D], lse [Hq]) in fp32."""


def uses_tables(device: torch.device) -> bool:
    """Whether attention of generated tokens runs from tables on `device`."""
    return device.type == "cuda" and has_triton()


class DeviceTurns:
    """Tables of one `Rotations`; see there for what the numbers mean."""

    def __init__(self, rotations: Rotations, device: torch.device) -> None:
        self._rotations = rotations
        self._device = device
        self._offsets = upload((rotations.offset_cos, rotations.offset_sin), device)
        self._bases: list[torch.Tensor] = []
        self._position = -1
        self._query_turns: list[torch.Tensor] = []

    def attend(
        self,
        query: torch.Tensor,
        blocks: torch.Tensor,
        slots: Int32,
        entries: Entries,
        position: int,
        scale: float,
    ) -> Partial:
        """As `kernels.block_attention.attend_blocks`, for `query` [Hq, D] at `position`; launches and returns."""
        from moorage.kernels.block_attention import triton
        from moorage.kernels.decode_inputs.triton import turn_queries

        count = len(slots)
        if not count:
            return torch.zeros_like(query, dtype=torch.float32), query.new_full(
                query.shape[:1], -torch.inf, dtype=torch.float32
            )
        if position != self._position:
            self._position, self._query_turns = position, self._turns_at(position)
        queries = turn_queries(query[None], *self._query_turns)[0]
        fields = np.stack(
            (slots, entries.begin, entries.end, entries.variant, entries.base, entries.rotate_keys),
            dtype=np.int32,
        )
        there, first = upload((fields, np.array([0, count], np.int32)), self._device)
        turns = triton.Turns(*self._base_tables(), *self._offsets)
        splits = triton.splits_for(count, blocks.shape[2], self._device)
        out, lse = triton.attend_lists(queries, blocks, there, first, turns, scale, 1, splits)
        return out[0], lse[0]

    def _turns_at(self, position: int) -> list[torch.Tensor]:
        """cos, sin [1, variants, rotary_dim / 2] of the query at `position`."""
        found = [self._rotations.queries(variant, position, position + 1) for variant in Variant]
        return upload([np.stack(parts, axis=1) for parts in zip(*found, strict=True)], self._device)

    def _base_tables(self) -> list[torch.Tensor]:
        """cos, sin [n, rotary_dim / 2] that turn a query back by the position of each block's first key."""
        bases = self._rotations.bases
        if not self._bases or len(self._bases[0]) < len(bases):
            self._bases = upload(
                (bases.real.astype(np.float32), -bases.imag.astype(np.float32)), self._device
            )
        return self._bases
