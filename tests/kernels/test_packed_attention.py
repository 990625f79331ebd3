"""Attention in `block_attention.packed`, and the unpacking of rows that it is made of."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_attention.packed import attend_packed_head
from moorage.kernels.block_attention.reference import attend_blocks
from moorage.kernels.block_attention.short_desk import short_angles
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.packed_blocks import reference
from moorage.kernels.packed_blocks.layout import packed_layout
from moorage.kernels.packed_blocks.unpack import packed_layer, part_of_keys, part_of_values
from moorage.kernels.packed_blocks.unpack_plain import unpack_plainly
from tests.kernels.packed_blocks_case import EXAMPLES, FAMILIES, draw_blocks, tables_of

SHAPES = [  # KV heads, group, block size, head size, rotated channels, packed blocks, pages of rows
    (1, 1, 16, 32, 32, 1, 0),
    (2, 3, 31, 48, 32, 3, 1),
    (3, 3, 64, 64, 64, 4, 2),
    (2, 4, 33, 80, 0, 2, 1),
    (1, 16, 48, 128, 128, 3, 1),
    (2, 5, 40, 128, 64, 3, 2),
    (1, 2, 256, 256, 256, 2, 1),
]


def packed_case(rng, name, calibrated, shape):
    """(layout, tables, flat memory of blocks and pages, the blocks as numbers, element of each, rows of a page)."""
    heads, _, size, dim, _, count, num_pages = shape
    blocks = draw_blocks(rng, count, heads, size, dim)
    layout = packed_layout(FAMILIES[name], heads, size, dim, calibrated)
    tables = tables_of(layout, FAMILIES[name], blocks, rng)
    stored = [reference.encode_block(layout, tables, block.view(np.uint16)) for block in blocks]
    numbers = [reference.decoded_numbers(layout, tables, each) for each in stored]
    raw_rows = layout.block_bytes // (4 * heads * dim)
    for _ in range(num_pages):
        rows = rng.standard_normal((2, heads, raw_rows, dim)).astype(np.float16)
        page = np.zeros(layout.block_bytes, np.uint8)
        page[: rows.nbytes] = rows.view(np.uint8).reshape(-1)
        stored.append(page)
        block = np.full(numbers[0].shape, np.nan, np.float32)
        block[:, :, :raw_rows] = rows
        numbers.append(block)
    offset = np.arange(len(stored), dtype=np.int64) * (layout.block_bytes // 2)
    return (
        layout,
        tables,
        np.concatenate(stored).view(np.uint16),
        np.stack(numbers),
        offset,
        raw_rows,
    )


def turns(rng, *shape):
    angle = rng.uniform(-7, 7, shape)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "calibrated"), EXAMPLES)
def test_equals_attention_over_decoded_rows(rng, name, calibrated, shape):
    heads, group, size, dim, rotary_dim, _, num_pages = shape
    softcap = 20.0 if group % 2 else 0.0
    layout, tables, memory, numbers, offset, raw_rows = packed_case(rng, name, calibrated, shape)
    packed = packed_layer(layout, tables)
    entries = rng.permutation(np.repeat(np.arange(len(offset)), 2))
    is_raw = entries >= len(offset) - num_pages
    raw_first = np.where(is_raw, rng.integers(0, size - min(raw_rows, size) + 1, len(entries)), 0).astype(
        np.int32
    )
    edges = np.sort(
        rng.integers(0, np.where(is_raw, min(raw_rows, size), size)[:, None] + 1, (len(entries), 2)), axis=1
    )
    begin, end = (edges + raw_first[:, None]).T.astype(np.int32).copy()
    cos, sin = turns(rng, len(entries), rotary_dim // 2)
    offset_cos, offset_sin = turns(rng, size, rotary_dim // 2)
    rotates = rng.integers(0, 2, len(entries)).astype(np.uint8)
    query = (rng.standard_normal((heads * group, dim)) / 8).astype(np.float32)
    blocks = numbers[entries]
    for e in np.flatnonzero(raw_first):
        blocks[e] = np.roll(blocks[e], raw_first[e], axis=2)
    expected = attend_blocks(
        query, blocks, slot=np.arange(len(entries), dtype=np.int32), begin=begin, end=end, angle_cos=cos,
        angle_sin=sin, rotate_keys=rotates, offset_cos=offset_cos, offset_sin=offset_sin, scale=0.1, softcap=softcap,
    )  # fmt: skip
    out, lse = np.empty(query.shape, np.float32), np.empty(len(query), np.float32)
    angles = short_angles(layout, offset_cos, offset_sin)
    for head in range(heads):
        of_head = slice(head * group, (head + 1) * group)
        attend_packed_head(
            query[of_head], memory, packed, head, offset[entries], np.where(is_raw, raw_rows, 0),
            (begin, end, raw_first), 0, len(entries), (cos, sin, rotates, offset_cos, offset_sin), angles,
            np.float32(0.1), np.float32(softcap), out[of_head], lse[of_head],
        )  # fmt: skip
    # With outliers a key is a multiple of 1 / 5 770 of the largest number that its channel's codes can say, here
    # about 100 in one-sided channels: a twentieth of a step of four bits, where fp16 has steps of 1 / 16.
    atol = 4e-3 if FAMILIES[name].outliers else 1e-3
    np.testing.assert_allclose(lse, expected[1], rtol=1e-4, atol=atol)
    np.testing.assert_allclose(out, expected[0], rtol=1e-3, atol=atol * abs(expected[0]).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_not_finite_spoils_its_own_result_alone(rng, bad):
    layout, tables, memory, _, offset, _ = packed_case(rng, "NUQ4", True, (1, 3, 40, 64, 64, 3, 0))
    cos, sin = turns(rng, 3, 32)
    offset_cos, offset_sin = turns(rng, 40, 32)
    begin, end = np.zeros(3, np.int32), np.full(3, 40, np.int32)
    rotations = cos, sin, np.ones(3, np.uint8), offset_cos, offset_sin
    query = (rng.standard_normal((3, 64)) / 8).astype(np.float32)
    found = []
    for number in (query[1, 5], bad):
        query[1, 5] = number
        out, lse = np.empty(query.shape, np.float32), np.empty(3, np.float32)
        attend_packed_head(
            query, memory, packed_layer(layout, tables), 0, offset, np.zeros(3, np.int64), (begin, end, begin), 0, 3,
            rotations, short_angles(layout, offset_cos, offset_sin), np.float32(0.1), np.float32(0), out, lse,
        )  # fmt: skip
        found.append(out)
    assert np.isnan(found[1][1]).all()
    np.testing.assert_array_equal(found[0][[0, 2]], found[1][[0, 2]])


@njit(**(SERIAL | {"cache": False}))
def unpack_both(packed, memory, head, statistics, keys, values):
    """The codes of a head's rows as numbers, without outliers, as processors without AVX-512 unpack them."""
    layout, tables, start = packed.layout, packed.tables, memory.ctypes.data
    part = part_of_keys(layout, tables, start, head, statistics.ctypes.data)
    size = layout.block_size
    unpack_plainly(layout, part.codes, size, part.levels, part.scale, part.zero, False, keys.ctypes.data)
    part = part_of_values(layout, tables, start, head)
    unpack_plainly(layout, part.codes, size, part.levels, part.scale, part.zero, True, values.ctypes.data)


@pytest.mark.parametrize(("name", "calibrated"), EXAMPLES)
def test_plain_unpacking_gives_the_same_numbers(rng, name, calibrated):
    for shape in SHAPES[:3]:
        layout, tables, memory, numbers, _, _ = packed_case(rng, name, calibrated, shape)
        packed, found = packed_layer(layout, tables), np.empty(numbers.shape[1:], np.float32)
        statistics = np.empty(2 * layout.width, np.float32)
        for head in range(layout.num_kv_heads):
            unpack_both(packed, memory, head, statistics, found[0, head], found[1, head])
        is_alike = np.isclose(found, numbers[0], rtol=1e-5, atol=1e-4)
        assert (~is_alike).reshape(2 * layout.num_kv_heads, -1).sum(1).max() <= layout.capacity
