from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.numba_flags import in_both_ways
from moorage.kernels.packed_blocks import reference
from moorage.kernels.packed_blocks.decode import decode_blocks
from moorage.kernels.packed_blocks.encode import encode_blocks
from moorage.kernels.packed_blocks.layout import PackedFamily, packed_layout
from tests.kernels.packed_blocks_case import EXAMPLES, FAMILIES, draw_blocks, levels_of, tables_of

SHAPES = {"SmolLM2-135M": (3, 64), "Llama-3-8B": (8, 128), "LWM-7B": (32, 128)}
"""KV heads and head size."""


def decoded(layout, tables, block):
    packed = reference.encode_block(layout, tables, block.view(np.uint16))
    return reference.decode_block(layout, tables, packed).view(np.float16).astype(np.float32)


@pytest.mark.parametrize("block_size", [64, 128, 256])
@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize(("bits", "smaller"), [(4, 3.7), (3, 4.8), (2, 6.9)])
def test_calibrated_blocks_are_as_small_as_those_of_kvquant(block_size, model, bits, smaller):
    heads, dim = SHAPES[model]
    layout = packed_layout(FAMILIES[f"NUQ{bits}"], heads, block_size, dim, calibrated=True)
    elements = 2 * heads * block_size * dim
    assert 2 * elements / layout.block_bytes >= smaller
    assert layout.capacity >= (0.0067 if dim == 64 else 0.0092) * 2 * block_size * dim


@pytest.mark.parametrize(
    ("name", "calibrated", "bits"),
    [
        ("INT8", False, (8.375, 8.25, 8.25)),
        ("INT4", False, (4.375, 4.25, 4.25)),
        ("NF4", False, (4.375, 4.25, 4.25)),
        ("NUQ4", False, (4.542, 4.465, 4.453)),
        ("NUQ3", False, (3.542, 3.465, 3.453)),
        ("NUQ2", False, (2.542, 2.465, 2.453)),
        ("NUQ4", True, (4.323, 4.324, 4.324)),
        ("NUQ3", True, (3.333, 3.332, 3.328)),
        ("NUQ2", True, (2.313, 2.316, 2.316)),
    ],
)
def test_bits_of_a_value_with_all_that_is_kept_beside_it(name, calibrated, bits):
    for (heads, dim), expected in zip(SHAPES.values(), bits, strict=True):
        layout = packed_layout(FAMILIES[name], heads, 128, dim, calibrated)
        assert layout.block_bytes * 8 / (2 * heads * 128 * dim) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("name", "calibrated"), EXAMPLES)
@pytest.mark.parametrize("shape", [(1, 16, 32), (3, 64, 64), (2, 33, 80), (5, 17, 40), (2, 256, 256)])
def test_parts_lie_apart_and_aligned(name, calibrated, shape):
    heads, size, dim = shape
    layout = packed_layout(FAMILIES[name], *shape, calibrated)
    parts = []
    for head in range(heads):
        own = [(layout.key_codes, size * layout.row_bytes), (layout.value_codes, size * layout.row_bytes)]
        own += [(layout.key_stats, 4 * layout.width)] if layout.key_stats >= 0 else []
        own += [(layout.outliers, 4 + 4 * layout.capacity)] if layout.outliers >= 0 else []
        parts += [(head * layout.head_bytes + at, length) for at, length in own]
        if head == 0 or layout.value_stats_stride:
            parts.append((layout.value_stats + head * layout.value_stats_stride, 4 * size))
    parts.sort()
    assert all(at % 16 == 0 for at, _ in parts)
    for (at, length), (following, _) in zip(parts, [*parts[1:], (layout.block_bytes, 0)], strict=True):
        assert at + length <= following
    assert layout.block_bytes % 64 == 0
    assert layout.row_bytes * 8 == layout.width * layout.bits
    assert layout.width >= dim


def test_refuses_more_places_than_can_be_numbered():
    assert packed_layout(FAMILIES["NUQ3"], 1, 512, 128).capacity == 1311
    with pytest.raises(ValueError, match="512 tokens at most for heads of 128 channels"):
        packed_layout(FAMILIES["NUQ3"], 1, 513, 128)
    assert packed_layout(FAMILIES["INT8"], 1, 1024, 128).block_size == 1024


