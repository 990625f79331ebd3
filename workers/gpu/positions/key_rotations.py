"""Where one query sees single distant keys, and by what they are rotated: tables of a rotary cache on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.triton_support import upload
from moorage.workers.gpu.model.rope import rotate
from moorage.workers.gpu.positions.rotary import RotaryCache

Int32 = NDArray[np.int32]


class SeenKeys(NamedTuple):
    """Some keys as one query sees them, as `kernels.key_attention.key_logits` takes them."""

    queries: torch.Tensor
    """[V, Hq, D] in fp32: the query as each variant that meets one of the keys."""
    variant: torch.Tensor
    """int64 [Hkv, n]: number of the variant that a key meets."""
    turns: torch.Tensor | None
    """complex64 [Hkv, n, rotary_dim / 2]; None where keys are used as stored."""
    is_there: torch.Tensor
    """bool [Hkv, n]: False where the position is -1."""


@dataclass(slots=True)
class _Tables:
    """Turns of one rotary cache on the device, complex64 [n, rotary_dim / 2]."""

    offsets: torch.Tensor
    """Rotations by place in a block."""
    bases: torch.Tensor
    """Rotations of the first positions of blocks."""


class KeyRotations:
    """Rotations of keys one by one, on one device.

    A key's rotation is the product of those of its block's first position and of its place in the block. Each is
    rounded to fp32 from fp64, so that no position is too large.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables: WeakKeyDictionary[RotaryCache, _Tables] = WeakKeyDictionary()

    def seen(self, rotary: RotaryCache, query: torch.Tensor, position: int, positions: Int32) -> SeenKeys:
        """Keys at `positions` [Hkv, n], each before the query's or -1, for `query` [Hq, D] in fp32, un-rotated."""
        scheme, standing = rotary.scheme, np.maximum(positions, 0)
        variant, rotated = np.zeros(positions.shape, np.int32), np.zeros(positions.shape, np.bool_)
        queries: list[torch.Tensor] = []
        for part in scheme.parts(position, position + 1):
            low, high = part.clipped(position, position + 1)
            met = (low <= standing) & (standing < high)
            if met.any():
                variant[met], rotated[met] = len(queries), scheme.rotates_keys(part.variant)
                cos, sin = upload(rotary.queries(part.variant, position, position + 1), self._device)
                queries.append(rotate(query[:, None], cos, sin)[:, 0])
        at = np.where(rotated, scheme.key_positions(standing.astype(np.int64)), 0)
        blocks, offsets = np.divmod(at, rotary.block_size)
        fields = np.stack((variant, blocks, offsets, positions >= 0)).astype(np.int32)
        numbers = upload([fields], self._device)[0].long()
        turns = None
        if rotated.any():
            tables = self._tables_of(rotary, int(blocks.max()))
            turns = tables.bases[numbers[1]] * tables.offsets[numbers[2]]
        return SeenKeys(torch.stack(queries or [query]), numbers[0], turns, numbers[3].bool())

    def _tables_of(self, rotary: RotaryCache, row: int) -> _Tables:
        """The tables, of which `bases` has a row of this number."""
        tables = self._tables.get(rotary)
        if tables is None or len(tables.bases) <= row:
            offsets = rotary.offset_cos + 1j * rotary.offset_sin
            turns = upload([_single(offsets), _single(rotary.bases_until(row))], self._device)
            tables = self._tables[rotary] = _Tables(*turns)
        return tables


def _single(turns: NDArray[np.complexfloating]) -> NDArray[np.complex64]:
    return turns.astype(np.complex64)
