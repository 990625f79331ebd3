from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_gather import gather_blocks, reference


@pytest.mark.parametrize(
    ("num_pages", "num_slots", "count", "block_size", "dim"),
    [(5, 9, 0, 8, 16), (5, 9, 1, 1, 32), (7, 7, 7, 33, 96), (300, 400, 250, 31, 128), (9, 20, 9, 256, 256)],
)
def test_matches_reference(rng, draw, poisoned, storage, num_pages, num_slots, count, block_size, dim):
    kv = draw(num_pages, 2, 2, block_size, dim)
    pages = rng.integers(0, num_pages, count).astype(np.int32)
    slots = rng.permutation(num_slots)[:count].astype(np.int32)
    actual = poisoned((num_slots, *kv.shape[1:]), storage)
    expected = actual.copy()
    gather_blocks(kv, pages, actual, slots)
    reference.gather_blocks(kv, pages, expected, slots)
    np.testing.assert_array_equal(actual, expected)


def test_refuses_what_does_not_fit():
    kv, out = np.zeros((4, 2, 1, 8, 16), np.uint16), np.zeros((3, 2, 1, 8, 16), np.uint16)
    one, two = np.array([0], np.int32), np.array([0, 1], np.int32)
    with pytest.raises(ValueError, match="pages"):
        gather_blocks(kv, np.array([4], np.int32), out, one)
    with pytest.raises(ValueError, match="slots"):
        gather_blocks(kv, one, out, np.array([3], np.int32))
    with pytest.raises(ValueError, match="slots: 2 for 1 pages"):
        gather_blocks(kv, one, out, two)
    with pytest.raises(ValueError, match="out"):
        gather_blocks(kv, one, out.astype(np.float32), one)


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("kv_layer", np.zeros((4, 3, 1, 8, 16), np.uint16)),
        ("kv_layer", np.zeros((4, 2, 8, 16), np.uint16)),
        ("out", np.zeros((3, 2, 1, 9, 16), np.uint16)),
        ("out", np.zeros((3, 2, 1, 8, 32), np.uint16)[..., ::2]),
        ("pages", np.array([1], np.int64)),
        ("slots", np.array([[1]], np.int32)),
    ],
)
def test_names_the_array_that_does_not_fit(changed, value):
    arguments = {"kv_layer": np.ones((4, 2, 1, 8, 16), np.uint16), "pages": np.array([1], np.int32)}
    arguments |= {
        "out": np.zeros((3, 2, 1, 8, 16), np.uint16),
        "slots": np.array([1], np.int32),
        changed: value,
    }
    with pytest.raises(ValueError, match=f"^{changed}: "):
        gather_blocks(**arguments)
    assert not arguments["out"].any()