@pytest.mark.parametrize("name", ["INT8", "INT4", "NF4"])
def test_every_element_is_within_half_a_step(rng, name):
    family, shape = FAMILIES[name], (3, 48, 40)
    block = draw_blocks(rng, 1, *shape)[0]
    layout = packed_layout(family, *shape)
    found = decoded(layout, tables_of(layout, family, block[None]), block)
    wanted = block.astype(np.float32)
    for part, axis in ((0, 1), (1, 2)):
        scope = wanted[part].max(axis, keepdims=True) - wanted[part].min(axis, keepdims=True)
        step = scope / (2**family.bits - 1)
        # The scale is an fp16 that is rounded up, and what is decoded is rounded to fp16.
        bound = 0.502 * step + 2.0**-10 * abs(wanted[part]) + 2.0**-24
        assert (abs(found[part] - wanted[part]) <= bound).all()


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("calibrated", [False, True])
def test_outliers_are_exact_and_narrow_the_range_of_the_rest(rng, bits, calibrated):
    family, shape = FAMILIES[f"NUQ{bits}"], (2, 64, 64)
    block = rng.standard_normal((2, *shape)).astype(np.float16)
    layout = packed_layout(family, *shape, calibrated)
    for head in range(2):
        places = rng.permutation(64 * 64)[: layout.capacity // 2]
        block[:, head].reshape(2, -1)[:, places] = rng.choice([-500, 500], len(places))
    tables = tables_of(layout, family, np.clip(2 * block, -4, 4)[None])
    found = decoded(layout, tables, block)
    far = abs(block) == 500
    np.testing.assert_array_equal(found[far], block[far])
    rest = abs(found - block)[~far]
    assert rest.max() < 10 / (2**bits - 1)


@pytest.mark.parametrize(("name", "calibrated"), EXAMPLES)
def test_constants_are_exact(name, calibrated):
    family, shape = FAMILIES[name], (2, 16, 32)
    layout = packed_layout(family, *shape, calibrated)
    for number in (0.0, -7.5, 65504.0, 6e-8):
        block = np.full((2, *shape), number, np.float16)
        tables = tables_of(layout, family, block[None])
        np.testing.assert_array_equal(decoded(layout, tables, block), block.astype(np.float32))


def test_decodes_to_finite_numbers_at_the_ends_of_the_range(rng):
    block = rng.choice(np.array([-65504, 65504, 0], np.float16), (2, 2, 16, 32))
    for name, family in FAMILIES.items():
        layout = packed_layout(family, 2, 16, 32)
        found = decoded(layout, tables_of(layout, family, block[None]), block)
        assert np.isfinite(found).all(), name


def test_codes_take_the_nearest_level(rng):
    family = PackedFamily(3, outliers=True)
    layout = packed_layout(family, 1, 16, 32, calibrated=True)
    block = rng.uniform(-1, 1, (2, 1, 16, 32)).astype(np.float16)
    tables = tables_of(layout, family, block[None], rng)
    unit = tables._replace(
        key_scale=np.ones((1, 32), np.float32),
        key_zero=np.zeros((1, 32), np.float32),
        key_low=np.full((1, 32), -2, np.float32),
        key_high=np.full((1, 32), 2, np.float32),
    )
    keys, levels = block[0].astype(np.float32), unit.key_levels[:8]
    nearest = levels[abs(keys[..., None] - levels).argmin(-1)].astype(np.float16)
    np.testing.assert_array_equal(decoded(layout, unit, block)[0], nearest)


def test_levels_of_cases_ascend(rng):
    for family in FAMILIES.values():
        assert (np.diff(levels_of(family, rng)) > 0).all()


@pytest.mark.parametrize(("name", "calibrated"), EXAMPLES)
@pytest.mark.parametrize(
    ("heads", "block_size", "dim"),
    [
        (1, 16, 32),
        (3, 64, 64),
        (2, 33, 80),
        (5, 17, 40),
        (2, 128, 128),
        (1, 31, 96),
        (1, 256, 256),
        (16, 1, 64),
    ],
)
def test_packs_and_unpacks_as_the_reference(rng, poisoned, name, calibrated, heads, block_size, dim):
    family, shape = FAMILIES[name], (heads, block_size, dim)
    layout = packed_layout(family, *shape, calibrated)
    blocks = draw_blocks(rng, 3, *shape)
    tables = tables_of(layout, family, blocks, rng)
    pages, slots = np.array([4, 0, 2], np.int32), np.array([1, 3, 0], np.int32)
    stored = rng.integers(0, 256, (5, layout.block_bytes)).astype(np.uint8)
    expected = stored.copy()
    expected[pages] = [reference.encode_block(layout, tables, block.view(np.uint16)) for block in blocks]
    assert encode_blocks(layout, tables, blocks.view(np.uint16), stored, pages)
    np.testing.assert_array_equal(stored, expected)
    out = poisoned((4, 2, *shape), np.uint16)
    wanted = out.copy()
    wanted[slots] = [reference.decode_block(layout, tables, stored[page]) for page in pages]
    decode_blocks(layout, tables, stored, pages, out, slots)
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize(
    ("heads", "block_size", "dim"), [(3, 64, 64), (2, 33, 80), (5, 17, 40), (1, 1, 32), (1, 150, 48)]
)
def test_keys_with_feedback_are_packed_as_the_reference(rng, bits, heads, block_size, dim):
    family, shape = FAMILIES[f"NUQ{bits}"], (heads, block_size, dim)
    layout = packed_layout(family, *shape, True)
    blocks = draw_blocks(rng, 2, *shape)
    shares = rng.standard_normal((heads, dim, dim)).astype(np.float32) / 4
    tables, pages = tables_of(layout, family, blocks, rng, shares), np.array([1, 2], np.int32)
    stored = np.zeros((3, layout.block_bytes), np.uint8)
    assert encode_blocks(layout, tables, blocks.view(np.uint16), stored, pages)
    expected = [reference.encode_block(layout, tables, block.view(np.uint16)) for block in blocks]
    np.testing.assert_array_equal(stored[pages], expected)


def test_feedback_makes_scores_of_alike_queries_more_exact(rng):
    family, shape = FAMILIES["NUQ3"], (2, 64, 32)
    layout = packed_layout(family, *shape, True)
    blocks = rng.standard_normal((3, 2, *shape)).astype(np.float16)
    queries = rng.standard_normal((2, 500, 4)) @ rng.standard_normal((2, 4, 32))  # they span few directions
    products = queries.mT @ queries + 0.01 * np.eye(32)
    shares = np.linalg.cholesky(np.linalg.inv(products)).mT
    shares = (shares / np.diagonal(shares, axis1=1, axis2=2)[..., None]).astype(np.float32)
    missed = []
    for feedback in (None, shares):
        tables = tables_of(layout, family, blocks, feedback=feedback)
        packed = [reference.encode_block(layout, tables, block.view(np.uint16)) for block in blocks]
        found = np.array([reference.decoded_numbers(layout, tables, each)[0] for each in packed])
        missed.append((((found - blocks[:, 0]) @ queries.mT) ** 2).mean())
    assert missed[1] < missed[0] / 3


def test_several_threads_pack_and_unpack_the_same(rng):
    family, shape = FAMILIES["NUQ3"], (2, 32, 64)
    layout = packed_layout(family, *shape)
    blocks = draw_blocks(rng, 24, *shape)
    tables, pages = tables_of(layout, family, blocks), rng.permutation(24).astype(np.int32)
    stored = np.zeros((2, 24, layout.block_bytes), np.uint8)
    out = np.zeros((2, 24, 2, *shape), np.uint16)
    results = iter(range(2))

    def use() -> None:
        index = next(results)
        assert encode_blocks(layout, tables, blocks.view(np.uint16), stored[index], pages)
        decode_blocks(layout, tables, stored[index], pages, out[index], pages)

    in_both_ways(use)
    np.testing.assert_array_equal(stored[0], stored[1])
    np.testing.assert_array_equal(out[0], out[1])
    assert out[0].any()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (1, 1, 1, 15, 31)])
