"""The selection of single keys by the definition: codes read bit by bit, and choices that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.hadamard import hadamard_matrix
from moorage.kernels.key_codes import code_bytes, encode_keys
from moorage.kernels.key_select import completion, cpu, reference
from moorage.kernels.key_select.filtering import about_reached


def packed(keys: np.ndarray, means: np.ndarray, mean_values: np.ndarray | None = None) -> np.ndarray:
    """Codes [n, bytes] of keys [n, Hkv, B, D] and mean values [n, Hkv, D], each bit and scale written on its own."""
    num_blocks, num_kv_heads, size, dim = keys.shape
    turned = (keys - means[:, :, None]) @ hadamard_matrix(dim)
    blocks = []
    for block, head in np.ndindex(num_blocks, num_kv_heads):
        planes = np.zeros((-(-dim // 8), size), np.uint8)
        for t, d in np.ndindex(size, dim):
            planes[d // 8, t] |= int(turned[block, head, t, d] >= 0) << d % 8
        scales = np.abs(turned[block, head]).mean(axis=-1).astype("<f2")
        values = np.zeros(dim) if mean_values is None else mean_values[block, head]
        blocks.append(planes.tobytes() + scales.tobytes() + values.astype("<f2").tobytes())
    return np.frombuffer(b"".join(blocks), np.uint8).reshape(num_blocks, -1)


def test_codes_are_read_as_they_are_written() -> None:
    # One block of two keys, of one KV head of 16 channels: 2 bytes a key, plane by plane.
    codes = np.zeros((1, 2 * (2 + 2) + 2 * 16), np.uint8)
    codes[0, :4] = 0b101, 0b10, 0, 0b10000000
    codes[0, 4:8] = np.array([1.5, 0.25], "<f2").view(np.uint8)
    codes[0, 8:] = np.arange(16, dtype="<f2").view(np.uint8)
    signs, scales, mean_values = reference.unpack_codes(codes, 1, 2, 16)
    assert np.flatnonzero(signs[0, 0, 0] > 0).tolist() == [0, 2]
    assert np.flatnonzero(signs[0, 0, 1] > 0).tolist() == [1, 15]
    assert set(np.unique(signs)) == {-1, 1}
    assert scales.tolist() == [[[1.5, 0.25]]]
    assert mean_values.tolist() == [[list(range(16))]]
    assert reference.unpack_codes(codes[:0], 1, 2, 16).signs.shape == (0, 1, 2, 16)


@pytest.mark.parametrize("dim", [8, 24, 64, 96, 128])
def test_codes_of_every_head_size_hold_signs_scales_and_mean_values(
    rng: np.random.Generator, dim: int
) -> None:
    keys, means = rng.standard_normal((3, 2, 16, dim)), rng.standard_normal((3, 2, dim))
    turned = (keys - means[:, :, None]) @ hadamard_matrix(dim)
    values = rng.standard_normal((3, 2, dim)).astype(np.float16)
    signs, scales, mean_values = reference.unpack_codes(packed(keys, means, values), 2, 16, dim)
    np.testing.assert_array_equal(mean_values, values)
    np.testing.assert_array_equal(signs, np.where(turned >= 0, 1, -1))
    np.testing.assert_allclose(scales, np.abs(turned).mean(axis=-1), rtol=1e-3)


def test_an_estimate_is_the_product_with_the_key_that_its_code_stands_for(rng: np.random.Generator) -> None:
    means, queries = rng.standard_normal((2, 2, 64)), rng.standard_normal((6, 64))
    keys = rng.standard_normal((2, 2, 16, 64))
    codes = packed(keys, means)
    signs, scales, _ = reference.unpack_codes(codes, 2, 16, 64)
    decoded = means[:, :, None] + (scales[..., None] * signs) @ hadamard_matrix(64)
    expected = [
        [0.125 * queries[h] @ decoded[block, h // 3, t] for block in range(2) for t in range(16)]
        for h in range(6)
    ]
    found = reference.estimated_logits(codes, means, queries, block_size=16, scale=0.125)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_key_of_one_head_s_share_comes_before_a_key_of_larger_logits() -> None:
    # Head 0 has large logits everywhere, head 1 small ones with one key that stands out from its window.
    logits, near = np.array([[9.0, 9.1, 9.0], [0.0, 0.0, 3.0]]), np.array([12.0, 2.0])
    assert reference.key_values(logits, near).tolist() == pytest.approx([-2.0, -2.0, 1.0])
    assert reference.select_keys(logits, near, num_kv_heads=1, topk_keys=1).tolist() == [[2]]


def test_ties_go_to_the_earlier_position() -> None:
    logits = np.array([[1.0, 2.0, 1.0, 2.0, 1.0]])
    found = reference.select_keys(logits, np.zeros(1), num_kv_heads=1, topk_keys=4, first=100)
    assert found.tolist() == [[100, 101, 102, 103]]


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_candidates_than_keys_are_padded(count: int) -> None:
    found = reference.select_keys(np.ones((4, count)), np.zeros(4), num_kv_heads=2, topk_keys=3)
    assert found.tolist() == [[*range(count), *[-1] * (3 - count)]] * 2


def test_each_kv_head_selects_by_its_own_query_heads(rng: np.random.Generator) -> None:
    estimated, near = rng.standard_normal((4, 64)), np.arange(4.0)
    found = reference.select_keys(estimated, near, num_kv_heads=2, topk_keys=5)
    for head in range(2):
        heads = slice(2 * head, 2 * head + 2)
        alone = reference.select_keys(estimated[heads], near[heads], num_kv_heads=1, topk_keys=5)
        np.testing.assert_array_equal(alone[0], found[head])


@pytest.mark.parametrize("stored", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("kv_heads", "group", "size", "dim"), [(2, 2, 16, 64), (3, 3, 64, 64), (1, 5, 32, 24), (2, 1, 48, 128)]
)
def test_compiled_values_are_of_estimates_with_queries_of_a_few_bits(
    rng: np.random.Generator, stored: type, kv_heads: int, group: int, size: int, dim: int
) -> None:
    num_pages = 400 // size + 3
    rows = rng.standard_normal((num_pages, 2, kv_heads, size, dim)).astype(stored)
    kv = rows.view(np.uint16) if stored is np.float16 else rows
    means = np.zeros((num_pages, kv_heads, 1, dim), kv.dtype)
    codes = np.zeros((num_pages, code_bytes(kv_heads, size, dim)), np.uint8)
    encode_keys(kv, means, codes, np.arange(num_pages, dtype=np.int32))
    pages = rng.permutation(num_pages)[:-2].astype(np.int32)
    queries, near = rng.standard_normal((kv_heads * group, dim), np.float32), np.arange(kv_heads * group) / 4
    values = np.full((kv_heads, len(pages) * size + 7), np.nan, np.float32)
    cpu.key_values(
        means, codes, pages, queries, near.astype(np.float32), scale=0.3, block_size=size, out=values, first=5
    )
    assert np.isnan(values[:, :5]).all()
    assert np.isnan(values[:, -2:]).all()
    halves = means[pages, :, 0].view(stored)
    logits = reference.estimated_logits(codes[pages], halves, queries, block_size=size, scale=0.3)
    expected = np.array(
        [
            reference.key_values(of_head, of_group)
            for of_head, of_group in zip(
                logits.reshape(kv_heads, group, -1), near.reshape(kv_heads, group), strict=True
            )
        ]
    )
    spread = values[:, 5:-2] - expected
    assert np.abs(spread).mean() < 0.05 * expected.std()


def test_each_block_completes_the_softmax_for_its_keys_that_are_not_selected() -> None:
    # One query head, two blocks of 16 keys from position 32 on; 4 keys of the second are selected.
    means, mean_values = np.array([[[0.0, 7.0]], [[np.log(3), 7.0]]]), np.array([[[1.0, 0.0]], [[0.0, 8.0]]])
    how = {"block_size": 16, "scale": 0.5, "first": 32}
    some = np.array([[48, 50, 62, 63, -1]])
    out, lse = reference.complete(means, mean_values, [[2.0, 0.0]], some, **how)
    assert np.exp(lse).tolist() == pytest.approx([16 + 12 * 3])
    np.testing.assert_allclose(out, [[16 / 52, 8 * 36 / 52]])
    whole = np.array([np.arange(32, 48)])
    out, lse = reference.complete(means[:1], mean_values[:1], [[2.0, 0.0]], whole, **how)
    assert (out.tolist(), lse.tolist()) == ([[0.0, 0.0]], [-np.inf])
    out, lse = reference.complete(means[:0], mean_values[:0], [[2.0, 0.0]], some, **how)
    assert (out.tolist(), lse.tolist()) == ([[0.0, 0.0]], [-np.inf])


@pytest.mark.parametrize("stored", [np.float16, np.float32])
@pytest.mark.parametrize("num_blocks", [0, 1, 9])
def test_the_completion_in_fp32_equals_the_definition(
    rng: np.random.Generator, num_blocks: int, stored: type
) -> None:
    means, mean_values = rng.standard_normal((2, num_blocks, 2, 24)).astype(np.float16)
    means = means.astype(stored)
    queries = rng.standard_normal((6, 24), np.float32)
    selected = [np.sort(rng.permutation(300)[:40]).astype(np.int32), np.arange(32, 48, dtype=np.int32)]
    how = {"block_size": 16, "scale": 0.7, "first": 32}
    bits = means.view(np.uint16) if stored is np.float16 else means
    found = completion.complete(bits, mean_values, queries, selected, **how)
    expected = reference.complete(means, mean_values, queries, selected, **how)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("least", [1, 7, 150, 999])
def test_a_threshold_is_reached_by_a_few_more_values_than_asked(rng: np.random.Generator, least: int) -> None:
    values = rng.standard_normal(1000).astype(np.float32) * 10
    found = about_reached(np.append(values, np.float32(99)), 1000, least)
    assert least <= np.count_nonzero(values >= found) <= 1.25 * least


def test_a_threshold_of_equal_or_missing_values_is_reached_by_enough() -> None:
    rows = [[1.0] * 20, [-np.inf] * 20, [np.inf] * 20, [np.nan, *[-np.inf] * 11, *range(8)]]
    for row, least in zip(rows, (5, 5, 5, 8), strict=True):
        values = np.array(row, np.float32)
        assert np.count_nonzero(values >= about_reached(values, 20, least)) >= least
