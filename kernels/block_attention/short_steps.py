"""Tiles of packed rows unpacked to int16 and multiplied, by the bits, the head size and the number of queries."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.block_attention.short_desk import CHUNK
from moorage.kernels.block_attention.short_rows import TILE_ROWS
from moorage.kernels.block_attention.short_tiles import (
    TILE,
    short_dots_64_1,
    short_dots_64_2,
    short_dots_64_3,
    short_dots_64_4,
    short_dots_128_1,
    short_dots_128_2,
    short_dots_128_3,
    short_dots_128_4,
    weigh_pairs_64_1,
    weigh_pairs_64_2,
    weigh_pairs_64_3,
    weigh_pairs_64_4,
    weigh_pairs_128_1,
    weigh_pairs_128_2,
    weigh_pairs_128_3,
    weigh_pairs_128_4,
)
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import INLINE
from moorage.kernels.packed_blocks.short_units import (
    UNIT,
    UNIT_BYTES,
    unpack_keys_2_64,
    unpack_keys_2_128,
    unpack_keys_3_64,
    unpack_keys_3_128,
    unpack_keys_4_64,
    unpack_keys_4_128,
    unpack_keys_8_64,
    unpack_keys_8_128,
    unpack_values_2_64,
    unpack_values_2_128,
    unpack_values_3_64,
    unpack_values_3_128,
    unpack_values_4_64,
    unpack_values_4_128,
    unpack_values_8_64,
    unpack_values_8_128,
)


@njit(**INLINE)
def unpack_key_tile(desk: Any, layout: Any, keys: Any, row: Any, count: Any) -> None:
    """Keys [row, row + count) as int16 to the tile."""
    bits, units = layout.bits, (count * layout.head_dim + UNIT - 1) // UNIT
    codes, table, operands, out = (
        keys.codes + row * layout.row_bytes,
        desk.key_table,
        desk.operands,
        desk.tile,
    )
    if layout.head_dim == UNIT:
        if bits == 8:
            unpack_keys_8_128(codes, units, table, operands, out)
        elif bits == 4:
            unpack_keys_4_128(codes, units, table, operands, out)
        elif bits == 3:
            unpack_keys_3_128(codes, units, table, operands, out)
        else:
            unpack_keys_2_128(codes, units, table, operands, out)
    elif bits == 8:
        unpack_keys_8_64(codes, units, table, operands, out)
    elif bits == 4:
        unpack_keys_4_64(codes, units, table, operands, out)
    elif bits == 3:
        unpack_keys_3_64(codes, units, table, operands, out)
    else:
        unpack_keys_2_64(codes, units, table, operands, out)


@njit(**INLINE)
def unpack_value_tile(desk: Any, layout: Any, values: Any, row: Any, count: Any) -> None:
    """Levels of values [row, row + count) as int16 to the tile, two rows side by side."""
    bits, codes, table, out = (
        layout.bits,
        values.codes + row * layout.row_bytes,
        desk.value_table,
        desk.tile,
    )
    if layout.head_dim == UNIT:
        if bits == 8:
            unpack_values_8_128(codes, count, table, out)
        elif bits == 4:
            unpack_values_4_128(codes, count, table, out)
        elif bits == 3:
            unpack_values_3_128(codes, count, table, out)
        else:
            unpack_values_2_128(codes, count, table, out)
    elif bits == 8:
        unpack_values_8_64(codes, count, table, out)
    elif bits == 4:
        unpack_values_4_64(codes, count, table, out)
    elif bits == 3:
        unpack_values_3_64(codes, count, table, out)
    else:
        unpack_values_2_64(codes, count, table, out)


@njit(**INLINE)
def key_logits(
    desk: Any,
    layout: Any,
    count: Any,
    angles: Any,
    plane_bytes: Any,
    rotates: Any,
    group: Any,
    coming: Any,
) -> None:
    """Logits of the tile of `count` keys, whose angles begin at an address."""
    each = np.int64(TILE * UNIT // 8 * layout.bits)
    m, tiles, keys, stride = (
        np.int64(0),
        (count * layout.head_dim + TILE * UNIT - 1) // (TILE * UNIT),
        desk.tile,
        4 * TILE_ROWS,
    )
    while m < group:
        left, queries, factors, out = (
            group - m,
            desk.queries + m * UNIT_BYTES,
            desk.factors + 4 * m,
            desk.logits + m * stride,
        )
        if layout.head_dim == UNIT:
            if left >= 4:
                short_dots_128_4(
                    keys, tiles, angles, plane_bytes, rotates, queries, factors, out, stride, coming, each
                )
            elif left == 3:
                short_dots_128_3(
                    keys, tiles, angles, plane_bytes, rotates, queries, factors, out, stride, coming, each
                )
            elif left == 2:
                short_dots_128_2(
                    keys, tiles, angles, plane_bytes, rotates, queries, factors, out, stride, coming, each
                )
            else:
                short_dots_128_1(
                    keys, tiles, angles, plane_bytes, rotates, queries, factors, out, stride, coming, each
                )
        elif left >= 4:
            short_dots_64_4(
                keys, tiles, angles, plane_bytes, rotates, queries, factors, out, stride, coming, each
            )
        elif left == 3:
            short_dots_64_3(
                keys, tiles, angles, plane_bytes, rotates, queries, factors, out, stride, coming, each
            )
        elif left == 2:
            short_dots_64_2(
                keys, tiles, angles, plane_bytes, rotates, queries, factors, out, stride, coming, each
            )
        else:
            short_dots_64_1(
                keys, tiles, angles, plane_bytes, rotates, queries, factors, out, stride, coming, each
            )
        m, each = m + CHUNK, np.int64(0)


@njit(**INLINE)
def weigh_tile(desk: Any, layout: Any, count: Any, group: Any, coming: Any) -> None:
    """Adds the tile of `count` rows of values to the sums of all queries.

    As many rows from `coming` on are asked for.
    """
    each = np.int64(2 * layout.row_bytes)
    m, pairs, values, by = np.int64(0), (count + 1) // 2, desk.tile, 2 * TILE_ROWS
    while m < group:
        left, weights, factors, sums = (
            group - m,
            desk.weights + m * by,
            desk.found + 16 * m + 8,
            desk.sums + 4 * m * layout.head_dim,
        )
        if layout.head_dim == UNIT:
            if left >= 4:
                weigh_pairs_128_4(values, pairs, weights, by, factors, 16, sums, coming, each)
            elif left == 3:
                weigh_pairs_128_3(values, pairs, weights, by, factors, 16, sums, coming, each)
            elif left == 2:
                weigh_pairs_128_2(values, pairs, weights, by, factors, 16, sums, coming, each)
            else:
                weigh_pairs_128_1(values, pairs, weights, by, factors, 16, sums, coming, each)
        elif left >= 4:
            weigh_pairs_64_4(values, pairs, weights, by, factors, 16, sums, coming, each)
        elif left == 3:
            weigh_pairs_64_3(values, pairs, weights, by, factors, 16, sums, coming, each)
        elif left == 2:
            weigh_pairs_64_2(values, pairs, weights, by, factors, 16, sums, coming, each)
        else:
            weigh_pairs_64_1(values, pairs, weights, by, factors, 16, sums, coming, each)
        m, each = m + CHUNK, np.int64(0)
