"""Rows of sessions on their way into packed blocks, and blocks on their way back.

A query sees the rows of its own block as they were given, in fp16, and all earlier blocks as they are decoded; the
first tokens, the sinks, it always sees in fp16. So the rows of the block that the last token is in stay in the open
pages until a row of the next block comes, even when the block is full and packed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.anchors import AnchorBuilder
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.block_table import BlockTable
from moorage.workers.kv.formats.base import PackedCodec
from moorage.workers.kv.messages import Int32, Storage
from moorage.workers.kv.rows import as_rows, beyond_storage
from moorage.workers.kv.shard_session import ShardSession

BLOCKS_AT_ONCE = 64
"""Bounds the memory of a chunk's rows before they are packed."""
Halves = NDArray[np.uint16]


class PackedRows:
    """Writes and reads the packed rows of one arena; it holds nothing of any session."""

    def __init__(self, arena: Arena, codec: PackedCodec, anchors: AnchorBuilder) -> None:
        self._arena, self._layout, self._codec, self._anchors = arena, arena.layout, codec, anchors

    def write(self, session: ShardSession, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> int:
        """Stores rows [T, Hkv, D] from token `start` on, and seals the blocks that they fill; returns their end.

        If InvalidRequest or NotFinite is raised, the session holds what it held.
        """
        table, size = session.table, self._layout.block_size
        keys, values = as_rows(table.session_id, self._layout, keys, values)
        end = start + len(keys)
        table.check_rows(layer, start, end, size)
        self.check_open(table, layer, start)
        if start // size == (end - 1) // size:
            self._write_open(session, layer, start, keys, values)
        elif start < end:
            for begin in range(start // size * size, end, BLOCKS_AT_ONCE * size):
                stop = min(end, begin + BLOCKS_AT_ONCE * size)
                rows = slice(max(begin - start, 0), stop - start)
                self._write_part(session, layer, max(begin, start), keys[rows], values[rows])
        if start < end:
            table.raw.block[layer] = (end - 1) // size
        table.num_tokens[layer] = end
        return end

    def _write_open(
        self, session: ShardSession, layer: int, start: int, keys: Storage, values: Storage
    ) -> None:
        """Stores rows that all lie in one block."""
        from moorage.kernels.block_write import write_rows

        shape = self._layout.block_shape
        block, at = divmod(start, shape.block_size)
        rows: Halves = np.empty((1, 2, shape.num_kv_heads, len(keys), shape.head_dim), np.uint16)
        if not write_rows(rows, np.zeros(1, np.int32), 0, keys, values):
            raise beyond_storage(layer, self._layout.kv_type)
        raw = session.table.raw
        self._write_raw(layer, raw.open_pages, rows[0], at)
        sinks = self._num_sinks(session.table) if block == 0 else 0
        if at < sinks:
            self._write_raw(layer, raw.sink_pages, rows[0, :, :, : sinks - at], at)
        if at + len(keys) == shape.block_size:
            self.seal_open(session, layer, block)

    def _write_part(
        self, session: ShardSession, layer: int, start: int, keys: Storage, values: Storage
    ) -> None:
        """Stores rows of one block or several, and seals the blocks that they fill."""
        from moorage.kernels.block_write import write_rows

        table, size = session.table, self._layout.block_size
        first, before = divmod(start, size)
        last, filled = divmod(start + len(keys) - 1, size)
        blocks: Halves = np.zeros((last - first + 1, 2, *self._layout.block_shape), np.uint16)
        places = np.arange(len(blocks), dtype=np.int32)
        if not write_rows(blocks, places, before, keys, values):
            raise beyond_storage(layer, self._layout.kv_type)
        if before:
            self._read_raw(layer, table.raw.open_pages, blocks[0], before)
        full = len(blocks) if filled + 1 == size else len(blocks) - 1
        self._seal(session, layer, first, blocks[:full])
        table.raw.block[layer] = -1
        self._write_raw(layer, table.raw.open_pages, blocks[-1, :, :, : filled + 1])
        if first == 0:
            count = min(self._num_sinks(table), start + len(keys))
            self._write_raw(layer, table.raw.sink_pages, blocks[0, :, :, :count])

    def seal_open(self, session: ShardSession, layer: int, block: int) -> None:
        """Seals a block whose rows are all written to the open pages, and its first rows to the sink pages."""
        table, shape = session.table, self._layout.block_shape
        blocks: Halves = np.empty((1, 2, *shape), np.uint16)
        self._read_raw(layer, table.raw.open_pages, blocks[0], shape.block_size)
        if block == 0:
            self._write_raw(layer, table.raw.sink_pages, blocks[0, :, :, : self._num_sinks(table)])
        self._seal(session, layer, block, blocks)

    def _seal(self, session: ShardSession, layer: int, first: int, blocks: Halves) -> None:
        """Builds anchors of full blocks [n, 2, Hkv, B, D] from `first` on by their exact rows, and packs them."""
        if not len(blocks):
            return
        pages = session.table.pages[first : first + len(blocks)]
        self._anchors.build_from(blocks, layer, pages, first, session.rotation)
        sinks = self._num_sinks(session.table) if first == 0 else 0
        if 0 < sinks < self._layout.block_size:
            # Sinks are never read from their block. Their outliers would widen the range of the rows beside them.
            blocks = blocks.copy()
            blocks[0, :, :, :sinks] = blocks[0, :, :, sinks : sinks + 1]
        if not self._codec.encode(layer, blocks, self._arena.stored[layer], pages):
            raise beyond_storage(layer, self._layout.kv_type)

    def _num_sinks(self, table: BlockTable) -> int:
        """First tokens of the session that this store holds in fp16; none but in the store of its first block."""
        return self._layout.fp16_sinks if len(table.raw.sink_pages) else 0

    def check_open(self, table: BlockTable, layer: int, start: int) -> None:
        """Raises InvalidRequest where the rows before `start` in its block are gone, since the block was packed."""
        block, before = divmod(start, self._layout.block_size)
        if before and table.raw.block[layer] != block:
            raise InvalidRequest(
                f"session {table.session_id}, layer {layer}: token {start} is in a packed block; go on at "
                "its beginning"
            )

    def gather(self, session: ShardSession, layer: int, blocks: Int32, out: Storage, slots: Int32) -> None:
        """Copies written `blocks` into `out[slots]`, as a query after them sees them; the open block as it is."""
        table, size = session.table, self._layout.block_size
        pages, into = table.pages_of(layer, blocks, size), out.view(np.uint16)
        packed = self._is_closed(session, layer, blocks)
        if packed.any():
            self._codec.decode(layer, self._arena.stored[layer], pages[packed], into, slots[packed])
        for slot in slots[~packed]:
            self._read_open(table, layer, into[slot])
        sinks = self._num_sinks(table)
        if sinks:
            for slot in slots[packed & (blocks == 0)]:
                self._read_raw(layer, table.raw.sink_pages, into[slot], sinks)

    def is_packed(self, session: ShardSession, layer: int, blocks: Int32) -> NDArray[np.bool_]:
        """Which of written `blocks` a query after them sees as they are packed, in all rows."""
        closed = self._is_closed(session, layer, blocks)
        return closed & (blocks != 0) if self._num_sinks(session.table) else closed

    def _is_closed(self, session: ShardSession, layer: int, blocks: Int32) -> NDArray[np.bool_]:
        """Which of `blocks` are not the one that the last token is in."""
        closed: NDArray[np.bool_] = blocks != session.table.raw.block[layer]
        return closed

    def _read_open(self, table: BlockTable, layer: int, out: Halves) -> None:
        """The open block, with zeros after its last row."""
        size = self._layout.block_size
        count = min(table.num_tokens[layer] - table.raw.block[layer] * size, size)
        self._read_raw(layer, table.raw.open_pages, out, count)
        out[:, :, count:] = 0

    def _read_raw(self, layer: int, pages: Int32, out: Halves, count: int) -> None:
        """The first `count` rows that lie on `pages`, into out [2, Hkv, B, D]."""
        rows, raw = self._layout.raw_rows, self._arena.raw[layer]
        for number, begin in enumerate(range(0, count, rows)):
            end = min(begin + rows, count)
            out[:, :, begin:end] = raw[pages[number], :, :, : end - begin]

    def _write_raw(self, layer: int, pages: Int32, found: Halves, at: int = 0) -> None:
        """Rows [2, Hkv, n, D] to `pages`, from row `at` on."""
        rows, raw, begin = self._layout.raw_rows, self._arena.raw[layer], 0
        while begin < found.shape[2]:
            number, row = divmod(at + begin, rows)
            end = min(begin + rows - row, found.shape[2])
            raw[pages[number], :, :, row : row + end - begin] = found[:, :, begin:end]
            begin = end
