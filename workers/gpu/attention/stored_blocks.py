"""Attention of one generated token over blocks in memory of the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.block_attention import attend_blocks, entry_lse
from moorage.kernels.merge_lse import merge_lse
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.rotary import RotaryCache
from moorage.workers.gpu.positions.rotary_tables import DecodeQuery, RotaryTables
from moorage.workers.gpu.transfer.packed_copies import PackedOperand

Int32 = NDArray[np.int32]


class Partial(NamedTuple):
    """Attention over some of the keys, in fp32."""

    out: torch.Tensor
    """[Hq, D]"""
    lse: torch.Tensor
    """[Hq]"""


def merged(parts: list[Partial]) -> Partial:
    """Attention over the keys of all `parts`, at least one."""
    if len(parts) == 1:
        return parts[0]
    outs, lses = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    return Partial(*merge_lse(outs, lses))


@dataclass(frozen=True, slots=True)
class TokenQuery:
    """One session's query in one layer, or that of some of its heads."""

    step: DecodeStep
    layer: int
    query: DecodeQuery
    rotary: RotaryCache
    """The positions by which it sees keys: the layer's own, or those of an exact pass."""
    scale: float
    softcap: float
    """See WorkerSession."""
    kv_head: int | None = None
    """The one KV head whose query heads these are; None is all heads."""

    @property
    def position(self) -> int:
        """The position of the query."""
        return self.step.ranges.position

    @property
    def session_id(self) -> int:
        """The id of its session."""
        return self.step.session.session_id

    def of_heads(self, first: int, end: int, kv_head: int) -> TokenQuery:
        """Query heads [first, end), which are those of one KV head."""
        return replace(self, query=self.query.of_heads(first, end), kv_head=kv_head)

    def attend(self, memory: torch.Tensor, slots: Int32, blocks: AttentionBlocks) -> Partial:
        """Over `blocks`, block i of which lies in slots[i] of `memory` [n, 2, Hkv, B, D]."""
        if self.kv_head is not None:
            memory = memory[:, :, self.kv_head : self.kv_head + 1]
        tables = self.rotary.tables
        if tables is None:
            return Partial(*attend_blocks(self.query.plain, memory, **self._arguments(slots, blocks)))
        rotated = self._rotated(tables)
        return Partial(*tables.attend(rotated, memory, slots, blocks, self.scale, self.softcap))

    @property
    def attends_packed(self) -> bool:
        """Whether `attend_packed` runs here."""
        return self.rotary.tables is not None

    def attend_packed(
        self, operand: PackedOperand, stored: torch.Tensor, pages: Int32, blocks: AttentionBlocks
    ) -> Partial:
        """Over `blocks`, block i of which is stored[pages[i]], uint8 [n, block_bytes] on the device."""
        tables = self.rotary.tables
        assert tables is not None
        rotated = self._rotated(tables)
        return Partial(
            *tables.attend_packed(
                rotated, operand, stored, pages, blocks, self.scale, self.softcap, self.kv_head
            )
        )

    def _rotated(self, tables: RotaryTables) -> torch.Tensor:
        """[variants, Hq, D] of the query, as these tables see it."""
        rotated = self.query.turned
        if rotated is None or self.rotary is not self.step.session.rotations_of(self.layer):
            rotated = tables.turn(self.query.plain, self.position)
        return rotated

    def lse_by_block(self, memory: torch.Tensor, slots: Int32, blocks: AttentionBlocks) -> torch.Tensor:
        """[n, Hq] log-sum-exp of the logits of each of `blocks` alone."""
        if self.kv_head is not None:
            memory = memory[:, :, self.kv_head : self.kv_head + 1]
        return entry_lse(self.query.plain, memory, **self._arguments(slots, blocks))

    def _arguments(self, slots: Int32, blocks: AttentionBlocks) -> dict[str, Any]:
        """The arguments of the kernels in `kernels.block_attention`, beside the query and the memory."""
        blocks = self.rotary.with_angles(self.position, blocks)
        return {
            "slot": slots,
            "begin": blocks.begin,
            "end": blocks.end,
            "angle_cos": blocks.angle_cos,
            "angle_sin": blocks.angle_sin,
            "rotate_keys": blocks.rotate_keys,
            "offset_cos": self.rotary.offset_cos,
            "offset_sin": self.rotary.offset_sin,
            "scale": self.scale,
            "softcap": self.softcap,
        }
