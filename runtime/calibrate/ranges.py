"""The range of each key channel: how much of it the levels cover, and what is left to the outliers.

A narrow range has fine levels and many outliers, which are exact but few. The channels of a head share one number
of outliers, so each gets the range at which the cost of its errors, plus a price for each of its outliers, is least.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moorage.runtime.calibrate.levels import nearest
from moorage.workers.kv.formats.quantizer import Floats

FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.35, 1.6)
"""Ranges that are tried, as multiples of the range between percentiles."""
_HALVINGS = 60


class KeyRange(NamedTuple):
    """What is no outlier in each channel of the keys [Hkv, D]."""

    low: Tensor
    high: Tensor

    @property
    def scale(self) -> Tensor:
        """Half of the range."""
        return (self.high - self.low) / 2

    @property
    def zero(self) -> Tensor:
        """The middle of the range."""
        return (self.high + self.low) / 2

    def stretched(self, factors: Tensor | float) -> KeyRange:
        """The range times `factors`, about the same middle."""
        return KeyRange(self.zero - self.scale * factors, self.zero + self.scale * factors)


def between_percentiles(keys: Tensor, outliers: float) -> KeyRange:
    """The range of each channel of `keys` [N, Hkv, D] that leaves `outliers` of it outside, as much on each side."""
    beyond = round(len(keys) * outliers / 2)
    return KeyRange(
        torch.kthvalue(keys, 1 + beyond, dim=0).values, torch.kthvalue(keys, len(keys) - beyond, dim=0).values
    )


class RangeSearch:
    """What ranges of `keys` [N, Hkv, D] cost at some levels; `weights` of the same shape weight squared errors."""

    def __init__(self, keys: Tensor, weights: Tensor, start: KeyRange, levels: Floats) -> None:
        self._start, self._shape = start, keys.shape
        costs, counts = [], []
        for factor in FACTORS:
            found = start.stretched(factor)
            scale = torch.where(found.scale > 0, found.scale, 1)
            scaled = (keys - found.zero) / scale
            outside = (scaled.abs() > 1) & (found.scale > 0)
            errors = ((scaled - nearest(scaled, levels)) * scale).square_().mul_(weights)
            costs.append(errors.masked_fill_(outside, 0).sum(0, dtype=torch.float64))
            counts.append(outside.sum(0))
        self._costs, self._counts = torch.stack(costs), torch.stack(counts)

    def cheapest(self, outliers: float) -> KeyRange:
        """The ranges, multiples of the first, whose errors cost least with a share of `outliers` in each head."""
        num, heads, dim = self._shape
        of_heads = zip(self._costs.unbind(1), self._counts.unbind(1), strict=True)
        rows = [_at_fair_price(costs, counts, outliers * num * dim) for costs, counts in of_heads]
        return self._start.stretched(torch.tensor(FACTORS)[torch.stack(rows).view(heads, dim)])


def _at_fair_price(costs: Tensor, counts: Tensor, most: float) -> Tensor:
    """Which row of each column has the least cost plus price times count, where all counts together are `most`.

    The price is the least that keeps them so; where the widest ranges have more outliers, they are taken.
    """

    def chosen(price: float) -> Tensor:
        return (costs + price * counts).argmin(0)

    def total(rows: Tensor) -> float:
        return float(counts.gather(0, rows[None]).sum())

    low, high = 0.0, float(costs.max()) + 1.0
    if total(chosen(low)) <= most:
        return chosen(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2 if low > high / 1024 else high / 32
        low, high = (middle, high) if total(chosen(middle)) > most else (low, middle)
    return chosen(high)
