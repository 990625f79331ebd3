"""Geometry and rotations against token-by-token definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.reference import pair_positions
from moorage.workers.gpu.positions.rotary import BlockRanges, RotaryCache
from moorage.workers.gpu.positions.schemes import Variant, scheme_of
from moorage.workers.spec import MemorySpec, Positions
from tests.engine_driver import memory

BLOCK = 4
VIEW = RopeView(torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64), 1.0)
EDGES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 30, 31, 32, 33, 100]


def seen_turns(rotations: RotaryCache, entries: AttentionBlocks) -> dict[int, np.ndarray]:
    """Token -> the turn between query and key, as complex numbers; fails when one is attended twice."""
    seen: dict[int, np.ndarray] = {}
    for e, block in enumerate(entries.blocks):
        query = entries.angle_cos[e] + 1j * entries.angle_sin[e]
        for row in range(entries.begin[e], entries.end[e]):
            key = rotations.offset_cos[row] + 1j * rotations.offset_sin[row]
            assert block * BLOCK + row not in seen
            seen[int(block) * BLOCK + row] = query * np.conj(key) if entries.rotate_keys[e] else query
    return seen


def assert_entries_follow_the_reference(axes: MemorySpec, position: int) -> None:
    """With all candidates selected (or none, with a topk of 0), every key is met once, at its defined distance."""
    rotations = RotaryCache(VIEW, axes, BLOCK)
    span = BlockRanges.at(position, axes, BLOCK)
    distant = span.sinks if axes.selection.topk == 0 else np.concatenate((span.sinks, span.candidates))
    entries = rotations.distant_blocks(span, distant).joined(rotations.window_blocks(span))
    seen = seen_turns(rotations, entries)
    expected = {key: pair_positions(axes, BLOCK, position, key) for key in range(position + 1)}
    assert sorted(seen) == [key for key, pair in expected.items() if pair is not None]
    for key, turn in seen.items():
        pair = expected[key]
        assert pair is not None
        exact = np.exp(1j * (pair[0] - pair[1]) * VIEW.inv_freq.numpy())
        np.testing.assert_allclose(turn, exact, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 4, 5, 8, 9, 200])
@pytest.mark.parametrize("position", EDGES)
@pytest.mark.parametrize("n_init", [0, 1, 4, 5])
@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED])
def test_every_past_token_is_attended_once_at_its_defined_position(
    window: int, position: int, n_init: int, positions: Positions
) -> None:
    axes = memory(window=window, sinks=n_init, scheme=positions)
    assert_entries_follow_the_reference(axes, position)


@given(
    positions=st.sampled_from([Positions.ROPE, Positions.CLAMPED, Positions.ROLLING]),
    window=st.integers(1, 40),
    n_init=st.integers(0, 12),
    position=st.integers(0, 120),
)
@settings(max_examples=150, deadline=None)
def test_a_budget_of_none_sees_exactly_sinks_and_window(
    positions: Positions, window: int, n_init: int, position: int
) -> None:
    axes = memory(scheme=positions, window=window, sinks=n_init, topk=0)
    assert_entries_follow_the_reference(axes, position)


@given(
    blocks=st.integers(1, 6),
    slack=st.integers(1, 30),
    window=st.integers(1, 60),
    n_init=st.integers(0, 9),
    near=st.integers(0, 6),
    offset=st.integers(-2, 2),
)
@settings(max_examples=200, deadline=None)
def test_dual_chunk_entries_around_every_boundary(
    blocks: int, slack: int, window: int, n_init: int, near: int, offset: int
) -> None:
    """Query positions around multiples of the chunk; trained lengths from chunk + 1 to more than two chunks."""
    chunk = blocks * BLOCK
    axes = memory(
        scheme=Positions.DCA,
        pretraining_length=chunk + slack,
        dca_chunk=chunk,
        window=window,
        sinks=n_init,
    )
    assert_entries_follow_the_reference(axes, max(0, near * chunk + offset))


@given(
    positions=st.sampled_from(list(Positions)),
    first=st.integers(0, 70),
    count=st.integers(1, 50),
    window=st.integers(1, 40),
    n_init=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_the_parts_of_a_run_of_queries_equal_those_of_each_query(
    positions: Positions, first: int, count: int, window: int, n_init: int
) -> None:
    """What prefill masks by bands is, pair by pair, what the reference says."""
    axes = memory(
        scheme=positions,
        window=window,
        sinks=n_init,
        topk=0 if positions is Positions.ROLLING else None,
        pretraining_length=17,
        dca_chunk=12,
    )
    scheme = scheme_of(axes, BLOCK)
    groups = scheme.groups(first, first + count)
    assert [row for a, b in groups for row in range(a, b)] == list(range(first, first + count))
    keys = np.arange(first + count)
    for a, b in groups:
        for query in range(a, b):
            met = {}
            for part in scheme.parts(a, b):
                at = int(scheme.query_positions(part.variant, np.array([query]))[0])
                stands = scheme.key_positions(keys) * scheme.rotates_keys(part.variant)
                for key in range(part.low, part.high):
                    if part.least <= query - key < part.most:
                        assert key not in met
                        met[key] = at - stands[key]
            for key in range(query + 1):
                pair = pair_positions(axes, BLOCK, query, key)
                assert met.pop(key, None) == (None if pair is None else pair[0] - pair[1])
            assert all(key > query for key in met)


@pytest.mark.parametrize("position", EDGES)
def test_sinks_candidates_and_near_blocks_follow_each_other(position: int) -> None:
    span = BlockRanges.at(position, memory(window=8, sinks=6), BLOCK)
    blocks = [*span.sinks, *span.candidates]
    assert blocks == list(range(span.near_block))
    assert span.near_block * BLOCK <= max(0, position - 7) < (span.near_block + 1) * BLOCK
    assert span.num_sinks <= 2
    assert span.num_candidates == len(span.candidates)


@pytest.mark.parametrize("position", [4, 4_000, 4_000_003])
def test_far_positions_are_as_exact_as_near_ones(position: int) -> None:
    """Relative angles have fp32 rounding only, wherever the query stands."""
    inv_freq = torch.tensor([1.0, 0.731, 0.0113], dtype=torch.float64)
    rotations = RotaryCache(RopeView(inv_freq, 1.0), memory(), BLOCK)
    block = position // BLOCK - 1
    entries = rotations.entries(position, np.array([block], np.int32))
    distance = position - block * BLOCK
    exact = np.exp(1j * distance * inv_freq.numpy())
    np.testing.assert_allclose(entries.angle_cos[0] + 1j * entries.angle_sin[0], exact, atol=2e-7)
    exact = np.exp(1j * (position * inv_freq.numpy() % (2 * np.pi)))
    cos, sin = rotations.queries(Variant.NEAR, position, position + 1)
    np.testing.assert_allclose(cos[0] + 1j * sin[0], exact, atol=2e-7)
    cos, sin = rotations.keys(np.array([position // BLOCK], np.int32))
    row = position % BLOCK
    np.testing.assert_allclose(cos[row] + 1j * sin[row], exact, atol=2e-7)


@pytest.mark.parametrize("window", [1, 3, 4, 5, 8, 9, 31])
@pytest.mark.parametrize("position", [*EDGES, 41, 42, 43])
@pytest.mark.parametrize("n_init", [0, 1, 5])
def test_clamped_entries_are_those_of_each_part(window: int, position: int, n_init: int) -> None:
    axes = memory(window=window, sinks=n_init, scheme=Positions.CLAMPED, topk=3)
    rotations, span = RotaryCache(VIEW, axes, BLOCK), BlockRanges.at(position, axes, BLOCK)
    distant = span.candidates[:3]
    always = rotations.distant_blocks(span, span.sinks).joined(rotations.window_blocks(span))
    expected = rotations.distant_blocks(span, distant).joined(always)
    found = rotations.clamped_blocks(span, len(distant))
    found = found.with_blocks(np.concatenate((distant, found.blocks[len(distant) :])))
    for name in ("blocks", "begin", "end", "rotate_keys"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.angle_cos, expected.angle_cos, atol=1e-6)
    np.testing.assert_allclose(found.angle_sin, expected.angle_sin, atol=1e-6)
