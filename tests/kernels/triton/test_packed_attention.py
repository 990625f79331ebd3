"""Attention of packed blocks by the GPU's kernel, against the definition over the numbers that blocks decode to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.attention_steps.triton import Turns
from moorage.kernels.block_attention import reference
from moorage.kernels.packed_attention import triton
from moorage.kernels.packed_blocks.reference import decode_block, decoded_numbers
from moorage.kernels.packed_blocks.triton import device_tables
from moorage.kernels.triton_support import upload
from tests.kernels.packed_blocks_case import EXAMPLES
from tests.kernels.test_packed_attention import turns
from tests.kernels.triton.test_packed_gather import packed_case

SHAPES = {  # KV heads, group, block size, head size, rotated channels, pages, entries
    "common": (2, 3, 32, 64, 64, 3, 4),
    "partly rotated": (1, 2, 17, 80, 32, 3, 3),
    "odd halves": (1, 5, 33, 40, 20, 3, 3),
    "least": (1, 1, 16, 32, 32, 1, 1),
    "unrotated": (3, 4, 16, 96, 0, 2, 4),
    "rest across the middle": (2, 16, 31, 128, 64, 2, 3),
    "large": (1, 8, 256, 256, 256, 1, 2),
    "many tiles": (1, 2, 250, 128, 128, 2, 3),
}
CASES = [
    pytest.param(
        *example, shape, marks=[] if shape == "common" or example == ("NUQ3", True) else [pytest.mark.slow]
    )
    for example in EXAMPLES
    for shape in SHAPES
]
EXACT = {"rtol": 1e-4, "atol": 5e-5}


def draw_entries(rng, shape):
    """(slot, begin, end, rotate_keys, cos, sin, offset_cos, offset_sin) of entries that overlap at random."""
    _, _, size, _, rotary_dim, count, num_entries = shape
    edges = np.sort(rng.integers(0, size + 1, (num_entries, 2)), axis=1).astype(np.int32)
    slot = rng.integers(0, count, num_entries).astype(np.int32)
    rotates = rng.integers(0, 2, num_entries).astype(np.uint8)
    offsets = turns(rng, size, rotary_dim // 2)
    return slot, *edges.T.copy(), rotates, *turns(rng, num_entries, rotary_dim // 2), *offsets


def attend(packed, query, entries, device, *, splits=2, softcap=0.0, kv_head=None, exact=True):
    layout, tables, stored = packed
    slot, begin, end, rotates, *angles = entries
    number = np.arange(len(slot), dtype=np.int32)
    fields = np.stack((slot, begin, end, np.zeros_like(number), number, rotates.astype(np.int32)))
    there, first, *tables_of_turns = upload((fields, np.array([0, len(slot)], np.int32), *angles), device)
    out, lse = triton.attend_packed_lists(
        layout,
        device_tables(tables, device),
        torch.from_numpy(query)[None].to(device),
        torch.from_numpy(stored).to(device),
        there,
        first,
        Turns(*tables_of_turns),
        0.1,
        1,
        splits,
        kv_head=kv_head,
        exact=exact,
        softcap=softcap,
    )
    return out[0].cpu().numpy(), lse[0].cpu().numpy()


def expected_of(packed, query, entries, numbers=decoded_numbers, softcap=0.0):
    layout, tables, stored = packed
    blocks = np.stack([numbers(layout, tables, each) for each in stored])
    slot, begin, end, rotates, cos, sin, offset_cos, offset_sin = entries
    return reference.attend_blocks(
        query, blocks, slot=slot, begin=begin, end=end, angle_cos=cos, angle_sin=sin, rotate_keys=rotates,
        offset_cos=offset_cos, offset_sin=offset_sin, scale=0.1, softcap=softcap,
    )  # fmt: skip


def draw(rng, name, calibrated, shape):
    heads, group, size, dim, _, count, _ = shape
    packed = packed_case(rng, name, calibrated, (heads, size, dim), count)
    query = (rng.standard_normal((heads * group, dim)) / 8).astype(np.float32)
    return packed, query, draw_entries(rng, shape)


def assert_close(found, expected, rtol, atol):
    np.testing.assert_allclose(found[1], expected[1], rtol=rtol, atol=atol)
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol, atol=atol * max(1, abs(expected[0]).max()))


@pytest.mark.parametrize(("name", "calibrated", "shape"), CASES)
def test_equals_attention_over_decoded_blocks(rng, device, name, calibrated, shape):
    sizes = SHAPES[shape]
    packed, query, entries = draw(rng, name, calibrated, sizes)
    softcap = 20.0 if sizes[1] % 2 else 0.0
    found = attend(packed, query, entries, device, softcap=softcap)
    assert_close(found, expected_of(packed, query, entries, softcap=softcap), **EXACT)


@pytest.mark.parametrize(("name", "calibrated"), [("INT8", False), ("NUQ4", False), ("NUQ3", True)])
def test_products_of_fp16_cost_no_more_than_its_rounding(rng, device, name, calibrated):
    packed, query, entries = draw(rng, name, calibrated, SHAPES["common"])
    found = attend(packed, query, entries, device, exact=False)
    halves = expected_of(
        packed, query, entries, lambda *each: decode_block(*each).view(np.float16).astype(np.float32)
    )
    assert_close(found, halves, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("splits", [1, 4])
def test_one_kv_head_alone(rng, device, splits):
    packed, query, entries = draw(rng, "NUQ3", True, (3, 2, 32, 64, 64, 3, 4))
    whole, _ = expected_of(packed, query, entries)
    for head in range(3):
        rows = slice(2 * head, 2 * head + 2)
        out, _ = attend(packed, query[rows], entries, device, kv_head=head, splits=splits)
        np.testing.assert_allclose(out, whole[rows], rtol=1e-4, atol=1e-4 * abs(whole).max())


def test_an_outlier_of_zero_replaces_what_its_code_says(rng, device):
    """Where all numbers of a channel but one are far from 0, 0 itself is the outlier."""
    shape = (1, 2, 32, 64, 64, 1, 1)
    packed, query, entries = draw(rng, "NUQ3", False, shape)
    layout, tables, stored = packed
    counts = stored[0, layout.outliers : layout.outliers + 4].view(np.uint16)
    first = layout.outliers + 4
    exact = stored[0, first + 2 * layout.capacity :][: 2 * int(counts.sum())].view(np.float16)
    assert len(exact)
    exact[::2] = 0
    entries[1][:], entries[2][:] = 0, 32
    found = attend((layout, tables, stored), query, entries, device)
    assert_close(found, expected_of(packed, query, entries), **EXACT)


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_see(rng, device, count):
    packed, query, entries = draw(rng, "NUQ3", True, (2, 2, 16, 64, 64, 1, count))
    entries[1][:] = entries[2]
    out, lse = attend(packed, query, entries, device)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


@pytest.mark.parametrize("per_head", [False, True])
def test_a_batch_of_lists(rng, device, per_head):
    """Rows of different length, one list each or one for each KV head, in one launch with room to spare."""
    heads, group, size, dim, num_rows = 2, 3, 32, 64, 3
    packed, _, _ = draw(rng, "NUQ3", True, (heads, group, size, dim, dim, 3, 1))
    layout, tables, stored = packed
    lists = num_rows * (heads if per_head else 1)
    counts = rng.integers(0, 4, lists)
    counts[0] = 0
    entries = draw_entries(rng, (heads, group, size, dim, dim, 3, int(counts.sum())))
    slot, begin, end, rotates, *angles = entries
    first = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    row_of = (np.repeat(np.arange(lists), counts) // (lists // num_rows)).astype(np.int32)
    queries = (rng.standard_normal((num_rows, heads * group, dim)) / 8).astype(np.float32)
    number = np.arange(len(slot), dtype=np.int32)
    fields = np.stack((slot, begin, end, row_of, number, rotates.astype(np.int32)))
    padded = np.pad(fields, ((0, 0), (0, 5)), constant_values=-(2**31))
    there, bounds, *turns_there = upload((padded, first, *angles), device)
    out, lse = triton.attend_packed_lists(
        layout,
        device_tables(tables, device),
        torch.from_numpy(queries).to(device),
        torch.from_numpy(stored).to(device),
        there,
        bounds,
        Turns(*turns_there),
        0.1,
        num_rows,
        2,
        exact=True,
    )
    for at in range(lists):
        row, head = divmod(at, lists // num_rows)
        of_list = slice(first[at], first[at + 1])
        cos, sin, *offsets = angles
        some = (
            slot[of_list],
            begin[of_list],
            end[of_list],
            rotates[of_list],
            cos[of_list],
            sin[of_list],
            *offsets,
        )
        expected = expected_of(packed, queries[row], some)
        of_heads = slice(head * group, (head + 1) * group) if per_head else slice(None)
        found = out[row, of_heads].cpu().numpy(), lse[row, of_heads].cpu().numpy()
        assert_close(found, tuple(part[of_heads] for part in expected), **EXACT)
