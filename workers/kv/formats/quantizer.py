"""Quantizers of the NUQ formats: the levels of a layer, and the statistics of its key channels.

KVQuant (NeurIPS 2024) quantises normalised numbers to the levels of one codebook for each layer's keys and one for
its values. Keys have a scale and a zero point for each channel, which calibration measures beforehand. Values have
them for each token, measured when a block is encoded. A number x has the code of the level that is nearest to
(x - zero) / scale; level l decodes to zero + scale * l.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_DEVIATIONS = 2.6
"""Standard deviations from the mean to the end of a vector of values whose farthest 1 % are stored apart."""
MOST_LEVELS = 16
"""Levels at 4 bits, the most that a quantizer can have."""
_ITERATIONS = 500
"""More than enough for levels to stay where they are in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerQuantizer:
    """What calibration measured of the keys and values of one layer. Arrays are float32 and read-only."""

    key_levels: Floats
    """[2 ** bits], ascending, between -1 and 1."""
    value_levels: Floats
    """[2 ** bits], ascending, between -1 and 1."""
    key_scale: Floats
    """[Hkv, D]: half the range of a key channel without its outliers; 0 where the channel is constant."""
    key_zero: Floats
    """[Hkv, D]: the middle of that range."""
    key_low: Floats
    """[Hkv, D]: a key below it is an outlier."""
    key_high: Floats
    """[Hkv, D]: a key above it is an outlier."""
    key_feedback: Floats = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """[Hkv, D, D]: entry (d, e) times the error in channel d is taken off channel e > d before that is coded. The
    error is what was to be coded less what is stored. All 0, which an empty array stands for, where each channel is
    coded for itself."""

    def __post_init__(self) -> None:
        if not self.key_feedback.size:
            heads, channels = np.shape(self.key_scale)[:1], np.shape(self.key_scale)[1:]
            object.__setattr__(self, "key_feedback", np.zeros((*heads, *channels, *channels)))
        for name, values in self.arrays():
            values = np.array(values, np.float32, order="C")
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return len(self.key_levels).bit_length() - 1

    def arrays(self) -> Iterator[tuple[str, Floats]]:
        """Names and arrays, in the order of the fields."""
        return ((each.name, getattr(self, each.name)) for each in fields(self))

    def fault(self, bits: int) -> str | None:
        """What keeps it from being used at `bits` bits; None where nothing does."""
        for name in ("key_levels", "value_levels"):
            levels = getattr(self, name)
            if levels.shape != (2**bits,):
                return f"{name} has shape {list(levels.shape)}, not [{2**bits}]"
            if not (np.isfinite(levels).all() and (np.diff(levels) > 0).all() and np.abs(levels).max() <= 1):
                return f"{name} does not ascend from -1 to 1 at most"
        shape = self.key_scale.shape
        for name in ("key_scale", "key_zero", "key_low", "key_high"):
            values = getattr(self, name)
            if values.ndim != 2 or values.shape != shape:
                return f"{name} has shape {list(values.shape)}, not one row for each KV head as key_scale has"
            if not np.isfinite(values).all():
                return f"{name} has numbers that are not finite"
        wanted = (*shape, shape[-1])
        if self.key_feedback.shape != wanted or not np.isfinite(self.key_feedback).all():
            return f"key_feedback is not finite numbers {list(wanted)}"
        if (self.key_scale < 0).any() or (self.key_low > self.key_high).any():
            return "a key channel has a range that ends below its beginning"
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Quantizer:
    """The quantizers of all layers of a model."""

    bits: int
    """Bits of a code, on the mean over the layers."""
    layers: tuple[LayerQuantizer, ...]

    @property
    def layer_bits(self) -> tuple[int, ...]:
        """Bits of a code in each layer. Layers where errors cost more can have more bits than others."""
        return tuple(layer.bits for layer in self.layers)


@cache
def normal_levels(bits: int) -> Floats:
    """Levels [2 ** bits] of NormalFloat: quantiles of a normal distribution, scaled to [-1, 1], one of them 0.

    At 4 bits they are the NF4 levels of QLoRA (NeurIPS 2023). Half of the levels are positive, one less negative.
    """
    half = 2 ** (bits - 1)
    tail = (1 / (4 * half) + 1 / (4 * half - 2)) / 2  # the mean of the outer tails of both halves
    normal = NormalDist()

    def quantiles(count: int) -> list[float]:
        """`count` quantiles between the middle of the distribution and its tail, the outermost first."""
        step = (0.5 - tail) / count
        return [-normal.inv_cdf(tail + step * index) for index in range(count)]

    above, below = quantiles(half), quantiles(half - 1)
    levels = np.array([*(-x for x in below), 0.0, *reversed(above)]) / above[0]
    found = levels.astype(np.float32)
    found.flags.writeable = False
    return found


@cache
def least_error_levels(bits: int) -> Floats:
    """Levels [2 ** bits] in [-1, 1] of least squared error over numbers from a normal distribution (Lloyd and Max).

    The distribution is cut off where vectors without their outliers end. Levels are apart by what such vectors need,
    while those of NormalFloat include 0 and both ends, which at 2 bits leaves one level for most numbers.
    """
    normal = NormalDist()
    levels = np.array([normal.inv_cdf((index + 0.5) / 2**bits) for index in range(2**bits)])
    for _ in range(_ITERATIONS):
        limits = [-_DEVIATIONS, *((levels[1:] + levels[:-1]) / 2), _DEVIATIONS]
        density = np.array([normal.pdf(x) for x in limits])
        below = np.array([normal.cdf(x) for x in limits])
        levels = -np.diff(density) / np.diff(below)
    found = (levels / _DEVIATIONS).astype(np.float32)
    found.flags.writeable = False
    return found