def test_refuses_what_is_not_finite(rng, bad, place):
    for name, calibrated in EXAMPLES:
        layout = packed_layout(FAMILIES[name], 2, 16, 32, calibrated)
        blocks = draw_blocks(rng, 2, 2, 16, 32)
        tables, pages = tables_of(layout, FAMILIES[name], blocks), np.array([1, 0], np.int32)
        blocks[place] = bad
        stored = np.zeros((2, layout.block_bytes), np.uint8)
        assert not encode_blocks(layout, tables, blocks.view(np.uint16), stored, pages)


def outliers_of(layout, stored):
    """Places and exact numbers of the keys, then of the values, in the list of the first head."""
    listed = stored[layout.outliers :].view(np.uint16)
    places, exact = listed[2 : 2 + layout.capacity], listed[2 + layout.capacity : 2 + 2 * layout.capacity]
    ends = np.cumsum(listed[:2])
    assert not places[ends[1] :].any()
    return [part.tolist() for each in (places, exact.view(np.float16)) for part in np.split(each, ends)[:2]]


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("calibrated", [False, True])
def test_of_more_outliers_than_a_list_holds_the_farthest_are_kept(bits, calibrated):
    family, shape = FAMILIES[f"NUQ{bits}"], (1, 64, 64)
    layout = packed_layout(family, *shape, calibrated)
    block = np.resize(np.array([-1, 1], np.float16), (2, *shape))
    tables = tables_of(layout, family, block[None])
    few = layout.capacity // 4
    far = {0: few, 1: min(64, layout.capacity)}
    for part, count in far.items():
        for token in range(count):
            block[part, 0, token, token] = 10 * (token + 1)
    stored = np.zeros((1, layout.block_bytes), np.uint8)
    assert encode_blocks(layout, tables, block[None].view(np.uint16), stored, np.array([0], np.int32))
    keys, values, exact_keys, exact_values = outliers_of(layout, stored[0])
    assert keys == [65 * token for token in range(few)]
    kept = range(far[1] - min(far[1], layout.capacity - few), far[1])
    assert values == [65 * token for token in kept]
    assert exact_keys == [10 * (token + 1) for token in range(few)]
    assert exact_values == [10 * (token + 1) for token in kept]


