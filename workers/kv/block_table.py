"""The pages of a session, and how rows are written into them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moorage.workers.errors import InvalidRequest, NotFinite
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.messages import Int32, Storage
from moorage.workers.spec import KvType


@dataclass(slots=True)
class BlockTable:
    """One session's pages, the same in all layers, and the tokens written in each layer."""

    session_id: int
    pages: Int32
    num_tokens: list[int]

    def check_layer(self, layer: int) -> None:
        """Raises InvalidRequest for a layer that does not exist."""
        if not 0 <= layer < len(self.num_tokens):
            raise InvalidRequest(
                f"session {self.session_id}: no layer {layer} among {len(self.num_tokens)}; check the model"
            )

    def check_rows(self, layer: int, start: int, end: int, block_size: int) -> None:
        """Raises InvalidRequest unless rows [start, end) leave no hole and fit the session's pages."""
        self.check_layer(layer)
        if not 0 <= start <= min(end, self.num_tokens[layer]):
            raise InvalidRequest(
                f"session {self.session_id}, layer {layer}: rows [{start}, {end}) after "
                f"{self.num_tokens[layer]} tokens leave a hole; append in order"
            )
        if end > len(self.pages) * block_size:
            raise InvalidRequest(
                f"session {self.session_id}: token {end} is beyond the {len(self.pages) * block_size} "
                "reserved; grow the session first"
            )

    def check_row(self, position: int, block_size: int) -> None:
        """`check_rows` of one row in all layers."""
        layer = self.num_tokens.index(min(self.num_tokens))
        self.check_rows(layer, position, position + 1, block_size)

    def begin_row(self, position: int, block_size: int) -> None:
        """From now on the row at `position`, which is yet to be written, counts as the last in all layers."""
        self.check_row(position, block_size)
        self.num_tokens = [position + 1] * len(self.num_tokens)

    def pages_of(self, layer: int, blocks: Int32, block_size: int) -> Int32:
        """Pages of written `blocks`; raises InvalidRequest for a block without a token in `layer`."""
        self.check_layer(layer)
        num_written = -(-self.num_tokens[layer] // block_size)
        if len(blocks) and not (blocks.min() >= 0 and blocks.max() < num_written):
            raise InvalidRequest(
                f"session {self.session_id}, layer {layer}: blocks {blocks.min()} to {blocks.max()} asked, "
                f"{num_written} are written; gather written blocks only"
            )
        return self.pages[blocks]

    def write(self, arena: Arena, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> int:
        """Writes rows [T, Hkv, D] from token `start` on; returns the token after the last."""
        size = arena.layout.block_size
        keys, values = _as_rows(keys, arena), _as_rows(values, arena)
        if len(keys) != len(values):
            raise InvalidRequest(
                f"session {self.session_id}: {len(keys)} keys, {len(values)} values; give as many"
            )
        end = start + len(keys)
        self.check_rows(layer, start, end, size)
        if end > start:
            if not format_of(arena.layout.kv_type).encode(arena.kv[layer], self.pages, start, keys, values):
                raise beyond_storage(layer, arena.layout.kv_type)
            self._clear_rest(arena, layer, start, end)
        self.num_tokens[layer] = end
        return end

    def _clear_rest(self, arena: Arena, layer: int, start: int, end: int) -> None:
        # Pages are reused without a sweep: the first write into a block clears what it does not fill, so no
        # read of a written block ever shows another session's rows, and no drop has to wait for gigabytes.
        size = arena.layout.block_size
        last, filled = divmod(end, size)
        if filled and start <= last * size:
            format_of(arena.layout.kv_type).clear(arena.kv[layer], int(self.pages[last]), filled)


def beyond_storage(layer: int, kv_type: KvType) -> NotFinite:
    """A key or value that the store can't hold as a number."""
    return NotFinite(f"layer {layer}: {format_of(kv_type).limit}")


_SINGLE, _HALF, _BITS = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint16)


def _as_rows(rows: ArrayLike, arena: Arena) -> Storage:
    """Rows as the kernels take them: storage type or float32; fp16 of numpy or torch passes as its bits."""
    layout, array = arena.layout, np.asarray(rows)
    if array.shape[1:] != (layout.num_kv_heads, layout.head_dim):
        raise InvalidRequest(
            f"rows of shape {array.shape}; expected [tokens, {layout.num_kv_heads}, {layout.head_dim}]"
        )
    stored = format_of(layout.kv_type).storage
    if array.dtype == _HALF and stored == _BITS:
        array = array.view(_BITS)
    if array.dtype == _SINGLE or array.dtype == stored:
        return np.ascontiguousarray(array)
    if array.dtype == _BITS:
        array = array.view(_HALF)
    return np.ascontiguousarray(array, np.float32)
