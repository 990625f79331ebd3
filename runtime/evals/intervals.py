"""95 % intervals of what few samples say: of a share, and of a mean whose samples are skewed."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

NORMAL_QUANTILE = 1.96
"""The quantile of the normal distribution at 97.5 %."""
_NUM_RESAMPLES = 2000
_TAILS = (2.5, 97.5)
"""Percentiles."""


def wilson(share: float, num_samples: int) -> tuple[float, float]:
    """Wilson's interval of a share of `num_samples`: it stays within 0 to 1, and has a width at both ends.

    A sample may count in part, as one whose parts are partly right. Its variance is then smaller than that of right
    or wrong, so that the interval is rather too wide than too narrow.
    """
    squared = NORMAL_QUANTILE**2 / num_samples
    middle = (share + squared / 2) / (1 + squared)
    half = (
        NORMAL_QUANTILE
        * sqrt(share * (1 - share) / num_samples + squared / (4 * num_samples))
        / (1 + squared)
    )
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(samples: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """The percentile bootstrap of the mean of `samples` (Efron, 1979); None for fewer than two.

    KL needs no symmetric interval: a few samples hold most of it.
    """
    return stratified_bootstrap([samples], seed) if len(samples) > 1 else None


def stratified_bootstrap(groups: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The same for the mean of the groups' means; samples are drawn again within each group."""
    rng = np.random.default_rng(seed)
    means = np.zeros(_NUM_RESAMPLES)
    for group in groups:
        values = np.asarray(group, np.float64)
        drawn = rng.integers(len(values), size=(_NUM_RESAMPLES, len(values)))
        means += values[drawn].mean(axis=1) / len(groups)
    low, high = np.percentile(means, _TAILS)
    return float(low), float(high)
