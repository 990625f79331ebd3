"""Geometry and rotations against token-by-token definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.gpu.positions import Rotations, Span
from moorage.workers.spec import Positions
from tests.engine_driver import memory

BLOCK = 4
VIEW = RopeView(torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64), 1.0)
EDGES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 30, 31, 32, 33, 100]


@pytest.mark.parametrize("window", [1, 3, 4, 5, 8, 9, 200])
@pytest.mark.parametrize("position", EDGES)
@pytest.mark.parametrize("n_init", [0, 1, 4, 5])
@pytest.mark.parametrize("positions", list(Positions))
def test_every_past_token_is_attended_once_at_its_defined_position(
    window: int, position: int, n_init: int, positions: Positions
) -> None:
    """With all candidates chosen, the entries cover tokens [0, position] exactly once.

    Each entry turns the query by angle a and the key by r: their difference is the distance that attention sees.
    """
    axes = memory(local_windows_len=window, n_init=n_init, positions=positions)
    rotations = Rotations(VIEW, axes, BLOCK)
    span = Span.at(position, axes, BLOCK)
    distant = rotations.distant_entries(span, np.concatenate((span.sinks, span.candidates)))
    entries = distant.joined(rotations.near_entries(span))
    seen = {}
    for e, block in enumerate(entries.blocks):
        angles = np.arctan2(entries.angle_sin[e], entries.angle_cos[e])
        for row in range(entries.begin[e], entries.end[e]):
            key_angle = np.arctan2(rotations.offset_sin[row], rotations.offset_cos[row])
            turn = angles - key_angle * entries.rotate_keys[e]
            assert block * BLOCK + row not in seen
            seen[int(block) * BLOCK + row] = turn
    assert sorted(seen) == list(range(position + 1))
    for token, turn in seen.items():
        distance = position - token
        if positions is Positions.CLAMPED and distance >= window:
            distance = window - 1
        np.testing.assert_allclose(
            np.exp(1j * turn), np.exp(1j * distance * VIEW.inv_freq.numpy()), atol=1e-5
        )


@pytest.mark.parametrize("position", EDGES)
def test_sinks_candidates_and_near_blocks_follow_each_other(position: int) -> None:
    span = Span.at(position, memory(local_windows_len=8, n_init=6), BLOCK)
    blocks = [*span.sinks, *span.candidates]
    assert blocks == list(range(span.near_block))
    assert span.near_block * BLOCK <= max(0, position - 7) < (span.near_block + 1) * BLOCK
    assert span.num_sinks <= 2
    assert span.num_candidates == len(span.candidates)


@pytest.mark.parametrize("position", [4, 4_000, 4_000_003])
def test_far_positions_are_as_exact_as_near_ones(position: int) -> None:
    """Relative angles have fp32 rounding only, wherever the query stands."""
    inv_freq = torch.tensor([1.0, 0.731, 0.0113], dtype=torch.float64)
    rotations = Rotations(RopeView(inv_freq, 1.0), memory(), BLOCK)
    block = position // BLOCK - 1
    cos, sin = rotations.relative(position, np.array([block], np.int32))
    distance = position - block * BLOCK
    exact = np.exp(1j * distance * inv_freq.numpy())
    np.testing.assert_allclose(cos[0] + 1j * sin[0], exact, atol=2e-7)
    cos, sin = rotations.absolute(position, 1)
    exact = np.exp(1j * (position * inv_freq.numpy() % (2 * np.pi)))
    np.testing.assert_allclose(cos[0] + 1j * sin[0], exact, atol=2e-7)
