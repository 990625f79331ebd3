"""Every format of rows must store rows and give blocks back; `decode` of what `encode` wrote is near the rows.

What holds for all formats, packed ones too, is tested for every `KvType`.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from moorage.workers.kv.formats import format_of
from moorage.workers.spec import BlockShape, KvLayout, KvType

SHAPE = BlockShape(2, 8, 64)
NUM_PAGES = 5
PAGES = np.array([3, 0, 4], np.int32)


@pytest.fixture(params=[each for each in KvType if format_of(each).is_native])
def kv_type(request: pytest.FixtureRequest) -> KvType:
    return KvType(request.param)


@pytest.fixture(params=list(KvType))
def any_type(request: pytest.FixtureRequest) -> KvType:
    return KvType(request.param)


def empty(kv_type: KvType) -> np.ndarray:
    """A layer's blocks, which hold other sessions' bytes."""
    found = format_of(kv_type)
    memory = np.full((NUM_PAGES, found.block_bytes(SHAPE)), 60, np.uint8)
    return found.view(memory, SHAPE)


def decoded(kv_type: KvType, blocks: np.ndarray, pages: np.ndarray) -> np.ndarray:
    found = format_of(kv_type)
    out = np.zeros((len(pages) + 1, 2, *SHAPE), found.storage)
    found.decode(blocks, pages, out, np.arange(1, len(pages) + 1, dtype=np.int32))
    assert not out[0].any()
    return out[1:].view(found.element).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("start", "count"), [(0, 24), (3, 1), (5, 12), (8, 8), (23, 1), (7, 0)])
def test_rows_come_back_from_their_blocks(
    rng: np.random.Generator, kv_type: KvType, start: int, count: int, dtype: type
) -> None:
    found, blocks = format_of(kv_type), empty(kv_type)
    rows = rng.standard_normal((2, count, SHAPE.num_kv_heads, SHAPE.head_dim)).astype(dtype)
    given = rows.view(found.storage) if dtype == found.element else rows.astype(np.float32)
    before = decoded(kv_type, blocks, PAGES)
    assert found.encode(blocks, PAGES, start, *given)
    now = decoded(kv_type, blocks, PAGES)
    tokens = now.transpose(1, 0, 3, 2, 4).reshape(2, -1, SHAPE.num_kv_heads, SHAPE.head_dim)
    np.testing.assert_allclose(tokens[:, start : start + count], rows, atol=0.02)
    kept = before.transpose(1, 0, 3, 2, 4).reshape(tokens.shape)
    np.testing.assert_array_equal(tokens[:, :start], kept[:, :start])
    np.testing.assert_array_equal(tokens[:, start + count :], kept[:, start + count :])


def test_cleared_rows_are_zero(rng: np.random.Generator, kv_type: KvType) -> None:
    found, blocks = format_of(kv_type), empty(kv_type)
    rows = rng.standard_normal((2, 8, SHAPE.num_kv_heads, SHAPE.head_dim)).astype(np.float32)
    assert found.encode(blocks, PAGES[:1], 0, *rows)
    before = decoded(kv_type, blocks, PAGES[:1])
    found.clear(blocks, int(PAGES[0]), 3)
    now = decoded(kv_type, blocks, PAGES[:1])
    np.testing.assert_array_equal(now[:, :, :, :3], before[:, :, :, :3])
    assert not now[:, :, :, 3:].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(kv_type: KvType, bad: float) -> None:
    found, blocks = format_of(kv_type), empty(kv_type)
    rows = np.zeros((2, 1, SHAPE.num_kv_heads, SHAPE.head_dim), np.float32)
    rows[1, 0, 1, 5] = bad
    assert not found.encode(blocks, PAGES, 4, *rows)
    assert found.limit


def test_a_layout_takes_its_bytes_from_the_format(any_type: KvType) -> None:
    layout, found = KvLayout(3, *SHAPE[::2], SHAPE[1], any_type), format_of(any_type)
    assert layout.block_bytes == found.block_bytes(SHAPE)
    assert layout.block_bytes % 4 == 0
    assert layout.slot_bytes == 2 * 2 * 8 * 64 * found.storage.itemsize
    assert layout.anchor_bytes == 2 * 2 * 64 * found.storage.itemsize


def test_sizes_are_told_without_kernels(any_type: KvType) -> None:
    code = (
        "import sys; from moorage.workers.spec import KvLayout, KvType\n"
        f"print(KvLayout(1, 2, 64, 8, KvType({any_type.value!r})).page_bytes > 0, 'numba' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "False"]
