"""Seeded noise against a plain reference in Python integers, and against its distribution."""

from __future__ import annotations

import math

import pytest
import torch

from moorage.workers.gpu.model.gumbel import gumbel_noise, noise_stream

CPU = torch.device("cpu")
MASK = 2**64 - 1


def plain_noise(stream: int, count: int) -> list[float]:
    """Elements of SplitMix64 as its paper has it, 52 bits of each between 0 and 1."""
    found = []
    for place in range(1, count + 1):
        value = (stream + place * 0x9E3779B97F4A7C15) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        value ^= value >> 31
        found.append(-math.log(-math.log((2 * (value >> 12) + 1) / 2**53)))
    return found


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1])
def test_noise_equals_the_plain_reference(seed: int) -> None:
    streams = [noise_stream(seed, step) for step in (0, 1, 1000)]
    got = gumbel_noise(streams, 300, CPU)
    want = torch.tensor([plain_noise(stream, 300) for stream in streams], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_tokens_noise_does_not_depend_on_vocabulary_or_neighbours() -> None:
    streams = [noise_stream(3, step) for step in range(5)]
    together = gumbel_noise(streams, 500, CPU)
    for place, stream in enumerate(streams):
        assert torch.equal(gumbel_noise([stream], 200, CPU)[0], together[place, :200])


def test_noise_follows_gumbels_distribution() -> None:
    """Kolmogorov and Smirnov's distance over a million numbers; 1 seed in 10 000 fails."""
    noise = gumbel_noise([noise_stream(11, step) for step in range(10)], 100_000, CPU).flatten().sort().values
    below = (torch.arange(len(noise), dtype=torch.float64) + 0.5) / len(noise)
    distance = (torch.exp(-torch.exp(-noise)) - below).abs().max().item()
    assert distance < math.sqrt(math.log(2 / 1e-4) / 2 / len(noise))


def test_the_extremes_are_finite() -> None:
    assert all(math.isfinite(-math.log(-math.log(u))) for u in (2.0**-53, 1 - 2.0**-53))
    assert gumbel_noise([noise_stream(0, 0)], 100_000, CPU).isfinite().all()
