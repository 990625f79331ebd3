"""The levels of a codebook: weighted k-means over normalised numbers, and Q-Norm.

KVQuant (NeurIPS 2024), equation 7: an error in a number costs its squared gradient (the diagonal of the Fisher
information), times the square of the scale by which the number was divided.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moorage.workers.kv.formats.quantizer import Floats, normal_levels

NUM_BINS = 4096
"""Numbers of one bin become one point, at their weighted mean. A bin is far narrower than the gap of two levels."""
_ITERATIONS = 300
_STEPS = 8
"""Of k-means, from levels that fit nearly."""
_NO_DEVIATION = 1e-5
"""Below it numbers between -1 and 1 are the same but for rounding."""


def fitted_levels(values: Tensor, weights: Tensor, bits: int) -> Floats:
    """Levels [2 ** bits], ascending, of `values` [n] between -1 and 1 whose errors cost `weights` [n].

    Values too few or too alike for so many levels get those of NormalFloat.
    """
    from sklearn.cluster import KMeans

    points, of_points = _binned(values, weights)
    start = normal_levels(bits).astype(np.float64)
    if len(points) <= len(start):
        return normal_levels(bits)
    means = KMeans(len(start), init=start[:, None], n_init=1, max_iter=_ITERATIONS, tol=1e-6)
    means.fit(points[:, None], sample_weight=of_points)
    levels = np.clip(np.sort(means.cluster_centers_[:, 0]), -1, 1).astype(np.float32)
    return levels if (np.diff(levels) > 0).all() else normal_levels(bits)


def moved_levels(values: Tensor, weights: Tensor, levels: Floats) -> Floats:
    """`levels` after some steps of weighted k-means over `values`, which may lie beyond the outermost levels."""
    reach = float(values.abs().max())
    points, of_points = (torch.from_numpy(x) for x in _binned(values.flatten() / reach, weights.flatten()))
    found = torch.from_numpy(np.array(levels, np.float64)) / reach
    for _ in range(_STEPS):
        own = torch.bucketize(points, (found[1:] + found[:-1]) / 2)
        weight = torch.zeros_like(found).index_add_(0, own, of_points)
        mean = torch.zeros_like(found).index_add_(0, own, of_points * points)
        found = torch.where(weight > 0, mean / weight.clamp_min(torch.finfo(torch.float64).tiny), found)
    moved = (found * reach).numpy().astype(np.float32)
    return moved if (np.diff(moved) > 0).all() else levels


def _binned(values: Tensor, weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Points and their weights, whose sum is 1; points without weight are left out."""
    values, weights = values.double(), weights.double()
    bins = ((values + 1) * (NUM_BINS / 2)).long().clamp_(0, NUM_BINS - 1)
    total = torch.zeros(NUM_BINS, dtype=torch.float64)
    of_bins = total.index_add(0, bins, weights)
    sums = total.index_add(0, bins, weights * values)
    there = of_bins > 0
    points, of_points = sums[there] / of_bins[there], of_bins[there]
    return points.numpy(), (of_points / of_points.sum()).numpy()


def nearest(values: Tensor, levels: Floats) -> Tensor:
    """The level that is nearest to each of `values`."""
    found = torch.from_numpy(np.array(levels))
    return found[torch.bucketize(values, (found[1:] + found[:-1]) / 2)]


def match_moments(levels: Floats, values: Tensor) -> Floats:
    """`levels` moved and stretched until what `values` decode to has their mean and deviation (KVQuant's Q-Norm)."""
    decoded = nearest(values, levels)
    deviation = decoded.std()
    if not deviation > _NO_DEVIATION:
        return levels
    moved = (torch.from_numpy(np.array(levels)) - decoded.mean()) * (values.std() / deviation) + values.mean()
    return moved.clamp_(-1, 1).numpy()
