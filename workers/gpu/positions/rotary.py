"""Where queries see keys: the geometry of sinks, distant blocks and the local window, and its rotations.

For a query at position i with a window of W tokens and blocks of B tokens:

    block:   0 .. sinks | sinks .. near_block     | near_block .. i // B
             sinks      | candidates for a selection | near: the window, and the rest of its first block

Keys at distance < W are *in the window*. What position a query and a key take is the scheme's (`schemes.py`):
each block has a position base and a stride of 0 or 1, and meets one of at most three variants of the query.
A block that two parts of a scheme cut, such as the first near block under clamped positions, has two entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.gpu.positions import rotary_tables
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.schemes import Variant, scheme_of
from moorage.workers.sizes import near_block, sink_blocks
from moorage.workers.spec import MemorySpec, Positions

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BlockRanges:
    """Block ranges around the query at `position` (or the first query of an execution block)."""

    position: int
    num_sinks: int
    """Sink blocks that lie before the near blocks."""
    near_block: int
    """First near block; candidates are blocks [num_sinks, near_block)."""

    @classmethod
    def at(cls, position: int, memory: MemorySpec, block_size: int) -> BlockRanges:
        """The span of the query at `position`."""
        near = near_block(position, memory, block_size)
        return cls(position, min(sink_blocks(memory, block_size), near), near)

    @property
    def num_candidates(self) -> int:
        """The candidates of a selection."""
        return self.near_block - self.num_sinks

    @property
    def sinks(self) -> Int32:
        """Ids of the sink blocks."""
        return np.arange(self.num_sinks, dtype=np.int32)

    @property
    def candidates(self) -> Int32:
        """Ids of all candidates."""
        return np.arange(self.num_sinks, self.near_block, dtype=np.int32)


class RotaryCache:
    """Rotations of one session under one view of RoPE, in fp64 and re-based by block.

    A block's first position is subtracted from the query's before any rounding to fp32, and keys are rotated
    by their offset in the block, so position 4 000 000 is as exact as position 4.
    """

    def __init__(
        self, view: RopeView, memory: MemorySpec, block_size: int, device: torch.device | None = None
    ) -> None:
        """`device` is where generated tokens attend; None is this host."""
        self.view = view
        self.memory = memory
        self.block_size = block_size
        self.scheme = scheme_of(memory, block_size)
        self.clamped = memory.positions.scheme is Positions.CLAMPED
        self._inv_freq = view.inv_freq.numpy()
        self._offsets = self._turns(np.arange(block_size))
        self.offset_cos, self.offset_sin = _split(self._offsets)
        self.bases = self._turns(np.zeros(1, np.int64))
        """[n, rotary_dim / 2] turns of position i * block_size; it grows on demand."""
        self._near: tuple[Float32, Float32] | None = None
        self._clamp = _split(self._turns(np.array([memory.retention.window - 1])))
        self._device = device
        on_device = device is not None and rotary_tables.uses_tables(device)
        self.tables = rotary_tables.RotaryTables(self, device) if device is not None and on_device else None

    def exact(self) -> RotaryCache | None:
        """The same positions over every key, which recall is measured against; themselves unless topk is 0.

        None for the rolling window, whose positions leave none for a key beyond it.
        """
        if self.memory.selection.topk != 0:
            return self
        if self.memory.positions.scheme is Positions.ROLLING:
            return None
        return RotaryCache(self.view, self.memory.replace(topk=None), self.block_size, self._device)

    @property
    def clamp(self) -> tuple[Float32, Float32]:
        """(cos, sin), each [1, rotary_dim / 2], of the clamped query's one position."""
        return self._clamp

    def queries(self, variant: Variant, first: int, end: int) -> tuple[Float32, Float32]:
        """(cos, sin), each [n, rotary_dim / 2], of one variant of the queries at [first, end)."""
        return _split(self._turns(self.scheme.query_positions(variant, np.arange(first, end))))

    def keys(self, blocks: Int32) -> tuple[Float32, Float32]:
        """(cos, sin), each [n * block_size, rotary_dim / 2], of all keys of `blocks`."""
        rows = self._base_rows(blocks)
        turns = self.bases[rows][:, None] * self._offsets
        return _split(turns.reshape(-1, turns.shape[-1]))

    def entries(self, position: int, blocks: Int32) -> AttentionBlocks:
        """What the query at `position` sees of `blocks`, in the order of the scheme's parts."""
        found = [self._empty]
        first = blocks.astype(np.int64) * self.block_size
        for part in self.scheme.parts(position, position + 1):
            low, high = part.clipped(position, position + 1)
            begin, end = (np.clip(bound - first, 0, self.block_size) for bound in (low, high))
            seen = begin < end
            if not seen.any():
                continue
            rotated = self.scheme.rotates_keys(part.variant)
            count = int(np.count_nonzero(seen))
            base = self._base_rows(blocks[seen]) if rotated else np.zeros(count, np.int32)
            found.append(
                AttentionBlocks(
                    blocks[seen],
                    begin[seen].astype(np.int32),
                    end[seen].astype(np.int32),
                    *(
                        self._angles(position, part.variant, base)
                        if self.tables is None
                        else self._no_angles(count)
                    ),
                    np.full(count, rotated, np.uint8),
                    np.full(count, part.variant, np.int32),
                    base,
                )
            )
        return AttentionBlocks.of(found)

    def with_angles(self, position: int, entries: AttentionBlocks) -> AttentionBlocks:
        """Entries of the query at `position`, with the angles that a device would multiply itself."""
        if self.tables is None:
            return entries
        cos, sin = np.empty((2, len(entries.blocks), len(self._inv_freq)), np.float32)
        for variant in np.unique(entries.variant):
            met = entries.variant == variant
            cos[met], sin[met] = self._angles(position, Variant(int(variant)), entries.base[met])
        return entries._replace(angle_cos=cos, angle_sin=sin)

    def _angles(self, position: int, variant: Variant, base: Int32) -> tuple[Float32, Float32]:
        turn = self._turns(self.scheme.query_positions(variant, np.array([position])))
        return _split(turn * self.bases[base].conj())

    def _no_angles(self, count: int) -> tuple[Float32, Float32]:
        none = np.empty((count, 0), np.float32)
        return none, none

    def distant_blocks(self, span: BlockRanges, blocks: Int32) -> AttentionBlocks:
        """Blocks before the near ones, as the query of `span` sees them."""
        return self.entries(span.position, blocks)

    def window_blocks(self, span: BlockRanges) -> AttentionBlocks:
        """The near blocks up to the query itself."""
        last_block = span.position // self.block_size
        return self.entries(span.position, np.arange(span.near_block, last_block + 1, dtype=np.int32))

    def clamped_blocks(self, span: BlockRanges, num_distant: int) -> AttentionBlocks:
        """Some whole distant blocks, whose ids are left out (-1), then sinks and near blocks, as `entries` has them.

        Under clamped positions all angles are known beforehand: of distances in the window, and the clamped one.
        """
        size, window = self.block_size, self.memory.retention.window
        back = span.position - span.near_block * size
        num_near, cut = back // size + 1, max(0, back - window + 1)
        far = num_distant + span.num_sinks + (cut > 0)
        total = far + num_near
        blocks = np.full(total, -1, np.int32)
        blocks[num_distant : num_distant + span.num_sinks] = np.arange(span.num_sinks, dtype=np.int32)
        blocks[num_distant + span.num_sinks : far] = span.near_block
        blocks[far:] = np.arange(span.near_block, span.near_block + num_near, dtype=np.int32)
        begin, end = np.zeros(total, np.int32), np.full(total, size, np.int32)
        if cut:
            end[far - 1], begin[far] = cut, cut
        end[-1] = back % size + 1
        angles = np.empty((2, total, 0 if self.tables else len(self._inv_freq)), np.float32)
        if self.tables is None:
            for into, clamped, near in zip(angles, self._clamp, self._near_turns(), strict=True):
                into[:far], into[far:] = clamped, near[back::-size]
        rotate_keys = np.ones(total, np.uint8)
        rotate_keys[:far] = 0
        variant, base = np.full(total, Variant.NEAR, np.int32), np.zeros(total, np.int32)
        variant[:far] = Variant.FAR
        if self.tables is not None:
            base[far:] = self._base_rows(blocks[far:])
        return AttentionBlocks(blocks, begin, end, angles[0], angles[1], rotate_keys, variant, base)

    def query_turn(self, variant: Variant, position: int) -> NDArray[np.complex128]:
        """[rotary_dim / 2]: e^(i * angle) of one variant of the query at `position`."""
        seen = self.scheme.query_positions(variant, np.array([position]))
        block, row = divmod(int(seen[0]), self.block_size)
        self._grow(block)
        turn: NDArray[np.complex128] = self.bases[block] * self._offsets[row]
        return turn

    def bases_until(self, block: int) -> NDArray[np.complex128]:
        """`bases` with the rows that keys of blocks up to `block` need."""
        period = self.scheme.period // self.block_size
        self._grow(min(block, period - 1) if period else block)
        return self.bases

    def _near_turns(self) -> tuple[Float32, Float32]:
        """(cos, sin), each [window + block size, rotary_dim / 2], of queries by distance from a block's start."""
        if self._near is None:
            self._near = _split(self._turns(np.arange(self.memory.retention.window + self.block_size)))
        return self._near

    def _turns(self, positions: NDArray[np.int64]) -> NDArray[np.complex128]:
        angles = np.multiply.outer(positions, self._inv_freq)
        turns: NDArray[np.complex128] = np.exp(1j * angles)
        return turns

    def _base_rows(self, blocks: Int32) -> Int32:
        """Rows of `bases` at which the first keys of `blocks` stand."""
        first = self.scheme.key_positions(blocks.astype(np.int64) * self.block_size)
        rows = (first // self.block_size).astype(np.int32)
        self._grow(int(rows.max(initial=0)))
        return rows

    def _grow(self, row: int) -> None:
        """Makes `bases` long enough to have a row of this number."""
        if row >= len(self.bases):
            self.bases = self._turns(np.arange(max(row + 1, 2 * len(self.bases))) * self.block_size)

    @property
    def _empty(self) -> AttentionBlocks:
        none = np.empty(0, np.int32)
        angles = np.empty((0, 0 if self.tables else len(self._inv_freq)), np.float32)
        return AttentionBlocks(none, none, none, angles, angles, np.empty(0, np.uint8), none, none)


def _split(values: NDArray[np.complex128]) -> tuple[Float32, Float32]:
    return values.real.astype(np.float32), values.imag.astype(np.float32)
