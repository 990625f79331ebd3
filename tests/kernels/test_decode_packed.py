"""A layer of decode in memories whose full blocks are packed."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.decode_layer import MISFIT, reference
from moorage.kernels.numba_flags import always_parallel
from tests.kernels.decode_layer_case import CLAMPED, DCA, Setting
from tests.kernels.decode_packed_case import PackedCase

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


@pytest.mark.parametrize(("name", "family", "fp16_sinks"), CASES)
def test_attends_what_packed_blocks_and_pages_of_rows_hold(rng, name, family, fp16_sinks):
    packed = PackedCase(rng, SETTINGS[name], family, fp16_sinks)
    selections, attended, _ = packed.run()
    packed.case.kv = packed.seen
    expected, wanted, _ = packed.case.run(reference.decode_layer)
    np.testing.assert_array_equal(attended.failed, 0)
    np.testing.assert_array_equal(selections.ids, expected.ids)
    np.testing.assert_allclose(attended.lse, wanted.lse, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(attended.out, wanted.out, rtol=5e-3, atol=3e-3)


def test_is_the_same_to_the_bit_by_any_number_of_threads(rng):
    packed = PackedCase(rng, SETTINGS["everything"], "NUQ3", 5)
    alone = packed.run()
    with always_parallel():
        together = packed.run()
    for left, right in zip(alone, together, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_new_row_alone_is_written(rng):
    packed = PackedCase(rng, SETTINGS["block-ends"], "INT8", 5)
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
    packed = PackedCase(rng, SETTINGS["given"], "INT8", 5)
    packed.batch.raw_pages[1, 0, 0] = len(packed.stored[0])
    _, attended, _ = packed.run()
    assert list(attended.failed) == [0, MISFIT]


def test_shapes_that_do_not_fit_are_refused(rng):
    packed = PackedCase(rng, SETTINGS["given"], "INT8", 5)
    packed.batch = packed.batch._replace(raw_pages=packed.batch.raw_pages[:, :, 1:].copy())
    with pytest.raises(ValueError, match="raw_pages"):
        packed.run()
    packed = PackedCase(rng, SETTINGS["given"], "INT8", 5)
    packed.packed = packed.packed._replace(
        layer=packed.packed.layer._replace(layout=packed.layout._replace(block_bytes=64))
    )
    with pytest.raises(ValueError, match="kv"):
        packed.run()