@pytest.mark.parametrize("calibrated", [False, True])
def test_keys_have_their_places_first(rng, calibrated):
    family, shape = FAMILIES["NUQ3"], (1, 64, 64)
    layout = packed_layout(family, *shape, calibrated)
    block = rng.standard_normal((2, *shape)).astype(np.float16)
    tables = tables_of(layout, family, block[None])
    block *= 5
    stored = np.zeros((1, layout.block_bytes), np.uint8)
    assert encode_blocks(layout, tables, block[None].view(np.uint16), stored, np.array([0], np.int32))
    keys, values, *_ = outliers_of(layout, stored[0])
    assert len(keys) == layout.key_capacity == int(layout.capacity * (0.875 if calibrated else 0.5))
    assert len(values) == layout.capacity - len(keys)


def test_names_the_array_that_does_not_fit():
    layout = packed_layout(FAMILIES["NUQ2"], 2, 16, 32)
    blocks, out = np.zeros((1, 2, 2, 16, 32), np.uint16), np.zeros((3, 2, 2, 16, 32), np.uint16)
    tables = tables_of(layout, FAMILIES["NUQ2"], blocks.view(np.float16))
    stored, one = np.zeros((4, layout.block_bytes), np.uint8), np.array([1], np.int32)
    with pytest.raises(ValueError, match=r"^blocks: "):
        encode_blocks(layout, tables, np.zeros((2, 2, 2, 16, 32), np.uint16), stored, one)
    with pytest.raises(ValueError, match=r"^stored: "):
        encode_blocks(layout, tables, blocks, stored[:, 64:].copy(), one)
    with pytest.raises(ValueError, match=r"^pages: values from 4"):
        encode_blocks(layout, tables, blocks, stored, np.array([4], np.int32))
    with pytest.raises(ValueError, match=r"^slots: values from 3"):
        decode_blocks(layout, tables, stored, one, out, np.array([3], np.int32))
    with pytest.raises(ValueError, match=r"^out: "):
        decode_blocks(layout, tables, stored, one, out[:, :1].copy(), one)
