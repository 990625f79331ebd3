"""Codes of keys of which each channel makes up for the errors of those before it. `reference.py` defines them.

A query meets all channels of a key at once, so their errors add up in its score. Coding channel by channel, the error
of each is taken off those that follow, by shares that calibration measured: GPTQ (ICLR 2023), for keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.addresses import uncounted
from moorage.kernels.compiling import njit
from moorage.kernels.half import widen
from moorage.kernels.packed_blocks.codes import EXACT
from moorage.kernels.packed_blocks.feedback_lanes import (
    GROUP,
    SIDE_BY_SIDE,
    code_channel_2,
    code_channel_3,
    code_channel_4,
    take_off_group,
    take_off_one,
)
from moorage.kernels.packed_blocks.ranges import HIDDEN
from moorage.kernels.simd_lanes import LANES

_TOKENS = 64
"""Keys that are coded together: those of 128 channels stay in the L1 cache."""
_LINE = 16
"""Channels of a line of memory, which are moved from rows to channels together."""


@njit(**EXACT)
def code_with_feedback(
    layout: Any, tables: Any, head: Any, source: Any, at: Any, rows: Any, outliers: Any, scale: Any, zero: Any,
    inverse: Any, codes: Any,
) -> None:  # fmt: skip
    """The codes [B, width] of the keys at `source[at]`, which rows [B, width] hold as float32.

    `outliers` are the places of those that are kept apart, ascending; in rows they are HIDDEN.
    """
    dim, step = layout.head_dim, LANES * SIDE_BY_SIDE
    each = min(_TOKENS, -(-layout.block_size // step) * step)
    numbers, coded = np.empty((2 * dim + GROUP) * each, np.float32), np.empty(dim * each, np.uint8)
    floats, found = uncounted(numbers), uncounted(coded)
    wanted, kept, errors = floats[: dim * each], floats[dim * each : 2 * dim * each], floats[2 * dim * each :]
    shares, done = tables.key_feedback[head], 0
    codes[:] = 0
    for first in range(0, layout.block_size, each):
        count = min(each, layout.block_size - first)
        _to_channels(layout, rows, first, count, each, wanted)
        kept[:] = HIDDEN
        while done < len(outliers) and np.int64(outliers[done]) < (first + count) * dim:
            t, d = divmod(np.int64(outliers[done]), dim)
            exact = widen(source[at + np.int64(outliers[done])])
            wanted[d * each + t - first], kept[d * each + t - first] = exact, exact
            done += 1
        _code_channels(layout, tables, each, (scale, zero, inverse), shares, wanted, kept, errors, found)
        _to_rows(layout, found, first, count, each, codes)
    numbers[0], coded[0] = 0, 0  # until here they are held


@njit(**EXACT)
def _to_channels(layout: Any, rows: Any, first: Any, count: Any, stride: Any, channels: Any) -> None:
    """Writes rows [first, first + count) of [B, width] as [D, stride]: a channel's numbers lie side by side."""
    dim, width, size = np.uint64(layout.head_dim), np.uint64(layout.width), np.uint64(stride)
    for begin in range(np.uint64(0), dim, np.uint64(_LINE)):
        end = min(begin + np.uint64(_LINE), dim)
        for t in range(np.uint64(count)):
            source = (np.uint64(first) + t) * width
            for d in range(begin, end):
                channels[d * size + t] = rows[source + d]


@njit(**EXACT)
def _to_rows(layout: Any, channels: Any, first: Any, count: Any, stride: Any, rows: Any) -> None:
    """Writes channels [D, stride] as rows [first, first + count) of [B, width]."""
    dim, width, size = np.uint64(layout.head_dim), np.uint64(layout.width), np.uint64(stride)
    for t in range(np.uint64(count)):
        into = (np.uint64(first) + t) * width
        for d in range(dim):
            rows[into + d] = channels[d * size + t]


@njit(**EXACT)
def _code_channels(
    layout: Any, tables: Any, stride: Any, statistics: Any, shares: Any, wanted: Any, kept: Any, errors: Any,
    found: Any,
) -> None:  # fmt: skip
    """The codes `found` [D, stride] of channels `wanted`, which change; of outliers the exact number is `kept`."""
    scale, zero, inverse = statistics
    dim, vectors, row, bits = (
        np.int64(layout.head_dim),
        np.int64(stride // LANES),
        np.int64(4 * stride),
        layout.bits,
    )
    limits, levels, share_at = (
        tables.key_limits.ctypes.data,
        tables.key_levels.ctypes.data,
        shares.ctypes.data,
    )
    wanted_at, kept_at, errors_at, codes_at = (
        wanted.ctypes.data, kept.ctypes.data, errors.ctypes.data, found.ctypes.data
    )  # fmt: skip
    for begin in range(0, dim, GROUP):
        end: Any = min(begin + GROUP, dim)
        for d in range(begin, end):
            at, own, code_at = wanted_at + d * row, errors_at + (d - begin) * row, codes_at + d * stride
            exact = kept_at + d * row
            if bits == 4:
                code_channel_4(
                    at, exact, own, code_at, vectors, scale[d], zero[d], inverse[d], limits, levels
                )
            elif bits == 3:
                code_channel_3(
                    at, exact, own, code_at, vectors, scale[d], zero[d], inverse[d], limits, levels
                )
            else:
                code_channel_2(
                    at, exact, own, code_at, vectors, scale[d], zero[d], inverse[d], limits, levels
                )
            of_next = share_at + 4 * (d * dim + d + 1)
            take_off_one(of_next, 4 * dim, own, at + row, row, end - d - 1, vectors)
        of_next = share_at + 4 * (begin * dim + end)
        take_off_group(of_next, 4 * dim, errors_at, wanted_at + end * row, row, dim - end, vectors)
