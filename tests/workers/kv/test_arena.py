from __future__ import annotations

import os

import numpy as np
import pytest

from moorage.kernels.key_codes import TOKENS, centre_bytes, code_bytes
from moorage.workers.errors import InvalidConfig
from moorage.workers.kv.arena import Arena
from moorage.workers.spec import KEY_CODE_TOKENS, AnchorType, KvLayout, KvType


@pytest.mark.parametrize("kv_type", KvType)
@pytest.mark.parametrize(("anchor_type", "anchor_num"), [(AnchorType.QUEST, 2), (AnchorType.BLOCK_MEAN, 1)])
def test_bytes_are_those_of_the_layout(kv_type: KvType, anchor_type: AnchorType, anchor_num: int) -> None:
    layout = KvLayout(3, 2, 16, 8, kv_type, anchor_type, anchor_num)
    arena = Arena(layout, 5)
    rows = arena.raw if layout.is_packed else arena.kv
    assert [layer.shape for layer in rows] == 3 * [(5, 2, 2, layout.raw_rows, 16)]
    assert layout.is_packed or layout.raw_rows == 8
    assert arena.anchors.shape == (3, 5, 2, layout.anchor_vectors, 16)
    held = sum(layer.nbytes for layer in arena.stored) + arena.anchors.nbytes
    assert held == arena.num_bytes == 5 * layout.page_bytes
    assert os.fstat(arena.fd).st_size == arena.num_bytes
    assert not any(layer.any() for layer in rows)
    arena.close()


@pytest.mark.parametrize("head_dim", [8, 64, 80, 100, 256])
@pytest.mark.parametrize("keeps_centres", [False, True])
def test_codes_of_keys_have_the_bytes_that_their_kernel_writes(head_dim: int, keeps_centres: bool) -> None:
    layout = KvLayout(
        3, 2, head_dim, 3 * KEY_CODE_TOKENS, anchor_type=AnchorType.KEY_CODES, keeps_centres=keeps_centres
    )
    assert layout.centre_bytes == (centre_bytes(2, head_dim) if keeps_centres else 0)
    assert layout.code_bytes == code_bytes(2, 3 * KEY_CODE_TOKENS, head_dim)
    assert KEY_CODE_TOKENS == TOKENS
    arena = Arena(layout, 5)
    assert arena.codes.shape == (3, 5, layout.code_bytes)
    assert arena.centres.shape == (3, 5, layout.centre_bytes)
    index = arena.anchors.nbytes + arena.codes.nbytes + arena.centres.nbytes
    assert index == 5 * layout.page_anchor_bytes
    assert arena.kv.nbytes + index == 5 * layout.page_bytes
    arena.close()


def test_another_mapping_sees_the_same_memory() -> None:
    layout = KvLayout(2, 1, 16, 4)
    arena = Arena(layout, 3)
    other = Arena.attach(os.dup(arena.fd), layout, 3)
    arena.kv[1, 2, 0, 0, 3] = 7
    other.anchors[0, 1] = 9
    assert (other.kv[1, 2, 0, 0, 3] == 7).all()
    assert (arena.anchors[0, 1] == 9).all()
    view = other.kv
    other.close()
    arena.close()
    assert (view[1, 2, 0, 0, 3] == 7).all()


def test_a_mapping_of_another_size_is_refused() -> None:
    layout = KvLayout(2, 1, 16, 4)
    arena = Arena(layout, 3)
    with pytest.raises(InvalidConfig, match="expected"):
        Arena.attach(os.dup(arena.fd), layout, 4)
    arena.close()


def test_no_pages_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="0 pages"):
        Arena(KvLayout(1, 1, 16, 4), 0)


def test_the_memory_cannot_be_taken_away_from_a_mapping() -> None:
    arena = Arena(KvLayout(1, 1, 16, 4), 2)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 1)
    arena.close()


def test_close_gives_back_every_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        arena = Arena(KvLayout(1, 1, 16, 4), 2)
        np.testing.assert_array_equal(arena.kv, 0)
        arena.close()
        arena.close()
    assert len(os.listdir("/proc/self/fd")) == before
