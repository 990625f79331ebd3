"""A layer of decode in memories whose full blocks are packed."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.decode_layer import MISFIT, LayerMemory, decode_layer, reference
from moorage.kernels.decode_layer.packed import PackedMemory
from moorage.kernels.numba_flags import always_parallel
from moorage.kernels.packed_blocks.layout import packed_layout
from moorage.kernels.packed_blocks.reference import decode_block, encode_block
from moorage.kernels.packed_blocks.unpack import packed_layer
from tests.kernels.decode_layer_case import CLAMPED, DCA, Case, Setting
from tests.kernels.packed_blocks_case import FAMILIES, tables_of

SETTINGS = {
    "first-token": Setting(positions=(0,)),
    "block-ends": Setting(positions=(15, 16, 17, 239, 240, 241), num_memories=2),
    "blocks-of-33": Setting(positions=(900, 20), block=33, dim=64, rotated=24, group=3, window=100),
    "clamped": Setting(
        positions=(700, 20, 41), scheme=CLAMPED, rotates_scoring=True, num_memories=3, stripe=1
    ),
    "dual-chunks": Setting(positions=(500, 47, 48, 95, 96), scheme=DCA, num_memories=2),
    "each-kv-head": Setting(positions=(800, 333), num_selections=2, bounds=True, scheme=CLAMPED),
    "given": Setting(positions=(600, 77), selects=False, num_memories=2),
    "everything": Setting(
        positions=(2100, 1300), selects=False, k=0, window=9000, block=64, dim=64, rotated=64
    ),
    "capped": Setting(positions=(300, 41), softcap=0.5, num_memories=2, dim=128, rotated=64),
}
CASES = [(name, family, 5) for name in SETTINGS for family in ("INT8", "NUQ4")] + [
    ("everything", "INT4", 0), ("everything", "NUQ3", 1), ("block-ends", "NF4", 16), ("dual-chunks", "NUQ2", 3),
]  # fmt: skip


class PackedCase:
    """A case whose blocks are packed, and beside it the blocks as its queries see them."""

    def __init__(self, rng, name, family, fp16_sinks) -> None:
        self.case = case = Case(rng, np.uint16, SETTINGS[name])
        s = case.setting
        self.layout = packed_layout(FAMILIES[family], s.heads, s.block, s.dim)
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
        anchors = [np.concatenate((a, np.zeros((len(p) - len(a), *a.shape[1:]), a.dtype)))
                   for a, p in zip(case.anchors, stored, strict=True)]  # fmt: skip
        codes = [np.zeros((len(pages), 0), np.uint8) for pages in stored]
        memory = LayerMemory.of(shape, stored, anchors, codes, self.packed)
        selections = type(case.selections)(*(array.copy() for array in case.selections))
        attended = case.new_attended()
        decode_layer(memory, self.batch, case.query, case.key, case.value, selections, attended)
        return selections, attended, stored


@pytest.mark.parametrize(("name", "family", "fp16_sinks"), CASES)
def test_attends_what_packed_blocks_and_pages_of_rows_hold(rng, name, family, fp16_sinks):
    packed = PackedCase(rng, name, family, fp16_sinks)
    selections, attended, _ = packed.run()
    packed.case.kv = packed.seen
    expected, wanted, _ = packed.case.run(reference.decode_layer)
    np.testing.assert_array_equal(attended.failed, 0)
    np.testing.assert_array_equal(selections.ids, expected.ids)
    np.testing.assert_allclose(attended.lse, wanted.lse, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(attended.out, wanted.out, rtol=5e-3, atol=3e-3)


def test_is_the_same_to_the_bit_by_any_number_of_threads(rng):
    packed = PackedCase(rng, "everything", "NUQ3", 5)
    alone = packed.run()
    with always_parallel():
        together = packed.run()
    for left, right in zip(alone, together, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_new_row_alone_is_written(rng):
    packed = PackedCase(rng, "block-ends", "INT8", 5)
    case, (_, _, stored) = packed.case, packed.run()
    s, changed = case.setting, [pages.copy() for pages in packed.stored]
    for i, position in enumerate(s.positions):
        m, _ = reference._place(i, case.memory, case.batch, position // s.block)
        page, place = divmod(position % s.block, packed.packed.raw_rows)
        row = np.stack((case.key[i], case.value[i])).astype(np.float16).view(np.uint16)
        size = row.size * packed.packed.raw_rows
        at = changed[m][packed.batch.raw_pages[i, m, page]][:size].reshape(2, s.heads, -1, s.dim)
        at[:, :, place] = row
    for found, expected in zip(stored, changed, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_pages_of_rows_that_do_not_exist_fail_their_session_alone(rng):
    packed = PackedCase(rng, "given", "INT8", 5)
    packed.batch.raw_pages[1, 0, 0] = len(packed.stored[0])
    _, attended, _ = packed.run()
    assert list(attended.failed) == [0, MISFIT]


def test_shapes_that_do_not_fit_are_refused(rng):
    packed = PackedCase(rng, "given", "INT8", 5)
    packed.batch = packed.batch._replace(raw_pages=packed.batch.raw_pages[:, :, 1:].copy())
    with pytest.raises(ValueError, match="raw_pages"):
        packed.run()
    packed = PackedCase(rng, "given", "INT8", 5)
    packed.packed = packed.packed._replace(
        layer=packed.packed.layer._replace(layout=packed.layout._replace(block_bytes=64))
    )
    with pytest.raises(ValueError, match="kv"):
        packed.run()
