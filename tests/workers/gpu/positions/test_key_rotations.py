"""Products of one query with single distant keys, against the definition of every scheme pair by pair."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from moorage.kernels.key_attention import key_logits
from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.gpu.positions.key_rotations import KeyRotations
from moorage.workers.gpu.positions.reference import pair_positions
from moorage.workers.gpu.positions.rotary import BlockRanges, RotaryCache
from moorage.workers.spec import MemorySpec, Positions
from tests.engine_driver import memory

BLOCK, DIM = 4, 10
VIEW = RopeView(torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64), 1.0)
CPU = torch.device("cpu")


def by_definition(axes: MemorySpec, position: int, query: torch.Tensor, at: int, key: torch.Tensor) -> float:
    """The product in fp64, of a query and a key that take the positions of the scheme's definition."""
    pair = pair_positions(axes, BLOCK, position, at)
    assert pair is not None
    turned = []
    for x, place in ((query, pair[0]), (key, pair[1])):
        half = torch.complex(x[:3].double(), x[3:6].double()) * torch.exp(1j * place * VIEW.inv_freq)
        turned.append(torch.cat((half.real, half.imag, x[6:].double())))
    return float(turned[0] @ turned[1])


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA])
@pytest.mark.parametrize("position", [19, 47, 48, 61, 96, 4_000_001])
def test_every_scheme_sees_single_keys_where_it_says(
    rng: np.random.Generator, positions: Positions, position: int
) -> None:
    axes = memory(scheme=positions, window=9, sinks=4, pretraining_length=60, dca_chunk=48)
    ranges = BlockRanges.at(position, axes, BLOCK)
    candidates = np.arange(ranges.num_sinks * BLOCK, ranges.near_block * BLOCK)
    some = np.stack([np.sort(rng.choice(candidates, 8)) for _ in range(2)]).astype(np.int32)
    some[1, -2:] = -1
    query = torch.from_numpy(rng.standard_normal((4, DIM), np.float32))
    keys = torch.from_numpy(rng.standard_normal((2, 8, DIM), np.float32))
    seen = KeyRotations(CPU).seen(RotaryCache(VIEW, axes, BLOCK), query, position, some)
    logits = key_logits(seen.queries, keys, variant=seen.variant, turns=seen.turns, scale=1.0)
    assert (seen.turns is None) == (positions is Positions.CLAMPED)
    np.testing.assert_array_equal(seen.is_there, some >= 0)
    for head, group, i in np.ndindex(2, 2, 8):
        if some[head, i] >= 0:
            expected = by_definition(
                axes, position, query[2 * head + group], int(some[head, i]), keys[head, i]
            )
            assert float(logits[head, group, i]) == pytest.approx(expected, abs=2e-5)


def test_without_a_key_there_is_nothing_to_see() -> None:
    rotary, none = RotaryCache(VIEW, memory(), BLOCK), np.full((2, 3), -1, np.int32)
    seen = KeyRotations(CPU).seen(rotary, torch.zeros((4, DIM)), 30, none)
    assert not seen.is_there.any()
    assert seen.queries.shape == (1, 4, DIM)


def test_tables_go_with_their_rotary_cache() -> None:
    """A worker lives longer than its sessions."""
    rotations, rotary = KeyRotations(CPU), RotaryCache(VIEW, memory(), BLOCK)
    rotations.seen(rotary, torch.zeros((4, DIM)), 30, np.zeros((2, 1), np.int32))
    gone = weakref.ref(rotary)
    del rotary
    gc.collect()
    assert gone() is None
