"""Keys and values of sliding-window layers: rings of blocks, one for each session, on the worker's device.

A ring holds the last tokens of a session: token t lies in row t % RING_BLOCK of block t // RING_BLOCK, and block b on
page b % num_blocks of the ring. Keys are stored rotated, since their rotary embedding never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.model.rope import RopeView, rope_view
from moorage.workers.gpu.transfer.host_copy import on_device
from moorage.workers.spec import RING_BLOCK, ModelSpec, RopeSpec, WindowLayout

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WindowKind:
    """What window layers may have in common: how far they see, and how they rotate."""

    window: int
    rope: RopeSpec | None
    """None attends without positions."""

    def view(self, seq_len: int) -> RopeView:
        """Angles of a session that was opened for `seq_len` tokens."""
        return (
            RopeView(torch.zeros(0, dtype=torch.float64), 1.0)
            if self.rope is None
            else rope_view(self.rope, seq_len)
        )


@dataclass(frozen=True, slots=True)
class WindowLayers:
    """The window layers of a model."""

    kinds: tuple[WindowKind, ...]
    kind_of: tuple[int, ...]
    """The place of each window layer in `kinds`."""

    @classmethod
    def of(cls, model: ModelSpec) -> WindowLayers:
        """The layers of `model` that attend a window, in their order."""
        found = []
        for index in model.window_layers:
            layer = model.layer(index)
            assert layer.window is not None
            rope = layer.rope or model.rope
            found.append(WindowKind(layer.window, rope if layer.rotates and rope.rotary_dim else None))
        kinds = tuple(dict.fromkeys(found))
        return cls(kinds, tuple(kinds.index(kind) for kind in found))

    def views(self, seq_len: int) -> tuple[RopeView, ...]:
        """Angles of each kind for a session that was opened for `seq_len` tokens."""
        return tuple(kind.view(seq_len) for kind in self.kinds)


@dataclass(slots=True)
class Ring:
    """The ring of one session."""

    index: int
    """Its place among the rings of the worker."""
    views: tuple[RopeView, ...]
    """The views by kind of window layers."""
    first_held: int = 0
    """The first token that it holds; those before are overwritten."""


class WindowRings:
    """All rings of a worker; `layers[i]` is [pages, 2, Hkv, B, D], that of window layer i."""

    def __init__(
        self, layout: WindowLayout, layers: WindowLayers, num_rings: int, device: torch.device
    ) -> None:
        self.layout, self.layers_of, self.device = layout, layers, device
        self.dtype: torch.dtype = getattr(torch, layout.element)
        pages = num_rings * layout.num_blocks
        self.layers = torch.empty(
            (layout.num_layers, pages, 2, *layout.shape), dtype=self.dtype, device=device
        )
        self.num_rings = num_rings if layout.num_layers else 0
        self._free = list(range(self.num_rings))[::-1]

    @property
    def num_free(self) -> int:
        """Rings that no session holds."""
        return len(self._free)

    def allocate(self, seq_len: int) -> Ring | None:
        """A ring for a session that is opened for `seq_len` tokens; None where no layer has a window.

        Raises ResourceExhausted when all are held.
        """
        if not self.layout.num_layers:
            return None
        if not self._free:
            raise ResourceExhausted(
                f"all {self.num_rings} rings of sliding-window layers are held by sessions; lower "
                "server.max_running, or end a session"
            )
        return Ring(self._free.pop(), self.layers_of.views(seq_len))

    def free(self, ring: Ring | None) -> None:
        """Returns a session's ring."""
        if ring is not None:
            self._free.append(ring.index)

    def beside(self, held: list[Ring | None]) -> None:
        """Makes the free rings anew: all that are not `held`."""
        taken = {ring.index for ring in held if ring is not None}
        self._free = [index for index in range(self.num_rings) if index not in taken][::-1]

    def pages(self, ring: Ring, blocks: Int64) -> Int64:
        """Pages on which `blocks` of a session lie."""
        return ring.index * self.layout.num_blocks + blocks % self.layout.num_blocks

    def rows(self, ring: Ring, begin: int, end: int) -> RingRows:
        """Where tokens [begin, end) of a session lie, for all layers."""
        blocks = np.arange(begin // RING_BLOCK, -(-end // RING_BLOCK))
        first = begin - begin // RING_BLOCK * RING_BLOCK
        pages = on_device(self.pages(ring, blocks).tolist(), torch.long, self.device)
        return RingRows(pages, first, first + end - begin)

    def read(self, layer: int, rows: RingRows) -> torch.Tensor:
        """Keys and values [2, Hkv, n, D] of some rows."""
        blocks = self.layers[layer].index_select(0, rows.pages)
        return blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, rows.begin : rows.end]

    def write(self, ring: Ring, start: int, layers: list[torch.Tensor]) -> None:
        """Writes keys and values [2, Hkv, n, D] of each layer from token `start` of a session on."""
        count = layers[0].shape[2]
        places = np.arange(start, start + count)
        pages = on_device(self.pages(ring, places // RING_BLOCK).tolist(), torch.long, self.device)
        rows = on_device((places % RING_BLOCK).tolist(), torch.long, self.device)
        for memory, new in zip(self.layers, layers, strict=True):
            memory[pages, :, :, rows] = new.permute(2, 0, 1, 3)
        self.advance(ring, start + count)

    def advance(self, ring: Ring, num_tokens: int) -> None:
        """Records that the rows up to `num_tokens` were written."""
        ring.first_held = max(ring.first_held, self.layout.first_held(num_tokens))


@dataclass(frozen=True, slots=True)
class RingRows:
    """Consecutive tokens of one ring."""

    pages: torch.Tensor
    """int64, of the blocks that hold them."""
    begin: int
    """The place of the first of them among the rows of these blocks."""
    end: int
