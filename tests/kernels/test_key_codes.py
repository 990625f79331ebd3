from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.hadamard import hadamard_matrix
from moorage.kernels.half import from_storage, to_storage
from moorage.kernels.key_codes import centre_bytes, code_bytes, encode_keys, num_planes, reference

SHAPES = [  # KV heads, block size, head size
    (1, 16, 8),
    (2, 16, 16),
    (3, 64, 64),
    (2, 48, 72),
    (2, 32, 80),
    (1, 64, 96),
    (1, 16, 100),
    (2, 128, 128),
    (1, 32, 256),
]


def drawn(rng, storage, num_pages, num_heads, block_size, dim):
    """Keys around a mean of their own, as those of trained models lie."""
    middle = 3 * rng.standard_normal((num_pages, 2, num_heads, 1, dim))
    rows = middle + rng.standard_normal((num_pages, 2, num_heads, block_size, dim))
    return to_storage(rows.astype(np.float32), storage == np.uint16)


def room(poisoned, storage, kv):
    """Anchors and codes of as many pages as `kv` has, with contents that no key gives."""
    num_pages, _, num_heads, block_size, dim = kv.shape
    anchors = poisoned((num_pages, num_heads, 1, dim), storage)
    return anchors, np.full((num_pages, code_bytes(num_heads, block_size, dim)), 0xA5, np.uint8)


def angles(rng, num_pages, block_size, pairs):
    turns = rng.uniform(-9, 9, (num_pages, block_size, pairs))
    return np.cos(turns).astype(np.float32), np.sin(turns).astype(np.float32)


def keys_of(kv, page, head, turns):
    return reference.rotated(from_storage(kv[page, 0, head]).astype(np.float64), turns)


def assert_codes(kv, anchors, codes, pages, rotation=None):
    """Anchors are the means; signs and scales are those of the keys less the anchors as they are stored."""
    _, _, num_heads, block_size, dim = kv.shape
    found = reference.codes_of(codes, num_heads, block_size, dim)
    signs = reference.signs_of(found.planes, dim)
    beyond = reference.signs_of(found.planes, 8 * num_planes(dim))[..., dim:]
    rounding = 2**-10 if kv.dtype == np.uint16 else 1e-5
    for place, page in enumerate(pages):
        turns = None if rotation is None else (rotation[0][place], rotation[1][place])
        for head in range(num_heads):
            keys, anchor = keys_of(kv, page, head, turns), from_storage(anchors[page, head, 0])
            np.testing.assert_allclose(anchor, keys.mean(axis=0), rtol=rounding, atol=1e-5)
            wanted = reference.transformed(keys, anchor)
            clear = np.abs(wanted) > 1e-4
            np.testing.assert_array_equal((signs[page, head] > 0)[clear], (wanted > 0)[clear])
            sizes = np.abs(wanted).mean(axis=1)
            np.testing.assert_allclose(found.scales[page, head], sizes, rtol=2**-10, atol=1e-4)
            values = from_storage(kv[page, 1, head]).astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(found.mean_values[page, head], values, rtol=2**-10, atol=1e-4)
            assert (beyond[page, head] < 0).all(), "bits beyond the head size are 0"


@pytest.mark.parametrize(("num_heads", "block_size", "dim"), SHAPES)
@pytest.mark.parametrize("num_pages", [0, 1, 4])
def test_codes_follow_their_definition(rng, poisoned, storage, num_heads, block_size, dim, num_pages):
    kv = drawn(rng, storage, 5, num_heads, block_size, dim)
    pages = rng.permutation(5)[:num_pages].astype(np.int32)
    anchors, codes = room(poisoned, storage, kv)
    others = np.setdiff1d(np.arange(5), pages)
    encode_keys(kv, anchors, codes, pages)
    assert_codes(kv, anchors, codes, pages)
    assert (codes[others] == 0xA5).all(), "other pages stay as they were"


