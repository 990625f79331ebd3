"""Rotation tables of a session on its device, so that a decode step sends whole numbers alone.

An entry names its block's turn and the variant of the query by number; the kernel multiplies them. What travels in a
layer is then 24 bytes an entry instead of the sine and cosine of every channel, and the host computes no angle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.triton_support import has_triton, upload
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.schemes import Variant

if TYPE_CHECKING:
    from moorage.kernels.attention_steps.triton import Turns
    from moorage.kernels.packed_blocks.triton import DeviceTables

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Partial = tuple[torch.Tensor, torch.Tensor]
"""(out [Hq, D], lse [Hq]) in fp32."""


def uses_tables(device: torch.device) -> bool:
    """Whether attention of generated tokens runs from tables on `device`."""
    return device.type == "cuda" and has_triton()


@dataclass(slots=True)
class DecodeQuery:
    """A generated token's query in one layer."""

    plain: torch.Tensor
    """[Hq, D] in fp32, un-rotated."""
    turned: torch.Tensor | None = None
    """[variants, Hq, D] as the session's own rotations see it, where attention runs from tables."""
    copied: Callable[[], torch.Tensor] | None = None
    """Waits for its copy [Hq, D] on the host, which was begun when it was computed."""

    def on_host(self) -> torch.Tensor:
        """[Hq, D] on the host, un-rotated, in the model's type or in fp32."""
        return self.plain.cpu() if self.copied is None else self.copied()

    def of_heads(self, first: int, end: int) -> DecodeQuery:
        """The query of query heads [first, end)."""
        turned = None if self.turned is None else self.turned[:, first:end].contiguous()
        return DecodeQuery(self.plain[first:end], turned, lambda: self.on_host()[first:end])


class BlockRotations(Protocol):
    """What the tables are made of; `positions.RotaryCache` says what the numbers mean."""

    offset_cos: Float32
    offset_sin: Float32
    bases: NDArray[np.complex128]

    def queries(self, variant: Variant, first: int, end: int) -> tuple[Float32, Float32]:
        """(cos, sin), each [end - first, rotary_dim / 2], of queries at positions [first, end)."""


class RotaryTables:
    """Tables of one session's rotations."""

    def __init__(self, rotations: BlockRotations, device: torch.device) -> None:
        self._rotations = rotations
        self._device = device
        self._offsets = upload((rotations.offset_cos, rotations.offset_sin), device)
        self._bases: list[torch.Tensor] = []
        self._position = -1
        self._turns: list[torch.Tensor] = []

    def start(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        position: int,
        slots: torch.Tensor,
        slot: int,
        row: int,
    ) -> tuple[DecodeQuery, torch.Tensor]:
        """The query [Hq, D] at `position`, and K and V [2, Hkv, D] as stored, which go to a row of a slot as well.

        All by one launch; a `slot` of -1 is none.
        """
        from moorage.kernels.decode_inputs.triton import decode_inputs

        cos, sin = self._query_turns(position)
        plain, turned, stored = decode_inputs(query, key, value, cos, sin, slots, slot, row)
        return DecodeQuery(plain, turned), stored

    def turn(self, query: torch.Tensor, position: int) -> torch.Tensor:
        """[variants, Hq, D] in fp32 of `query` [Hq, D] at `position`."""
        from moorage.kernels.decode_inputs.triton import turn_query

        cos, sin = self._query_turns(position)
        return turn_query(query, cos, sin)

    def attend(
        self,
        queries: torch.Tensor,
        blocks: torch.Tensor,
        slots: Int32,
        entries: AttentionBlocks,
        scale: float,
        softcap: float = 0.0,
    ) -> Partial:
        """Launches what `kernels.block_attention.attend_blocks` computes, for `queries` that `turn` made."""
        from moorage.kernels.block_attention.triton import attend_lists

        if not len(slots):
            return _nothing(queries)
        lists, splits = self._lists(slots, entries, blocks.shape[2])
        out, lse = attend_lists(queries, blocks, *lists, scale, 1, splits, softcap=softcap)
        return out[0], lse[0]

    def attend_packed(
        self,
        queries: torch.Tensor,
        packed: tuple[PackedLayout, DeviceTables],
        stored: torch.Tensor,
        pages: Int32,
        entries: AttentionBlocks,
        scale: float,
        softcap: float = 0.0,
        kv_head: int | None = None,
    ) -> Partial:
        """`attend` over packed blocks, uint8 [n, block_bytes] on the device, which lie on `pages` there.

        The queries are those of `kv_head` alone, where it is given.
        """
        from moorage.kernels.packed_attention.triton import attend_packed_lists

        if not len(pages):
            return _nothing(queries)
        layout, tables = packed
        heads = layout.num_kv_heads if kv_head is None else 1
        lists, splits = self._lists(pages, entries, heads)
        out, lse = attend_packed_lists(
            layout, tables, queries, stored, *lists, scale, 1, splits, kv_head=kv_head, softcap=softcap
        )
        return out[0], lse[0]

    def _lists(
        self, slots: Int32, entries: AttentionBlocks, num_kv_heads: int
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, Turns], int]:
        """((entries, where their only list begins and ends, tables), shares of it) for `attend_lists`."""
        from moorage.kernels.attention_steps.triton import Turns, splits_for

        fields = np.stack(
            (slots, entries.begin, entries.end, entries.variant, entries.base, entries.rotate_keys),
            dtype=np.int32,
        )
        there, first = upload((fields, np.array([0, len(slots)], np.int32)), self._device)
        turns = Turns(*self._base_tables(), *self._offsets)
        return (there, first, turns), splits_for(len(slots), num_kv_heads, self._device)

    def _query_turns(self, position: int) -> list[torch.Tensor]:
        """cos, sin [variants, rotary_dim / 2] of the query at `position`."""
        if position != self._position:
            found = [self._rotations.queries(variant, position, position + 1) for variant in Variant]
            parts = [np.concatenate(each) for each in zip(*found, strict=True)]
            self._position, self._turns = position, upload(parts, self._device)
        return self._turns

    def _base_tables(self) -> list[torch.Tensor]:
        """cos, sin [n, rotary_dim / 2] that turn a query back by the position of each block's first key."""
        bases = self._rotations.bases
        if not self._bases or len(self._bases[0]) < len(bases):
            self._bases = upload(
                (bases.real.astype(np.float32), -bases.imag.astype(np.float32)), self._device
            )
        return self._bases


def _nothing(queries: torch.Tensor) -> Partial:
    """Attention of [variants, Hq, D] over no key."""
    return torch.zeros_like(queries[0]), queries.new_full(queries.shape[1:2], -torch.inf)
