"""What packing and unpacking need of a layer beside its blocks, as arrays for compiled code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.packed_blocks.layout import NUM_LEVELS, PackedLayout

Floats = NDArray[np.float32]
DEVIATIONS = np.float32(2)
"""A number may be an outlier of its vector when it is farther from the mean than so many standard deviations."""
MOST = 65504
"""The largest fp16."""


class LayerTables(NamedTuple):
    """float32 arrays. Those of channels are padded with zeros to `width`, and are 0 where blocks have their own."""

    key_levels: Floats
    """[NUM_LEVELS]: the levels of codes, repeated where there are fewer; unused at 8 bits."""
    value_levels: Floats
    key_limits: Floats
    """[2 ** bits - 1]: the middles between levels; a code counts how many of them a normalised number exceeds."""
    value_limits: Floats
    key_scale: Floats
    """[Hkv, width]"""
    key_zero: Floats
    key_low: Floats
    """[Hkv, width]: a key below is an outlier."""
    key_high: Floats
    key_feedback: Floats
    """[Hkv, D, D]: entry (d, e) times the error in channel d of a key is taken off channel e > d before that is
    coded; [Hkv, 0, 0] where each channel is coded for itself."""


class KeyStatistics(NamedTuple):
    """Of key channels, float32 [Hkv, D], measured beforehand; see `LayerTables`."""

    scale: Floats
    zero: Floats
    low: Floats
    high: Floats


def layer_tables(
    layout: PackedLayout,
    key_levels: Floats,
    value_levels: Floats,
    keys: KeyStatistics | None = None,
    feedback: Floats | None = None,
) -> LayerTables:
    """Tables from ascending levels [2 ** bits] and, where blocks lack them, from statistics of keys.

    `feedback` [Hkv, D, D] is the `key_feedback`, if there is one.
    """
    if feedback is None:
        feedback = np.empty((layout.num_kv_heads, 0, 0), np.float32)
    padding = ((0, 0), (0, layout.width - layout.head_dim))
    none = np.zeros((layout.num_kv_heads, layout.head_dim), np.float32)
    statistics = KeyStatistics(none, none, none, none) if keys is None else keys
    tables = [_repeated(levels) for levels in (key_levels, value_levels)]
    tables += [_middles(levels) for levels in (key_levels, value_levels)]
    tables += [np.ascontiguousarray(np.pad(each, padding), np.float32) for each in statistics]
    tables.append(
        np.array(feedback, np.float32, order="C")
    )  # a copy: compiled code takes no read-only arrays
    return LayerTables(*tables)


def _repeated(levels: Floats) -> Floats:
    return np.resize(levels.astype(np.float32), NUM_LEVELS)


def _middles(levels: Floats) -> Floats:
    wide = levels.astype(np.float64)
    return ((wide[1:] + wide[:-1]) / 2).astype(np.float32)