@pytest.mark.parametrize(("num_heads", "block_size", "dim"), SHAPES)
@pytest.mark.parametrize("share", ["one pair", "a part", "all"])
def test_keys_are_rotated_first(rng, poisoned, storage, num_heads, block_size, dim, share):
    kv, pages = drawn(rng, storage, 4, num_heads, block_size, dim), np.array([3, 0], np.int32)
    rotation = angles(rng, 2, block_size, {"one pair": 1, "a part": dim // 4, "all": dim // 2}[share])
    anchors, codes = room(poisoned, storage, kv)
    encode_keys(kv, anchors, codes, pages, rotation)
    assert_codes(kv, anchors, codes, pages, rotation)


def test_the_reference_agrees(rng, poisoned, storage):
    kv, pages = drawn(rng, storage, 3, 2, 32, 96), np.array([2, 1], np.int32)
    rotation = angles(rng, 2, 32, 24)
    anchors, codes = room(poisoned, storage, kv)
    reference.encode_keys(kv, anchors, codes, pages, rotation)
    assert_codes(kv, anchors, codes, pages, rotation)


def test_large_builds_take_the_parallel_path(rng, poisoned, storage):
    kv, pages = drawn(rng, storage, 80, 4, 64, 128), np.arange(79, -1, -1, dtype=np.int32)
    anchors, codes = room(poisoned, storage, kv)
    encode_keys(kv, anchors, codes, pages)
    assert_codes(kv, anchors, codes, pages[:4])
    assert_codes(kv, anchors, codes, pages[-4:])
    alone = room(poisoned, storage, kv)
    for page in pages[::20]:
        encode_keys(kv, *alone, pages[page : page + 1])
        np.testing.assert_array_equal(alone[1][pages[page]], codes[pages[page]])


@pytest.mark.parametrize("dim", [64, 96])
def test_estimates_are_near_the_dot_products(rng, poisoned, storage, dim):
    """One bit a channel keeps most of what distinguishes the keys of a block."""
    kv = drawn(rng, storage, 2, 2, 64, dim)
    anchors, codes = room(poisoned, storage, kv)
    encode_keys(kv, anchors, codes, np.arange(2, dtype=np.int32))
    queries, keys = rng.standard_normal((50, dim)), from_storage(kv)[:, 0]
    found = reference.codes_of(codes, 2, 64, dim)
    signs = reference.signs_of(found.planes, dim) @ hadamard_matrix(dim)
    estimated = from_storage(anchors) + found.scales[..., None].astype(np.float64) * signs
    exact, guessed = (np.einsum("qd,phtd->qpht", queries, rows) for rows in (keys, estimated))
    assert np.corrcoef(exact.ravel(), guessed.ravel())[0, 1] > 0.97
    exact, guessed = (dots - dots.mean(axis=3, keepdims=True) for dots in (exact, guessed))
    assert np.corrcoef(exact.ravel(), guessed.ravel())[0, 1] > 0.7


def test_equal_keys_have_positive_signs_and_no_scale(storage, poisoned):
    """Keys that are their mean: every difference is 0, and 0 counts as positive."""
    kv = np.zeros((1, 2, 2, 16, 80), storage)
    kv[:, :, 1] = to_storage(np.full(80, 2.5, np.float32), storage == np.uint16)
    anchors, codes = room(poisoned, storage, kv)
    encode_keys(kv, anchors, codes, np.zeros(1, np.int32))
    found = reference.codes_of(codes, 2, 16, 80)
    np.testing.assert_array_equal(reference.signs_of(found.planes, 80), 1)
    np.testing.assert_array_equal(found.scales, 0)
    np.testing.assert_array_equal(found.mean_values, [[[0] * 80, [2.5] * 80]])


def test_keys_that_are_not_finite_touch_their_own_head_alone(rng, poisoned, storage):
    kv = drawn(rng, storage, 2, 2, 16, 64)
    bad = kv.copy()
    bad[1, 0, 1, 3, :3] = to_storage(np.array([np.nan, np.inf, -np.inf], np.float32), storage == np.uint16)
    pages = np.arange(2, dtype=np.int32)
    results = []
    for case in (kv, bad):
        anchors, codes = room(poisoned, storage, case)
        encode_keys(case, anchors, codes, pages)
        results.append((anchors, codes.reshape(2, 2, -1)))
    for page, head in ((0, 0), (0, 1), (1, 0)):
        np.testing.assert_array_equal(results[0][0][page, head], results[1][0][page, head])
        np.testing.assert_array_equal(results[0][1][page, head], results[1][1][page, head])


def test_scales_and_mean_values_stay_finite(poisoned):
    """Of float32 keys and values beyond what an fp16 can say."""
    kv = np.zeros((1, 2, 1, 16, 16), np.float32)
    kv[0, 0, 0, ::2], kv[0, 1] = 1e6, -1e6
    anchors, codes = room(poisoned, np.float32, kv)
    encode_keys(kv, anchors, codes, np.zeros(1, np.int32))
    found = reference.codes_of(codes, 1, 16, 16)
    assert found.scales.max() == 65504
    assert found.mean_values.min() == -65504


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 24}, "block size: 24; expected a positive multiple of 16"),
        ({"code_bytes": 1}, "codes_layer"),
        ({"vectors": 2}, "anchors_layer"),
        ({"pages": [4]}, "pages"),
        ({"pairs": 33}, "rotated pairs"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    size = change.get("block_size", 16)
    kv = np.zeros((4, 2, 1, size, 64), np.uint16)
    anchors = np.zeros((4, 1, change.get("vectors", 1), 64), np.uint16)
    codes = np.zeros((4, code_bytes(1, size, 64) + change.get("code_bytes", 0)), np.uint8)
    pages = np.array(change.get("pages", [0]), np.int32)
    turns = np.zeros((1, size, change.get("pairs", 0)), np.float32)
    with pytest.raises(ValueError, match=message):
        encode_keys(kv, anchors, codes, pages, (turns, turns))


@pytest.mark.parametrize(("dim", "planes"), [(16, 2), (64, 8), (65, 9), (80, 10), (256, 32)])
def test_sizes(dim, planes):
    assert num_planes(dim) == planes
    assert code_bytes(2, 32, dim) == 2 * (32 * (planes + 2) + 2 * dim)


@pytest.mark.parametrize(("num_heads", "block_size", "dim"), SHAPES)
@pytest.mark.parametrize("share", [0, 1])
def test_centres_are_those_of_the_reference(rng, poisoned, storage, num_heads, block_size, dim, share):
    kv, pages = drawn(rng, storage, 4, num_heads, block_size, dim), np.array([3, 0], np.int32)
    rotation = angles(rng, 2, block_size, dim // 2) if share else None
    found, wanted = (np.full((4, centre_bytes(num_heads, dim)), 0xA5, np.uint8) for _ in range(2))
    encode_keys(kv, *room(poisoned, storage, kv), pages, rotation, found)
    reference.encode_keys(kv, *room(poisoned, storage, kv), pages, rotation, wanted)
    assert (found[[1, 2]] == 0xA5).all(), "other pages stay as they were"
    for own, other in zip(*(each.reshape(4, num_heads, -1)[pages] for each in (found, wanted)), strict=True):
        (centres, radii), (expected, largest) = (reference.centres_in(each, dim) for each in (own, other))
        np.testing.assert_allclose(radii, largest, rtol=2**-9, atol=1e-6)
        # A channel between two codes may become either.
        step = np.abs(expected).max(axis=-1, keepdims=True) / 7
        assert (np.abs(centres - expected) <= step).all()
        assert (centres == expected).mean() > 0.98


def test_each_key_is_as_near_to_a_centre_as_its_radius_says(rng, poisoned, storage):
    kv = drawn(rng, storage, 6, 2, 32, 64)
    found = np.zeros((6, centre_bytes(2, 64)), np.uint8)
    encode_keys(kv, *room(poisoned, storage, kv), np.arange(6, dtype=np.int32), None, found)
    centres, radii = reference.centres_in(found.reshape(6, 2, -1), 64)
    keys = from_storage(kv)[:, 0].astype(np.float64) @ hadamard_matrix(64)
    distances = np.linalg.norm(keys[:, :, :, None] - centres[:, :, None], axis=-1)
    rounding = np.abs(centres).max(axis=-1) / 15 * np.sqrt(64)
    assert (distances <= (radii + rounding)[:, :, None]).any(axis=-1).all()


def test_equal_keys_are_their_centres(poisoned, storage):
    kv = drawn(np.random.default_rng(0), storage, 1, 1, 16, 64)
    kv[:] = kv[:, :, :, :1]
    found = np.zeros((1, centre_bytes(1, 64)), np.uint8)
    encode_keys(kv, *room(poisoned, storage, kv), np.zeros(1, np.int32), None, found)
    centres, radii = reference.centres_in(found, 64)
    key = from_storage(kv)[0, 0, 0, 0] @ hadamard_matrix(64)
    np.testing.assert_allclose(centres[0], np.tile(key, (4, 1)), atol=np.abs(key).max() / 15)
    np.testing.assert_allclose(radii, 0, atol=1e-6)
