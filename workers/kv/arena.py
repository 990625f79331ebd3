"""The shared memory that holds blocks and anchors."""

from __future__ import annotations

import os
import weakref

import numpy as np

from moorage.workers.errors import InvalidConfig, ResourceExhausted
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.base import PackedCodec, PackedFormat, RowFormat
from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.kv.messages import Int32, ReadableBlocks, Storage
from moorage.workers.kv.packed_arena import by_layer, codec_in, raw_view
from moorage.workers.kv.shared_memory import SharedMapping, seal_size
from moorage.workers.spec import KvLayout

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14, which Python's mmap does not name."""


class Arena:
    """`num_pages` pages of anonymous shared memory.

        kv       [layer][page][K|V][kv_head][token][dim]     un-rotated keys, values; inside a page the format decides
        anchors  [layer][page][kv_head][vector][dim]
        codes    [layer][page][byte]                         of single keys, see `kernels.key_codes`, where
                                                             anchor_type is KEY_CODES; otherwise absent
        quantizer                                            of a packed format that has one

    Why this order. Outermost is the layer, since a step touches one layer of many pages, never one page of
    many layers. A block of one layer, K and V of all heads, is then one piece that suits a DMA copy, and
    neighbouring pages of one layer touch, so that exact prefill streams a session with sequential reads.
    Inside a block each KV head has its tokens together: attention and anchor building read whole runs of one
    head. Pages of one fixed size serve any session, so nothing fragments. Anchors lie apart from the blocks:
    scoring reads them all, and only them, at the memory's bandwidth.

    The memory belongs to a file descriptor without a name (memfd), so nothing is left behind when the
    processes that hold it die. It takes `num_pages * layout.page_bytes + layout.quantizer_bytes` bytes exactly.
    """

    def __init__(self, layout: KvLayout, num_pages: int, quantizer: Quantizer | None = None) -> None:
        """Raises InvalidConfig without pages, ResourceExhausted when the system refuses the memory.

        `quantizer` is the one whose digest the layout has.
        """
        if num_pages < 1:
            raise InvalidConfig(
                f"KV arena: {num_pages} pages; raise kv_store.dram to hold at least one block"
            )
        num_bytes = num_pages * layout.page_bytes + layout.quantizer_bytes
        fd = os.memfd_create("moorage-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close_fd = weakref.finalize(self, os.close, fd)
        try:
            os.ftruncate(fd, num_bytes)
            seal_size(fd)
            self._map(fd, layout, num_pages, quantizer)
        except OSError as error:
            self._close_fd()
            raise ResourceExhausted(
                f"KV arena: the system refuses {num_bytes} bytes ({error.strerror}); lower kv_store.dram"
            ) from error

    @classmethod
    def attach(cls, fd: int, layout: KvLayout, num_pages: int) -> Arena:
        """The same memory in another process; takes over `fd`. Raises InvalidConfig when its size differs."""
        num_bytes = num_pages * layout.page_bytes + layout.quantizer_bytes
        if os.fstat(fd).st_size != num_bytes:
            held = os.fstat(fd).st_size
            os.close(fd)
            raise InvalidConfig(f"KV arena: holds {held} bytes, {num_bytes} expected; restart both processes")
        arena = cls.__new__(cls)
        arena._close_fd = weakref.finalize(arena, os.close, fd)
        arena._map(fd, layout, num_pages)
        return arena

    def _map(self, fd: int, layout: KvLayout, num_pages: int, quantizer: Quantizer | None = None) -> None:
        self.layout, self.num_pages, self.fd = layout, num_pages, fd
        self._memory = SharedMapping(fd, self.num_bytes)
        flat, tables = np.split(self._memory.array, [num_pages * layout.page_bytes])
        kv_end, blocks = num_pages * layout.page_kv_bytes, (layout.num_layers, num_pages)
        centres_at = len(flat) - num_pages * layout.num_layers * layout.centre_bytes
        codes_at = centres_at - num_pages * layout.num_layers * layout.code_bytes
        self.stored = by_layer(layout, flat[:kv_end], num_pages)
        """The bytes of blocks by layer, [P, bytes of a block], whatever their format."""
        format = format_of(layout.kv_type)
        self.codec: PackedCodec | None = None
        """What packs and unpacks blocks; None where the format is native."""
        self.kv: Storage = np.empty((layout.num_layers, 0), format.storage)
        """[L, P, 2, Hkv, B, D] of storage type; without pages where blocks are packed."""
        self.raw: tuple[Storage, ...] = ()
        """Where blocks are packed, by layer [P, 2, Hkv, layout.raw_rows, D] of the pages that hold rows."""
        if isinstance(format, PackedFormat):
            self.codec = codec_in(format, layout, tables, quantizer)
            self.raw = tuple(raw_view(layout, stored) for stored in self.stored)
        elif isinstance(format, RowFormat):
            self.kv = format.view(flat[:kv_end].reshape(*blocks, layout.block_bytes), layout.block_shape)
        self.anchors: Storage = (
            flat[kv_end:codes_at]
            .view(format.storage)
            .reshape(*blocks, layout.num_kv_heads, layout.anchor_vectors, layout.head_dim)
        )
        self.codes = flat[codes_at:centres_at].reshape(*blocks, layout.code_bytes)
        self.centres = flat[centres_at:].reshape(*blocks, layout.centre_bytes)

    def decode(self, layer: int, pages: Int32, out: Storage, slots: Int32) -> None:
        """Reads full blocks into `out[slots]`, [num_slots, 2, Hkv, B, D] of storage type."""
        format = format_of(self.layout.kv_type)
        if self.codec is not None:
            self.codec.decode(layer, self.stored[layer], pages, out.view(np.uint16), slots)
        elif isinstance(format, RowFormat):
            format.decode(self.kv[layer], pages, out, slots)

    def readable(self, layer: int, pages: Int32) -> ReadableBlocks:
        """The full blocks on `pages` as kernels read them: where they lie, or decoded copies."""
        if self.codec is None:
            return ReadableBlocks(self.kv[layer], pages)
        shape, places = self.layout.block_shape, np.arange(len(pages), dtype=np.int32)
        copies: Storage = np.empty((len(pages), 2, *shape), np.uint16)
        self.decode(layer, pages, copies, places)
        return ReadableBlocks(copies, places)

    @property
    def num_bytes(self) -> int:
        """Size of the memory."""
        return self.num_pages * self.layout.page_bytes + self.layout.quantizer_bytes

    def populate(self) -> None:
        """Takes all memory now, from the NUMA node of the calling thread (Linux places a page where it is first
        touched). Raises ResourceExhausted when there is not enough."""
        try:
            self._memory.ask_huge(0, self.num_bytes)
            self._memory.advise(_POPULATE_WRITE)
        except OSError as error:
            raise ResourceExhausted(
                f"KV arena: {self.num_bytes} bytes are not to be had ({error.strerror}); lower kv_store.dram"
            ) from error

    def ask_huge(self, layer: int, pages: Int32) -> None:
        """Asks the system for huge pages where the blocks and the index on `pages` lie."""
        runs = np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1) if len(pages) else []
        for part in (self.stored[layer], self.anchors[layer], self.codes[layer], self.centres[layer]):
            start, size = part.ctypes.data - self._memory.address, part[:1].nbytes
            for run in runs:
                self._memory.ask_huge(start + int(run[0]) * size, start + (int(run[-1]) + 1) * size)

    def close(self) -> None:
        """Closes the descriptor; the memory goes when the last array that views it is gone. Idempotent."""
        if self.fd >= 0:
            self._close_fd()
            self.fd = -1
            del self._memory
            self.kv = self.kv[:, :0].copy()
            self.stored = tuple(layer[:0].copy() for layer in self.stored)
            self.raw = tuple(layer[:0].copy() for layer in self.raw)
            self.anchors = self.anchors[:, :0].copy()
            self.codes, self.centres = self.codes[:, :0].copy(), self.centres[:, :0].copy()
