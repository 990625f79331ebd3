"""Where queries see keys: the geometry of sinks, distant blocks and the local window, and its rotations.

For a query at position i with a window of W tokens and blocks of B tokens:

    block:   0 .. sinks | sinks .. near_block     | near_block .. i // B
             sinks      | candidates for a choice | near: the window, and the rest of its first block

Keys at distance < W are *in the window*. Under `rope` every key stands at its own position. Under `clamped`
(InfLLM) all keys at distance >= W are used un-rotated against a query at position W - 1, so that no distance
exceeds what the model was trained for; the first near block may hold keys of both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.spec import MemorySpec, Positions

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Span:
    """Block ranges around the query at `position` (or the first query of an execution block)."""

    position: int
    num_sinks: int
    """Sink blocks that lie before the near blocks."""
    near_block: int
    """First near block; candidates are blocks [num_sinks, near_block)."""

    @classmethod
    def at(cls, position: int, memory: MemorySpec, block_size: int) -> Span:
        """The span of the query at `position`."""
        near_block = max(0, position - memory.local_windows_len + 1) // block_size
        num_sinks = min(-(-memory.n_init // block_size), near_block)
        return cls(position, num_sinks, near_block)

    @property
    def num_candidates(self) -> int:
        """Blocks that selection chooses from."""
        return self.near_block - self.num_sinks

    @property
    def sinks(self) -> Int32:
        """Ids of the sink blocks."""
        return np.arange(self.num_sinks, dtype=np.int32)

    @property
    def candidates(self) -> Int32:
        """Ids of all candidates."""
        return np.arange(self.num_sinks, self.near_block, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Entries:
    """Rows of blocks that one query attends, as `kernels.block_attention` takes them; n entries."""

    blocks: Int32
    begin: Int32
    end: Int32
    angle_cos: Float32
    angle_sin: Float32
    rotate_keys: NDArray[np.uint8]

    def joined(self, other: Entries) -> Entries:
        """These entries, then the others."""
        return Entries(
            *(
                np.concatenate((getattr(self, name), getattr(other, name)))
                for name in ("blocks", "begin", "end", "angle_cos", "angle_sin", "rotate_keys")
            )
        )

    def with_blocks(self, blocks: Int32) -> Entries:
        """The same rows and rotations of other blocks, as many."""
        return Entries(blocks, self.begin, self.end, self.angle_cos, self.angle_sin, self.rotate_keys)


class Rotations:
    """Rotations of one session under one view of RoPE, in fp64 and re-based by block.

    A block's first position is subtracted from the query's before any rounding to fp32, and keys are rotated
    by their offset in the block, so position 4 000 000 is as exact as position 4.
    """

    def __init__(self, view: RopeView, memory: MemorySpec, block_size: int) -> None:
        self.view = view
        self.block_size = block_size
        self.clamped = memory.positions is Positions.CLAMPED
        self.window = memory.local_windows_len
        self._inv_freq = view.inv_freq.numpy()
        offsets = np.multiply.outer(np.arange(block_size), self._inv_freq)
        self.offset_cos = np.cos(offsets).astype(np.float32)
        self.offset_sin = np.sin(offsets).astype(np.float32)
        self._blocks = np.ones((1, len(self._inv_freq)), np.complex128)
        self._clamp = _split(np.exp(1j * (self.window - 1) * self._inv_freq)[None])

    @property
    def clamp(self) -> tuple[Float32, Float32]:
        """(cos, sin), each [1, rotary_dim / 2], of the clamped query's one position."""
        return self._clamp

    def relative(self, position: int, blocks: Int32) -> tuple[Float32, Float32]:
        """(cos, sin), each [n, rotary_dim / 2], that bring a query to `position - first position of block`."""
        if len(blocks) and blocks[-1] >= len(self._blocks):
            self._extend(int(blocks[-1]) + 1)
        return _split(np.exp(1j * position * self._inv_freq) * self._blocks[blocks])

    def _extend(self, num_blocks: int) -> None:
        first = np.arange(max(num_blocks, 2 * len(self._blocks))) * self.block_size
        self._blocks = np.exp(-1j * np.multiply.outer(first, self._inv_freq))

    def absolute(self, first: int, count: int) -> tuple[Float32, Float32]:
        """(cos, sin), each [count, rotary_dim / 2], of positions [first, first + count)."""
        angles = np.multiply.outer(np.arange(first, first + count, dtype=np.float64), self._inv_freq)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def distant_entries(self, span: Span, blocks: Int32) -> Entries:
        """Whole blocks before the near ones, as the query of `span` sees them."""
        count = len(blocks)
        if self.clamped:
            cos, sin = (np.repeat(part, count, axis=0) for part in self._clamp)
        else:
            cos, sin = self.relative(span.position, blocks)
        return Entries(
            blocks,
            np.zeros(count, np.int32),
            np.full(count, self.block_size, np.int32),
            cos,
            sin,
            np.full(count, not self.clamped, np.uint8),
        )

    def near_entries(self, span: Span) -> Entries:
        """The near blocks up to the query itself; under clamped positions the first may appear twice."""
        last_block = span.position // self.block_size
        blocks = np.arange(span.near_block, last_block + 1, dtype=np.int32)
        begin = np.zeros(len(blocks), np.int32)
        end = np.full(len(blocks), self.block_size, np.int32)
        end[-1] = span.position - last_block * self.block_size + 1
        aged = max(0, span.position - self.window + 1) - span.near_block * self.block_size
        cos, sin = self.relative(span.position, blocks)
        if not self.clamped or aged == 0:
            return Entries(blocks, begin, end, cos, sin, np.ones(len(blocks), np.uint8))
        begin[0] = aged
        window = Entries(blocks, begin, end, cos, sin, np.ones(len(blocks), np.uint8))
        out_of_window = Entries(
            blocks[:1],
            np.zeros(1, np.int32),
            np.full(1, aged, np.int32),
            *self._clamp,
            np.zeros(1, np.uint8),
        )
        return out_of_window.joined(window)


def _split(values: NDArray[np.complex128]) -> tuple[Float32, Float32]:
    return values.real.astype(np.float32), values.imag.astype(np.float32)
