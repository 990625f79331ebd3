from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_anchors import build_anchors, reference
from moorage.kernels.half import from_storage

SHAPES = [  # block size, vectors or bounds, head size
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
KINDS = ["mean", "bounds", "max", "fixed", "important"]


def vectors(kind: str, num_subs: int) -> int:
    return num_subs * (2 if kind == "bounds" else 1)


def extra(rng, kind, num_pages, num_heads, block_size, num_subs):
    """What `important` needs beside the keys; coarse numbers, so that some are equal."""
    if kind != "important":
        return {}
    importance = np.round(rng.random((num_pages, num_heads, block_size)), 1).astype(np.float32)
    return {"importance": importance, "num_top": int(rng.integers(num_subs, block_size + 1))}


def assert_equal(actual, expected, kind, storage, rotated=False):
    if kind in ("bounds", "max", "fixed") and not rotated:
        np.testing.assert_array_equal(from_storage(actual), from_storage(expected))
    else:
        rounding = 2**-10 if storage == np.uint16 else 1e-6
        np.testing.assert_allclose(from_storage(actual), from_storage(expected), rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block_size", "num_subs", "dim"), SHAPES)
@pytest.mark.parametrize("num_pages", [0, 1, 5])
def test_matches_reference(rng, draw, poisoned, storage, block_size, num_subs, dim, num_pages, kind):
    kv = draw(6, 2, 3, block_size, dim)
    pages = rng.permutation(6)[:num_pages].astype(np.int32)
    more = extra(rng, kind, num_pages, 3, block_size, num_subs)
    actual = poisoned((6, 3, vectors(kind, num_subs), dim), storage)
    expected = actual.copy()
    build_anchors(kv, actual, pages, kind, **more)
    reference.build_anchors(kv, expected, pages, kind, **more)
    assert_equal(actual, expected, kind, storage)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1, 5, 16])
def test_keys_are_rotated_first(rng, draw, poisoned, storage, kind, pairs):
    kv, pages = draw(4, 2, 2, 12, 32), np.array([3, 0], np.int32)
    angles = rng.uniform(-9, 9, (2, 12, pairs))
    rotation = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    more = extra(rng, kind, 2, 2, 12, 3)
    actual = poisoned((4, 2, vectors(kind, 3), 32), storage)
    expected = actual.copy()
    build_anchors(kv, actual, pages, kind, rotation=rotation, **more)
    reference.build_anchors(kv, expected, pages, kind, rotation=rotation, **more)
    assert_equal(actual, expected, kind, storage, rotated=True)


@pytest.mark.parametrize("kind", KINDS)
def test_large_builds_take_the_parallel_path(rng, draw, poisoned, storage, kind):
    kv = draw(80, 2, 4, 128, 128)
    pages = np.arange(79, -1, -1, dtype=np.int32)
    more = extra(rng, kind, 80, 4, 128, 4)
    actual = poisoned((80, 4, 4, 128), storage)
    expected = actual.copy()
    build_anchors(kv, actual, pages, kind, **more)
    reference.build_anchors(kv, expected, pages, kind, **more)
    assert_equal(actual, expected, kind, storage)


def test_bounds_hold_every_key(draw, poisoned, storage):
    kv = draw(2, 2, 2, 24, 32)
    anchors = poisoned((2, 2, 6, 32), storage)
    build_anchors(kv, anchors, np.arange(2, dtype=np.int32), "bounds")
    keys = from_storage(kv)[:, 0].reshape(2, 2, 3, 8, 32)
    assert (from_storage(anchors)[:, :, 0::2, None] >= keys).all()
    assert (from_storage(anchors)[:, :, 1::2, None] <= keys).all()


@pytest.mark.parametrize(
    ("kind", "count", "pages", "message"),
    [
        ("bounds", 3, [0], "vectors"),
        ("bounds", 18, [0], "sub-blocks"),
        ("bounds", 2, [4], "pages"),
        ("median", 2, [0], "kind"),
        ("important", 2, [0], "num_top"),
    ],
)
def test_refuses_what_does_not_fit(kind, count, pages, message):
    kv, anchors = np.zeros((4, 2, 1, 8, 16), np.uint16), np.zeros((4, 1, count, 16), np.uint16)
    with pytest.raises(ValueError, match=message):
        build_anchors(kv, anchors, np.array(pages, np.int32), kind)
