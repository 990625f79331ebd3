"""Sessions whose full blocks are packed, for tests of `kernels.decode_layer` and `kernels.decode_keys`."""

from __future__ import annotations

import numpy as np

from moorage.kernels.decode_layer import LayerMemory, decode_layer, reference
from moorage.kernels.decode_layer.packed import PackedMemory
from moorage.kernels.packed_blocks.layout import packed_layout
from moorage.kernels.packed_blocks.reference import decode_block, encode_block
from moorage.kernels.packed_blocks.unpack import packed_layer
from tests.kernels.decode_layer_case import Case
from tests.kernels.packed_blocks_case import FAMILIES, tables_of


class PackedCase:
    """A case whose blocks are packed, and beside it the blocks as its queries see them."""

    def __init__(self, rng, setting, family, fp16_sinks, calibrated=False) -> None:
        self.case = case = Case(rng, np.uint16, setting)
        s = case.setting
        self.layout = packed_layout(FAMILIES[family], s.heads, s.block, s.dim, calibrated)
        self.tables = tables_of(self.layout, FAMILIES[family], case.kv[0].view(np.float16), rng)
        raw_rows = self.layout.block_bytes // (4 * s.heads * s.dim)
        self.packed = PackedMemory(packed_layer(self.layout, self.tables), raw_rows, fp16_sinks)
        stored = [[encode_block(self.layout, self.tables, page) for page in kv] for kv in case.kv]
        self.seen = [np.stack([decode_block(self.layout, self.tables, page) for page in kv]) for kv in stored]
        raw_pages = np.zeros((len(s.positions), s.num_memories, self.packed.num_raw_pages), np.int32)
        for i, position in enumerate(s.positions):
            own, sinks = position // s.block, fp16_sinks if position >= s.block else 0
            for m in range(s.num_memories):
                raw_pages[i, m] = len(stored[m]) + np.arange(raw_pages.shape[2])
                stored[m] += [np.full(self.layout.block_bytes, 255, np.uint8) for _ in raw_pages[i, m]]
            m, page = reference._place(i, case.memory, case.batch, own)
            self._put_rows(stored[m], raw_pages[i, m], 0, case.kv[m][page])
            self.seen[m][page] = case.kv[m][page]
            m, page = reference._place(i, case.memory, case.batch, 0)
            exact = case.kv[m][page][:, :, :sinks]
            self._put_rows(stored[m], raw_pages[i, m], self.packed.open_pages, exact)
            self.seen[m][page][:, :, :sinks] = exact
        self.stored = [np.stack(pages).view(np.uint16) for pages in stored]
        self.batch = case.batch._replace(raw_pages=raw_pages)

    def _put_rows(self, stored, pages, first, rows) -> None:
        for t in range(rows.shape[2]):
            page, place = divmod(t, self.packed.raw_rows)
            shape = 2, self.layout.num_kv_heads, self.packed.raw_rows, self.layout.head_dim
            at = stored[pages[first + page]][: 2 * np.prod(shape)].view(np.uint16).reshape(shape)
            at[:, :, place] = rows[:, :, t]

    def run(self):
        """(selections, attended, pages) after a call."""
        case, shape = self.case, self.case.memory.shape
        stored = [pages.copy() for pages in self.stored]
        memory = self.memory_of(shape, stored, case.codes)
        selections = type(case.selections)(*(array.copy() for array in case.selections))
        attended = case.new_attended()
        decode_layer(memory, self.batch, case.query, case.key, case.value, selections, attended)
        return selections, attended, stored

    def memory_of(self, shape, stored, codes):
        """The LayerMemory of pages `stored`; those of rows have anchors and `codes` that mean nothing."""
        longer = [
            [np.pad(each, ((0, len(pages) - len(each)), *((0, 0),) * (each.ndim - 1)))
             for each, pages in zip(arrays, stored, strict=True)]
            for arrays in (self.case.anchors, codes)
        ]  # fmt: skip
        return LayerMemory.of(shape, stored, *longer, self.packed)
