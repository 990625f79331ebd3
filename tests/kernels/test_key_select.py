"""The selection of single keys by the definition: codes read bit by bit, and choices that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.hadamard import hadamard_matrix
from moorage.kernels.key_select import reference


def packed(keys: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Codes [n, bytes] of keys [n, Hkv, B, D], each bit and scale written on its own."""
    num_blocks, num_kv_heads, size, dim = keys.shape
    turned = (keys - means[:, :, None]) @ hadamard_matrix(dim)
    blocks = []
    for block, head in np.ndindex(num_blocks, num_kv_heads):
        planes = np.zeros((-(-dim // 8), size), np.uint8)
        for t, d in np.ndindex(size, dim):
            planes[d // 8, t] |= int(turned[block, head, t, d] >= 0) << d % 8
        scales = np.abs(turned[block, head]).mean(axis=-1).astype("<f2")
        blocks.append(planes.tobytes() + scales.tobytes())
    return np.frombuffer(b"".join(blocks), np.uint8).reshape(num_blocks, -1)


def one_channel(logits: list[list[float]], size: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, means, queries) of one KV head whose estimates are exactly `logits` [G, T], T a multiple of `size`.

    Heads of dimension G: each query head is one unit vector, and each key stands at its logits. One-bit codes hold
    two-valued keys alone, so each block has one logit, and its mean is the key.
    """
    rows = np.array(logits)
    group, count = rows.shape
    dim = 1 << (group - 1).bit_length()
    means = np.zeros((count // size, 1, dim))
    means[:, 0, :group] = rows[:, ::size].T
    keys = np.repeat(means[:, :, None], size, axis=2)
    return packed(keys, means), means, np.eye(dim)[:group]


def test_codes_are_read_as_they_are_written() -> None:
    # One block of two keys, of one KV head of 16 channels: 2 bytes a key, plane by plane.
    codes = np.zeros((1, 2 * (2 + 2)), np.uint8)
    codes[0, :4] = 0b101, 0b10, 0, 0b10000000
    codes[0, 4:] = np.array([1.5, 0.25], "<f2").view(np.uint8)
    signs, scales = reference.unpack_codes(codes, 1, 2, 16)
    assert np.flatnonzero(signs[0, 0, 0] > 0).tolist() == [0, 2]
    assert np.flatnonzero(signs[0, 0, 1] > 0).tolist() == [1, 15]
    assert set(np.unique(signs)) == {-1, 1}
    assert scales.tolist() == [[[1.5, 0.25]]]


@pytest.mark.parametrize("dim", [8, 24, 64, 96, 128])
def test_codes_of_every_head_size_hold_signs_and_scales(rng: np.random.Generator, dim: int) -> None:
    keys, means = rng.standard_normal((3, 2, 16, dim)), rng.standard_normal((3, 2, dim))
    turned = (keys - means[:, :, None]) @ hadamard_matrix(dim)
    signs, scales = reference.unpack_codes(packed(keys, means), 2, 16, dim)
    np.testing.assert_array_equal(signs, np.where(turned >= 0, 1, -1))
    np.testing.assert_allclose(scales, np.abs(turned).mean(axis=-1), rtol=1e-3)


def test_an_estimate_is_the_product_with_the_key_that_its_code_stands_for(rng: np.random.Generator) -> None:
    means, queries = rng.standard_normal((2, 2, 64)), rng.standard_normal((6, 64))
    keys = rng.standard_normal((2, 2, 16, 64))
    codes = packed(keys, means)
    signs, scales = reference.unpack_codes(codes, 2, 16, 64)
    decoded = means[:, :, None] + (scales[..., None] * signs) @ hadamard_matrix(64)
    expected = [
        [0.125 * queries[h] @ decoded[block, h // 3, t] for block in range(2) for t in range(16)]
        for h in range(6)
    ]
    found = reference.estimated_logits(codes, means, queries, block_size=16, scale=0.125)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_key_of_one_head_s_share_comes_before_a_key_of_larger_logits() -> None:
    # Head 0 has large logits everywhere, head 1 small ones with one key that stands out.
    logits = [[9.0] * 16 + [9.1] * 16 + [9.0] * 16, [0.0] * 16 + [0.0] * 16 + [3.0] * 16]
    values = reference.key_values(np.array(logits)[:, ::16])
    assert values.argmax() == 2
    codes, means, queries = one_channel(logits)
    exact = np.array(logits)
    found = reference.select_keys(
        codes, means, queries, exact, block_size=16, scale=1.0, topk_keys=16, key_margin=1
    )
    assert found.tolist() == [list(range(32, 48))]


def test_exact_logits_decide_among_the_margin_alone() -> None:
    codes, means, queries = one_channel([[2.0] * 16 + [1.0] * 16])
    exact = np.zeros((1, 32))
    exact[0, 5], exact[0, 9], exact[0, 17] = 3.0, 4.0, 50.0  # token 17 has the 18th best estimate
    found = reference.select_keys(
        codes, means, queries, exact, block_size=16, scale=1.0, topk_keys=2, key_margin=8, first=100
    )
    assert found.tolist() == [[105, 109]]
    wider = reference.select_keys(
        codes, means, queries, exact, block_size=16, scale=1.0, topk_keys=2, key_margin=9, first=100
    )
    assert wider.tolist() == [[109, 117]]


def test_ties_go_to_the_earlier_position() -> None:
    codes, means, queries = one_channel([[1.0] * 48])
    found = reference.select_keys(
        codes, means, queries, np.ones((1, 48)), block_size=16, scale=1.0, topk_keys=3, key_margin=2
    )
    assert found.tolist() == [[0, 1, 2]]


def test_fewer_candidates_than_keys_are_padded() -> None:
    codes, means, queries = one_channel([[1.0] * 16])
    found = reference.select_keys(
        codes, means, queries, np.ones((1, 16)), block_size=16, scale=1.0, topk_keys=20, key_margin=4
    )
    assert found.tolist() == [[*range(16), -1, -1, -1, -1]]
    none = reference.select_keys(
        codes[:0], means[:0], queries, np.ones((1, 0)), block_size=16, scale=1.0, topk_keys=2, key_margin=4
    )
    assert none.tolist() == [[-1, -1]]


def test_each_kv_head_selects_by_its_own_query_heads(rng: np.random.Generator) -> None:
    keys, means = rng.standard_normal((4, 2, 16, 64)), np.zeros((4, 2, 64))
    codes, queries = packed(keys, means), rng.standard_normal((4, 64))
    exact = rng.standard_normal((4, 64))
    arguments = {"block_size": 16, "scale": 0.125, "topk_keys": 5, "key_margin": 3}
    found = reference.select_keys(codes, means, queries, exact, **arguments)
    asked: list[int] = []

    def of_positions(head: int, positions: np.ndarray) -> np.ndarray:
        asked.append(len(positions))
        return exact[2 * head : 2 * head + 2, positions]

    again = reference.select_keys(codes, means, queries, of_positions, **arguments)
    np.testing.assert_array_equal(found, again)
    assert asked == [15, 15]
    for head in range(2):
        size = codes.shape[1] // 2
        alone = reference.select_keys(
            codes[:, head * size : (head + 1) * size],
            means[:, head : head + 1],
            queries[2 * head : 2 * head + 2],
            exact[2 * head : 2 * head + 2],
            **arguments,
        )
        np.testing.assert_array_equal(alone[0], found[head])
