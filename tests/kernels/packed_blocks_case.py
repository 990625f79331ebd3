"""Families of packed blocks, and blocks to pack."""

from __future__ import annotations

import numpy as np

from moorage.kernels.packed_blocks.layout import PackedFamily, PackedLayout
from moorage.kernels.packed_blocks.tables import KeyStatistics, LayerTables, layer_tables

FAMILIES = {
    "INT8": PackedFamily(8, uniform=True),
    "INT4": PackedFamily(4, uniform=True),
    "NF4": PackedFamily(4),
    "NUQ4": PackedFamily(4, outliers=True),
    "NUQ3": PackedFamily(3, outliers=True),
    "NUQ2": PackedFamily(2, outliers=True),
}
EXAMPLES = [(name, False) for name in FAMILIES] + [(f"NUQ{bits}", True) for bits in (4, 3, 2)]
"""Families, and whether their layers have the statistics of keys."""


def levels_of(family: PackedFamily, rng: np.random.Generator | None = None) -> np.ndarray:
    """The codes of a uniform family; else ascending numbers from -1 to 1, drawn at random with `rng`."""
    count = 2**family.bits
    if family.uniform:
        return np.arange(count, dtype=np.float32)
    inner = np.linspace(-1, 1, count)[1:-1] if rng is None else np.sort(rng.uniform(-1, 1, count - 2))
    return np.array([-1, *inner, 1], np.float32)


def tables_of(
    layout: PackedLayout,
    family: PackedFamily,
    blocks: np.ndarray,
    rng=None,
    feedback: np.ndarray | None = None,
) -> LayerTables:
    """Tables for blocks [n, 2, Hkv, B, D] of numbers, whose keys' percentiles are the statistics."""
    keys = np.moveaxis(blocks[:, 0], 0, 1).reshape(layout.num_kv_heads, -1, layout.head_dim)
    low, high = np.percentile(keys.astype(np.float32), (1, 99), axis=1).astype(np.float32)
    statistics = KeyStatistics((high - low) / 2, (high + low) / 2, low, high)
    levels = [levels_of(family, rng) for _ in range(2)]
    return layer_tables(layout, *levels, statistics if layout.key_stats < 0 else None, feedback)


def draw_blocks(rng: np.random.Generator, count: int, heads: int, size: int, dim: int) -> np.ndarray:
    """float16 [count, 2, Hkv, B, D]: of channels and tokens of different ranges, constants, far numbers."""
    found = rng.standard_normal((count, 2, heads, size, dim)) * np.exp(rng.standard_normal((heads, 1, dim)))
    found *= np.exp(rng.standard_normal((count, 2, heads, size, 1)) / 2)
    found[:, 0, :, :, 0] = 3  # a constant channel
    found[:, 0, :, :, 1] = abs(found[:, 0, :, :, 1]) + 100  # one-sided channels
    found[:, 0, :, :, 2] = -abs(found[:, 0, :, :, 2])
    found[:, 1, :, 0] *= 0  # a token without values, but with signs
    found[:, :, :, 1:2] *= 1e-6  # denormal numbers
    far = rng.random(found.shape) < 0.02
    return np.where(far, 20 * found, found).astype(np.float16)
