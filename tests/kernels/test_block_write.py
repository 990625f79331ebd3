from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_write import reference, write_rows
from moorage.kernels.half import to_storage

CASES = [  # block size, start, tokens, head size
    (1, 0, 1, 16),
    (1, 5, 9, 32),
    (7, 3, 0, 16),
    (7, 6, 1, 64),
    (7, 0, 7, 96),
    (16, 15, 18, 16),
    (32, 31, 33, 32),
    (128, 100, 300, 128),
    (255, 254, 260, 64),
    (256, 0, 255, 256),
]


def tokens(rng, count, num_heads, dim):
    return rng.standard_normal((count, num_heads, dim)).astype(np.float32)


@pytest.mark.parametrize(("block_size", "start", "count", "dim"), CASES)
@pytest.mark.parametrize("as_stored", [False, True])
def test_matches_reference(rng, poisoned, storage, block_size, start, count, dim, as_stored):
    num_heads = int(rng.integers(1, 5))
    num_blocks = -(-(start + count) // block_size)
    pages = rng.permutation(num_blocks + 3)[: num_blocks + 1].astype(np.int32)
    k, v = tokens(rng, count, num_heads, dim), tokens(rng, count, num_heads, dim)
    if as_stored:
        k, v = (to_storage(rows, storage == np.uint16) for rows in (k, v))
    actual = poisoned((num_blocks + 3, 2, num_heads, block_size, dim), storage)
    expected = actual.copy()
    write_rows(actual, pages, start, k, v)
    reference.write_rows(expected, pages, start, k, v)
    np.testing.assert_array_equal(actual.view(f"u{actual.itemsize}"), expected.view(f"u{actual.itemsize}"))


def test_large_writes_take_the_parallel_path(rng, poisoned, storage):
    k, v = tokens(rng, 6000, 2, 96), tokens(rng, 6000, 2, 96)
    pages = rng.permutation(100).astype(np.int32)
    actual = poisoned((100, 2, 2, 61, 96), storage)
    expected = actual.copy()
    write_rows(actual, pages, 33, k, v)
    reference.write_rows(expected, pages, 33, k, v)
    np.testing.assert_array_equal(actual.view(f"u{actual.itemsize}"), expected.view(f"u{actual.itemsize}"))


def test_rows_may_be_a_view_of_something_larger(rng, poisoned):
    both = rng.standard_normal((5, 2, 3, 16)).astype(np.float32)
    actual = poisoned((2, 2, 3, 8, 16), np.float32)
    write_rows(actual, np.array([1], np.int32), 2, both[:, 0], both[:, 1])
    np.testing.assert_array_equal(actual[1, :, :, 2:7], both.transpose(1, 2, 0, 3))


@pytest.mark.parametrize(
    ("pages", "start", "message"),
    [([0, 1], 13, "start"), ([0, 1], -1, "start"), ([2, 0], 0, "pages"), ([-1, 0], 0, "pages")],
)
def test_refuses_rows_outside_the_pages(pages, start, message):
    rows = np.zeros((12, 1, 16), np.float32)
    with pytest.raises(ValueError, match=message):
        write_rows(np.zeros((2, 2, 1, 12, 16), np.uint16), np.array(pages, np.int32), start, rows, rows)


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("kv_layer", np.zeros((2, 3, 1, 12, 16), np.uint16)),
        ("kv_layer", np.zeros((2, 2, 1, 12, 16), np.float64)),
        ("k", np.zeros((3, 2, 16), np.float32)),
        ("k", np.zeros((3, 1, 16), np.float64)),
        ("v", np.zeros((2, 1, 16), np.float32)),
        ("v", np.zeros((3, 1, 32), np.float32)),
        ("pages", np.array([0, 1], np.int64)),
        ("pages", np.array([[0, 1]], np.int32)),
    ],
)
def test_names_the_array_that_does_not_fit(changed, value):
    rows = np.zeros((3, 1, 16), np.float32)
    arguments = {"kv_layer": np.zeros((2, 2, 1, 12, 16), np.uint16), "pages": np.array([0, 1], np.int32)}
    arguments |= {"start": 0, "k": rows, "v": rows, changed: value}
    before = arguments["kv_layer"].copy()
    with pytest.raises(ValueError, match=f"^{changed}: "):
        write_rows(**arguments)
    np.testing.assert_array_equal(arguments["kv_layer"], before)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("count", [1, 40, 6000])
def test_says_whether_all_that_is_stored_is_finite(rng, storage, bad, count):
    pages = rng.permutation(count // 8 + 2).astype(np.int32)
    layer = np.zeros((len(pages), 2, 3, 8, 16), storage)
    for place in range(2):
        for as_stored in (False, True):
            rows = [65504.0 * np.sign(tokens(rng, count, 3, 16)) for _ in range(2)]
            given = [to_storage(each, storage == np.uint16) if as_stored else each for each in rows]
            assert write_rows(layer, pages, 5, *given)
            rows[place][rng.integers(count), rng.integers(3), rng.integers(16)] = bad
            given = [to_storage(each, storage == np.uint16) if as_stored else each for each in rows]
            assert not write_rows(layer, pages, 5, *given)
            assert not reference.write_rows(layer, pages, 5, *given)


def test_numbers_beyond_half_are_not_finite_where_they_are_stored(storage):
    layer, rows = np.zeros((1, 2, 1, 8, 16), storage), np.full((1, 1, 16), 65519.0, np.float32)
    pages = np.zeros(1, np.int32)
    assert write_rows(layer, pages, 0, rows, -rows)
    assert write_rows(layer, pages, 0, rows, -rows - 1) == (storage == np.float32)
    assert write_rows(layer, pages, 0, rows[:0], rows[:0])
