from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_anchors import build_anchors, reference
from moorage.kernels.half import from_storage

SHAPES = [  # block size, sub-blocks, head size
    (1, 1, 16),
    (2, 2, 32),
    (7, 1, 64),
    (7, 3, 96),
    (32, 4, 32),
    (33, 4, 16),
    (128, 1, 128),
    (128, 8, 256),
    (255, 16, 64),
    (256, 2, 96),
]


@pytest.mark.parametrize("quest", [False, True])
@pytest.mark.parametrize(("block_size", "num_subs", "dim"), SHAPES)
@pytest.mark.parametrize("num_pages", [0, 1, 5])
def test_matches_reference(rng, draw, poisoned, storage, block_size, num_subs, dim, num_pages, quest):
    kv = draw(6, 2, 3, block_size, dim)
    pages = rng.permutation(6)[:num_pages].astype(np.int32)
    actual = poisoned((6, 3, num_subs * (2 if quest else 1), dim), storage)
    expected = actual.copy()
    build_anchors(kv, actual, pages, quest)
    reference.build_anchors(kv, expected, pages, quest)
    if quest:
        np.testing.assert_array_equal(from_storage(actual), from_storage(expected))
    else:
        rounding = 2**-10 if storage == np.uint16 else 1e-6
        np.testing.assert_allclose(from_storage(actual), from_storage(expected), rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("quest", [False, True])
def test_large_builds_take_the_parallel_path(draw, poisoned, storage, quest):
    kv = draw(80, 2, 4, 128, 128)
    pages = np.arange(79, -1, -1, dtype=np.int32)
    actual = poisoned((80, 4, 4, 128), storage)
    expected = actual.copy()
    build_anchors(kv, actual, pages, quest)
    reference.build_anchors(kv, expected, pages, quest)
    np.testing.assert_allclose(from_storage(actual), from_storage(expected), rtol=2**-10, atol=1e-6)


def test_bounds_hold_every_key(draw, poisoned, storage):
    kv = draw(2, 2, 2, 24, 32)
    anchors = poisoned((2, 2, 6, 32), storage)
    build_anchors(kv, anchors, np.arange(2, dtype=np.int32), True)
    keys = from_storage(kv)[:, 0].reshape(2, 2, 3, 8, 32)
    assert (from_storage(anchors)[:, :, 0::2, None] >= keys).all()
    assert (from_storage(anchors)[:, :, 1::2, None] <= keys).all()


@pytest.mark.parametrize(
    ("vectors", "pages", "message"), [(3, [0], "vectors"), (18, [0], "sub-blocks"), (2, [4], "pages")]
)
def test_refuses_what_does_not_fit(vectors, pages, message):
    kv, anchors = np.zeros((4, 2, 1, 8, 16), np.uint16), np.zeros((4, 1, vectors, 16), np.uint16)
    with pytest.raises(ValueError, match=message):
        build_anchors(kv, anchors, np.array(pages, np.int32), True)
