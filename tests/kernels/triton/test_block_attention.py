"""Decode attention over slots: random shapes, lists, variants, empty and partial blocks, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.block_attention import reference, triton
from moorage.kernels.triton_support import upload
from tests.kernels.test_block_attention import make_case

FIELDS = ("slot", "begin", "end")
ROTATIONS = ("angle_cos", "angle_sin", "rotate_keys", "offset_cos", "offset_sin")
EXACT = {"rtol": 1e-4, "atol": 2e-5}
ROUNDED = {torch.float16: {"rtol": 1e-2, "atol": 5e-3}, torch.bfloat16: {"rtol": 5e-2, "atol": 4e-2}}

SHAPES = [  # KV heads, group, block size, head size, rotated channels, entries
    (1, 1, 16, 64, 64, 1),
    (2, 2, 17, 96, 96, 3),
    (1, 3, 32, 128, 128, 7),
    (2, 4, 33, 64, 32, 5),
    (1, 5, 48, 256, 256, 3),
    (2, 6, 64, 128, 0, 4),
    (1, 7, 127, 96, 48, 3),
    (2, 8, 128, 128, 128, 4),
    (1, 8, 256, 64, 64, 5),
    (1, 1, 1, 64, 64, 2),
]


def stored_as(stored, dtype):
    """Stored float32 values rounded to `dtype`, as a tensor and as float32 for the reference."""
    tensor = torch.from_numpy(stored).to(dtype)
    return tensor, tensor.float().numpy()


def draw_float32(rng):
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def attend(query, blocks, arguments, device, *, exact=True):
    entries, rotations = (tuple(arguments[name] for name in names) for names in (FIELDS, ROTATIONS))
    found = triton.attend_blocks(
        torch.from_numpy(query).to(device),
        blocks.to(device),
        entries,
        rotations,
        arguments["scale"],
        arguments.get("softcap", 0.0),
        exact=exact,
    )
    return tuple(tensor.cpu().numpy() for tensor in found)


def random_shape(rng):
    dim = int(rng.choice([64, 96, 128, 256]))
    rotated = int(rng.choice([0, dim // 2, dim]))
    return (
        int(rng.integers(1, 4)),
        int(rng.integers(1, 9)),
        int(rng.integers(16, 257)),
        dim,
        rotated,
        int(rng.integers(0, 7)),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(rng, dtype, device, shape):
    query, stored, arguments = make_case(rng, draw_float32(rng), shape)
    blocks, values = stored_as(stored, dtype)
    expected = reference.attend_blocks(query, values, **arguments)
    for actual, wanted in zip(attend(query, blocks, arguments, device), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, **EXACT)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_in_the_stored_type_cost_no_more_than_its_rounding(rng, multiplied, device, shape):
    query, stored, arguments = make_case(rng, draw_float32(rng), shape)
    blocks, values = stored_as(stored, multiplied)
    expected = reference.attend_blocks(query, values, **arguments)
    tolerance = ROUNDED.get(multiplied, EXACT)
    for actual, wanted in zip(attend(query, blocks, arguments, device, exact=False), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, **tolerance)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_match_reference(seed, device):
    rng = np.random.default_rng(seed)
    query, stored, arguments = make_case(rng, draw_float32(rng), random_shape(rng))
    arguments["softcap"] = 2.0 * (seed % 2)
    blocks, values = stored_as(stored, torch.float16)
    expected = reference.attend_blocks(query, values, **arguments)
    for actual, wanted in zip(attend(query, blocks, arguments, device), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, **EXACT)


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_see(rng, device, count):
    query, stored, arguments = make_case(rng, draw_float32(rng), (2, 2, 16, 64, 64, count))
    arguments["begin"][:] = arguments["end"]
    out, lse = attend(query, torch.from_numpy(stored), arguments, device)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


def test_huge_logits_stay_finite(rng, device):
    query, stored, arguments = make_case(rng, draw_float32(rng), (1, 2, 16, 64, 64, 5))
    expected = reference.attend_blocks(1000 * query, stored, **arguments)
    for actual, wanted in zip(
        attend(1000 * query, torch.from_numpy(stored), arguments, device), expected, strict=True
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_one_kv_head_of_a_pool_is_a_view(rng, device):
    query, stored, arguments = make_case(rng, draw_float32(rng), (3, 2, 16, 64, 64, 4))
    blocks = torch.from_numpy(stored)
    whole, _ = attend(query, blocks, arguments, device)
    for head in range(3):
        rows = slice(2 * head, 2 * head + 2)
        out, _ = attend(query[rows], blocks[:, :, head : head + 1], arguments, device)
        np.testing.assert_allclose(out, whole[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_splits", [1, 3, 16])
@pytest.mark.parametrize("per_head", [False, True])
def test_a_batch_of_lists(rng, device, num_splits, per_head):
    """Rows of different length, one list each or one for each KV head, in one launch with room to spare."""
    num_kv_heads, group, block_size, dim, num_rows = 2, 3, 20, 64, 3
    lists = num_rows * (num_kv_heads if per_head else 1)
    counts = rng.integers(0, 6, lists)
    counts[0] = 0
    query, stored, arguments = make_case(
        rng, draw_float32(rng), (num_kv_heads, group, block_size, dim, dim, int(counts.sum())), num_slots=7
    )
    variants = rng.standard_normal((2 * num_rows, *query.shape)).astype(np.float32)
    first = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    row_of = np.repeat(np.arange(lists) // (lists // num_rows), counts)
    which = (2 * row_of + rng.integers(0, 2, len(row_of))).astype(np.int32)
    turn = np.arange(len(row_of), dtype=np.int32)
    fields = np.stack(
        [*(arguments[name] for name in FIELDS), which, turn, arguments["rotate_keys"].astype(np.int32)]
    )
    padded = np.pad(fields, ((0, 0), (0, 5)), constant_values=-(2**31))
    tables = (arguments[name] for name in ROTATIONS if name != "rotate_keys")
    entries, bounds, *turns = upload((padded, first, *tables), device)
    out, lse = triton.attend_lists(
        torch.from_numpy(variants).to(device),
        torch.from_numpy(stored).to(device),
        entries,
        bounds,
        triton.Turns(*turns),
        arguments["scale"],
        num_rows,
        num_splits,
        exact=True,
    )
    per_entry = ("slot", "begin", "end", "angle_cos", "angle_sin", "rotate_keys")
    for number in range(lists):
        row, head = divmod(number, lists // num_rows)
        heads = slice(head * group, (head + 1) * group) if per_head else slice(None)
        kv_heads = slice(head, head + 1) if per_head else slice(None)
        total = None
        for variant in (2 * row, 2 * row + 1):
            selected = np.arange(first[number], first[number + 1])[
                which[first[number] : first[number + 1]] == variant
            ]
            part = {
                name: value[selected] if name in per_entry else value for name, value in arguments.items()
            }
            found = reference.attend_blocks(variants[variant, heads], stored[:, :, kv_heads], **part)
            total = found if total is None else joined(total, found)
        np.testing.assert_allclose(out[row, heads].cpu(), total[0], **EXACT)
        np.testing.assert_allclose(lse[row, heads].cpu(), total[1], **EXACT)


def joined(a, b):
    lse = np.logaddexp(a[1], b[1])
    safe = np.where(np.isinf(lse), 0, lse)
    out = sum(np.exp(part[1] - safe)[:, None] * part[0] for part in (a, b))
    return out, lse
