"""Ranges, levels and outliers of keys that fit each other, from ones that fit roughly.

In turn: outliers are taken away as a block takes them away, each channel gets the scale and the zero point of least
weighted squared error for the levels that its keys have, and the levels move to the weighted means of what has them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from moorage.runtime.calibrate.levels import moved_levels, nearest
from moorage.workers.kv.formats.quantizer import Floats

PRICES = (5.0, 15.0)
"""Prices of an outlier that are tried, as multiples of the mean cost of a key."""
_ROUNDS = 4
_SINGULAR = 1e-9


class KeyFit(NamedTuple):
    """Of the keys of one layer: scale, zero point, and the limits [Hkv, D] of what is no outlier; their levels."""

    scale: Tensor
    zero: Tensor
    low: Tensor
    high: Tensor
    levels: Floats


def refined(keys: Tensor, weights: Tensor, start: KeyFit, capacity: int) -> KeyFit:
    """The fit of least cost for keys [N, B, Hkv, D], N blocks, whose heads have `capacity` outliers at most."""
    best, least = start, fit_cost(keys, weights, start, capacity)
    of_channels = weights.mean((0, 1)).clamp_min(torch.finfo(torch.float32).tiny)
    for price in PRICES:
        margin = (price * least / keys.numel() / of_channels).sqrt()
        fit = start
        for _ in range(_ROUNDS):
            fit = _with_limits(_moved(keys, weights, fit, capacity), margin)
            cost = fit_cost(keys, weights, fit, capacity)
            if cost < least:
                best, least = fit, cost
    return best


def fit_cost(keys: Tensor, weights: Tensor, fit: KeyFit, capacity: int) -> float:
    """What the errors of keys [N, B, Hkv, D], N blocks, cost when a head of a block has `capacity` outliers at most.

    Keys outside the limits that find no place have the nearest level.
    """
    scaled = _scaled(keys, fit)
    errors = ((scaled - nearest(scaled, fit.levels)) * fit.scale).square_().mul_(weights)
    return float(errors.masked_fill_(taken_apart(keys, fit, capacity), 0).sum(dtype=torch.float64))


def taken_apart(keys: Tensor, fit: KeyFit, capacity: int) -> Tensor:
    """Which of keys [N, B, Hkv, D] are outliers: in each head of a block the farthest outside, at most `capacity`."""
    beyond = torch.maximum(fit.low - keys, keys - fit.high) / torch.where(fit.scale > 0, fit.scale, 1)
    flat = beyond.transpose(1, 2).flatten(2)
    most = flat.topk(min(capacity, flat.shape[2]), dim=2)
    apart = torch.zeros_like(flat, dtype=torch.bool).scatter_(2, most.indices, most.values > 0)
    num, block, heads, dim = keys.shape
    return apart.view(num, heads, block, dim).transpose(1, 2)


def _scaled(keys: Tensor, fit: KeyFit) -> Tensor:
    return (keys - fit.zero) / torch.where(fit.scale > 0, fit.scale, 1)


def _moved(keys: Tensor, weights: Tensor, fit: KeyFit, capacity: int) -> KeyFit:
    """Better scales, zero points and levels for what is no outlier under `fit`."""
    inside = weights.masked_fill(taken_apart(keys, fit, capacity), 0)
    levels = nearest(_scaled(keys, fit), fit.levels)
    of_level, of_key = inside * levels, inside * keys
    products = (inside, of_level, of_level * levels, of_key, of_key * levels)
    weight, first, second, mean, product = (x.sum((0, 1), dtype=torch.float64) for x in products)
    spread = weight * second - first * first
    scale = (weight * product - first * mean) / torch.where(spread > 0, spread, 1)
    zero = (mean - scale * first) / torch.where(weight > 0, weight, 1)
    usable = (spread > _SINGULAR * weight * second) & (scale > 0) & (fit.scale > 0)
    fit = fit._replace(
        scale=torch.where(usable, scale.float(), fit.scale), zero=torch.where(usable, zero.float(), fit.zero)
    )
    found = moved_levels(_scaled(keys, fit), inside * fit.scale**2, fit.levels)
    reach = float(np.abs(found).max())  # levels end at -1 or 1: what they reach beyond belongs to the scale
    return fit._replace(scale=fit.scale * reach, levels=(found / reach).clip(-1, 1))


def _with_limits(fit: KeyFit, margin: Tensor) -> KeyFit:
    """Limits beyond which an error would cost more than an outlier."""
    low = fit.zero + fit.scale * float(fit.levels[0]) - margin
    high = fit.zero + fit.scale * float(fit.levels[-1]) + margin
    constant = fit.scale <= 0
    return fit._replace(low=torch.where(constant, fit.low, low), high=torch.where(constant, fit.high, high))
