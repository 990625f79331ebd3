"""Packed blocks expanded by the GPU's kernel, number for number against the plain reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.packed_blocks import reference
from moorage.kernels.packed_blocks.encode import encode_blocks
from moorage.kernels.packed_blocks.layout import PackedLayout, packed_layout
from moorage.kernels.packed_blocks.tables import LayerTables
from moorage.kernels.packed_blocks.triton import device_tables
from moorage.kernels.packed_gather import triton
from moorage.kernels.triton_support import upload
from tests.kernels.packed_blocks_case import EXAMPLES, FAMILIES, draw_blocks, tables_of

SHAPES = {  # KV heads, block size, head size
    "common": (2, 32, 64),
    "odd": (3, 17, 40),
    "one": (1, 16, 32),
    "wide": (2, 33, 96),
    "large": (1, 256, 256),
    "long": (1, 129, 128),
    "thin": (4, 16, 80),
}
CASES = [
    pytest.param(
        *example, shape, marks=[] if shape == "common" or example == ("NUQ3", True) else [pytest.mark.slow]
    )
    for example in EXAMPLES
    for shape in SHAPES
]


def packed_case(
    rng: np.random.Generator, name: str, calibrated: bool, shape: tuple[int, ...], count: int
) -> tuple[PackedLayout, LayerTables, np.ndarray]:
    """(layout, tables, [count, block_bytes]) of blocks at random."""
    layout = packed_layout(FAMILIES[name], *shape, calibrated)
    blocks = draw_blocks(rng, count, *shape)
    tables = tables_of(layout, FAMILIES[name], blocks, rng)
    stored = np.zeros((count, layout.block_bytes), np.uint8)
    assert encode_blocks(layout, tables, blocks.view(np.uint16), stored, np.arange(count, dtype=np.int32))
    return layout, tables, stored


def expanded(
    layout: PackedLayout, tables: LayerTables, stored: np.ndarray, pages, slots, num_slots: int, device
) -> np.ndarray:
    """Bits of fp16 [num_slots, 2, Hkv, B, D]; slots that are not written are NaN."""
    host = torch.from_numpy(stored)
    if device.type == "cuda":
        host = host.pin_memory()
    shape = num_slots, 2, layout.num_kv_heads, layout.block_size, layout.head_dim
    out = torch.full(shape, torch.nan, dtype=torch.float16, device=device)
    there = upload((np.array(pages, np.int32), np.array(slots, np.int32)), device)
    triton.expand_blocks(layout, device_tables(tables, device), host, there[0], out, there[1])
    return out.cpu().numpy().view(np.uint16)


@pytest.mark.parametrize(("name", "calibrated", "shape"), CASES)
def test_equals_the_reference(rng, device, name, calibrated, shape):
    layout, tables, stored = packed_case(rng, name, calibrated, SHAPES[shape], 3)
    found = expanded(layout, tables, stored, [2, 0], [1, 3], 4, device)
    for page, slot in ((2, 1), (0, 3)):
        expected = reference.decode_block(layout, tables, stored[page])
        # Where a code says 0, its sign may differ.
        np.testing.assert_array_equal(found[slot].view(np.float16), expected.view(np.float16))
    assert np.isnan(found[[0, 2]].view(np.float16)).all()


def test_nothing_to_expand(rng, device):
    layout, tables, stored = packed_case(rng, "NUQ3", False, (1, 16, 32), 1)
    assert np.isnan(expanded(layout, tables, stored, [], [], 2, device).view(np.float16)).all()


def test_a_list_of_outliers_may_be_full_or_empty(rng, device):
    """A block of zeros has no outlier; one whose every row has far numbers uses its whole list."""
    shape = (1, 16, 64)
    layout = packed_layout(FAMILIES["NUQ3"], *shape)
    blocks = np.zeros((2, 2, *shape), np.float16)
    blocks[1] = rng.standard_normal((2, *shape))
    blocks[1, :, :, ::4, ::4] *= 50
    tables = tables_of(layout, FAMILIES["NUQ3"], blocks, rng)
    stored = np.zeros((2, layout.block_bytes), np.uint8)
    assert encode_blocks(layout, tables, blocks.view(np.uint16), stored, np.arange(2, dtype=np.int32))
    counts = [stored[i, layout.outliers : layout.outliers + 4].view(np.uint16).tolist() for i in (0, 1)]
    assert counts[0] == [0, 0]
    assert sum(counts[1]) == layout.capacity
    found = expanded(layout, tables, stored, [0, 1], [0, 1], 2, device)
    for page in (0, 1):
        expected = reference.decode_block(layout, tables, stored[page])
        np.testing.assert_array_equal(found[page].view(np.float16), expected.view(np.float16))


def test_numbers_beyond_fp16_become_its_largest(device):
    """A scale that was rounded up may carry a code beyond the largest number."""
    layout = packed_layout(FAMILIES["INT4"], 1, 16, 32)
    blocks = np.full((1, 2, 1, 16, 32), 65504, np.float16)
    blocks[:, :, :, ::2, ::2] = -65504
    tables = tables_of(layout, FAMILIES["INT4"], blocks)
    stored = np.zeros((1, layout.block_bytes), np.uint8)
    assert encode_blocks(layout, tables, blocks.view(np.uint16), stored, np.zeros(1, np.int32))
    found = expanded(layout, tables, stored, [0], [0], 1, device)
    assert np.isfinite(found.view(np.float16)).all()
    expected = reference.decode_block(layout, tables, stored[0])
    np.testing.assert_array_equal(found[0].view(np.float16), expected.view(np.float16))
