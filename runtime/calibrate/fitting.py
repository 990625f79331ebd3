"""The quantizer of a layer from its samples: ranges of key channels, and levels for normalised keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from moorage.runtime.calibrate.feedback import feedback_shares
from moorage.runtime.calibrate.levels import fitted_levels, match_moments
from moorage.runtime.calibrate.ranges import KeyRange, RangeSearch, between_percentiles
from moorage.runtime.calibrate.refinement import KeyFit, fit_cost, refined, taken_apart
from moorage.runtime.calibrate.samples import LayerSamples
from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.formats.quantizer import Floats, LayerQuantizer

BLOCK = 128
"""Tokens among which outliers are chosen."""
MATCHED_BITS = 2
"""Bits up to which Q-Norm is applied; with more levels it changes nothing that can be measured."""

_MOST_OF_KEYS = 1.75
"""Outliers of keys that a head of a block can hold, as a multiple of the share that keys and values have alike."""
_MOST_BLOCKS = 32
"""Blocks, spread over the windows, on which ranges are compared."""
_MOST_REFINED = 96
"""And those on which scales and zero points are measured."""
_PARTS = (0.25, 0.5, 0.8)
"""Shares of the places for outliers that are used on average: outliers come in crowds, and a block has few."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a layer is fitted."""

    fp16_sinks: int = 5
    """First tokens of each window that are left out, since the stores hold them in fp16."""
    outliers: float = 0.0075
    """Share of keys, and of values, that is stored apart as outliers."""


class Normalized(NamedTuple):
    """Numbers between -1 and 1 [n], and what an error in each of them costs."""

    values: Tensor
    weights: Tensor


class LayerFit:
    """One layer: what does not depend on the number of bits is computed once."""

    def __init__(self, samples: LayerSamples, settings: FitSettings) -> None:
        rows = (samples.keys, samples.values, samples.key_gradients, samples.value_gradients)
        keys, values, gradients, value_gradients = (x[:, settings.fp16_sinks :].float() for x in rows)
        if not (keys.isfinite().all() and values.isfinite().all()):
            raise InvalidRequest(
                "the model computes keys or values that FP16 does not hold; use --dtype float32"
            )
        self._keys, self._settings = keys, settings
        self._range = between_percentiles(keys.flatten(0, 1), settings.outliers)
        self._values = normalized_values(values, value_gradients.square(), settings.outliers)
        self._feedback = feedback_shares(gradients).numpy()
        self._key_weights = gradients.square()

    def quantizer(self, bits: int) -> LayerQuantizer:
        """The quantizer at `bits` bits."""
        found = self._key_fit(bits)
        return LayerQuantizer(
            key_levels=found.levels,
            value_levels=_levels(self._values, bits),
            key_scale=found.scale.numpy(),
            key_zero=found.zero.numpy(),
            key_low=found.low.numpy(),
            key_high=found.high.numpy(),
            key_feedback=self._feedback,
        )

    def _key_fit(self, bits: int) -> KeyFit:
        """Ranges and levels that fit each other, and the outliers that blocks have."""
        blocks, weights = (_blocks(x, _MOST_REFINED) for x in (self._keys, self._key_weights))
        weights = (weights + weights.mean((0, 1))) / 2  # a squared gradient is a sample of one
        fit = refined(blocks, weights, self._rough_fit(bits), self._capacity)
        if bits > MATCHED_BITS:
            return fit
        inside = ~taken_apart(blocks, fit, self._capacity) & (fit.scale > 0)
        scaled = (blocks - fit.zero) / torch.where(fit.scale > 0, fit.scale, 1)
        return fit._replace(levels=match_moments(fit.levels, scaled[inside].clamp_(-1, 1)))

    @property
    def _capacity(self) -> int:
        """Outliers that the keys of a head can have in a block."""
        return round(_MOST_OF_KEYS * self._settings.outliers * BLOCK * self._keys.shape[3])

    def _rough_fit(self, bits: int) -> KeyFit:
        """Ranges about the middle of percentiles, and their levels, at the share of outliers that costs least."""
        keys, weights, start = self._keys, self._key_weights, self._range
        levels = fitted_levels(*normalized_keys(keys, weights, start), bits)
        blocks, of_blocks = _blocks(keys, _MOST_BLOCKS), _blocks(weights, _MOST_BLOCKS)
        search = RangeSearch(blocks.flatten(0, 1), of_blocks.flatten(0, 1), start, levels)
        fits = []
        for part in _PARTS:
            found = search.cheapest(part * self._settings.outliers)
            levels = fitted_levels(*normalized_keys(blocks, of_blocks, found), bits)
            fits.append(KeyFit(found.scale, found.zero, found.low, found.high, levels))
        return min(fits, key=lambda fit: fit_cost(blocks, of_blocks, fit, self._capacity))


def _blocks(x: Tensor, most: int) -> Tensor:
    """At most `most` of the whole blocks [N, B, Hkv, D] of windows `x` [W, T, Hkv, D]; shorter windows are blocks."""
    block = min(BLOCK, x.shape[1])
    found = x[:, : x.shape[1] // block * block].reshape(-1, block, *x.shape[2:])
    return found[:: -(-len(found) // most)]


def normalized_keys(keys: Tensor, weights: Tensor, found: KeyRange) -> Normalized:
    """Keys [W, T, Hkv, D] within their range, without constant channels."""
    scale = found.scale
    scaled = ((keys - found.zero) / torch.where(scale > 0, scale, 1)).clamp_(-1, 1)
    inside = (keys >= found.low) & (keys <= found.high) & (scale > 0)
    return Normalized(scaled[inside], (weights * scale**2)[inside])


def normalized_values(values: Tensor, weights: Tensor, outliers: float) -> Normalized:
    """Values [W, T, Hkv, D] by the range of their token over all heads, without its outliers."""
    kept = ~value_outliers(values, outliers)
    low = values.where(kept, torch.inf).amin((-2, -1), keepdim=True)
    high = values.where(kept, -torch.inf).amax((-2, -1), keepdim=True)
    scale = (high - low) / 2
    kept &= scale > 0
    scaled = ((values - (high + low) / 2) / torch.where(scale > 0, scale, 1)).clamp_(-1, 1)
    return Normalized(scaled[kept], (weights * scale**2)[kept])


def value_outliers(values: Tensor, share: float) -> Tensor:
    """Which of `values` [W, T, Hkv, D] are stored apart: in each block and head the farthest from their token's mean.

    Distances are counted in standard deviations of the token over all heads.
    """
    away = (values - values.mean((-2, -1), keepdim=True)).abs()
    away /= values.std((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    marked = torch.zeros_like(values, dtype=torch.bool)
    for begin in range(0, values.shape[1], BLOCK):
        block = away[:, begin : begin + BLOCK].transpose(1, 2)
        count = round(share * block.shape[2] * block.shape[3])
        flat = block.flatten(2)
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(2, flat.topk(count, dim=2).indices, True)
        marked[:, begin : begin + BLOCK] = chosen.view(block.shape).transpose(1, 2)
    return marked


def _levels(found: Normalized, bits: int) -> Floats:
    return _matched(fitted_levels(found.values, found.weights, bits), found, bits)


def _matched(levels: Floats, found: Normalized, bits: int) -> Floats:
    return match_moments(levels, found.values) if bits <= MATCHED_BITS else levels
