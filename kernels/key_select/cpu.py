"""Values of the keys of one session's blocks, by their codes: for stores, where nothing else is done by one call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import (
    FLOAT32,
    STORAGE,
    UINT8,
    check_array,
    check_ids,
    check_multiple,
    check_range,
)
from moorage.kernels.compiling import njit
from moorage.kernels.half import Storage, from_storage
from moorage.kernels.key_codes.sizes import TOKENS, code_bytes
from moorage.kernels.key_select import reference
from moorage.kernels.key_select.estimates import Desk, Queries, estimate
from moorage.kernels.key_select.lanes import TABLE_BYTES
from moorage.kernels.key_select.tables import make_tables
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd import TILE
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.thread_team import run_units, team_for, unit_call

PIECE_KEYS = 8192
"""Keys of a piece that one thread estimates for the queries of one KV head."""


def key_values(
    anchors_layer: Storage,
    codes_layer: NDArray[np.uint8],
    pages: NDArray[np.int32],
    queries: NDArray[np.float32],
    near: NDArray[np.float32],
    *,
    scale: float,
    block_size: int,
    out: NDArray[np.float32],
    first: int = 0,
) -> None:
    """out[:, first : first + n * B]: by key of the blocks on `pages` [n] the largest of (estimated logit - near).

    anchors_layer [P, Hkv, 1, D], codes_layer [P, bytes], queries [Hq, D] as they meet the codes, near [Hq], out
    [Hkv, T]. A query is rounded: each sum of four transformed channels with any signs to one of 127 steps.
    """
    check_array("anchors_layer", anchors_layer, STORAGE, (None, None, 1, None))
    num_pages, num_kv_heads, _, dim = anchors_layer.shape
    check_multiple("block size", block_size, TOKENS)
    check_array("codes_layer", codes_layer, UINT8, (num_pages, code_bytes(num_kv_heads, block_size, dim)))
    check_ids("pages", pages, num_pages)
    check_array("queries", queries, FLOAT32, (None, dim))
    check_multiple("query heads", len(queries), num_kv_heads)
    check_array("near", near, FLOAT32, (len(queries),))
    check_array("out", out, FLOAT32, (num_kv_heads, None))
    check_range("first", first, 0, out.shape[1] - len(pages) * block_size)
    if not len(pages):
        return
    if dim % LANES:
        _value_slowly(anchors_layer, codes_layer, pages, queries, near, scale, block_size, out[:, first:])
        return
    scaled = queries * np.float32(scale)
    tables = np.empty((len(queries), dim // 8, 2, TABLE_BYTES), np.uint8)
    terms = np.empty((len(queries), 2), np.float32)
    team = team_for(len(pages) * codes_layer.shape[1])
    _value(
        team,
        anchors_layer,
        codes_layer,
        pages,
        scaled,
        near,
        tables,
        terms,
        np.int64(block_size),
        out,
        np.int64(first),
    )


def _value_slowly(
    anchors: Storage,
    codes: NDArray[np.uint8],
    pages: NDArray[np.int32],
    queries: NDArray[np.float32],
    near: NDArray[np.float32],
    scale: float,
    block_size: int,
    out: NDArray[np.float32],
) -> None:
    """For head sizes that vectors do not divide, which no published model with stored layers has."""
    means = from_storage(anchors[pages, :, 0])
    logits = reference.estimated_logits(codes[pages], means, queries, block_size=block_size, scale=scale)
    groups = logits.reshape(len(out), -1, logits.shape[1])
    for into, of_head, of_group in zip(
        out, groups, near.astype(np.float64).reshape(len(out), -1), strict=True
    ):
        into[: logits.shape[1]] = reference.key_values(of_head, of_group)


@njit(**SERIAL)
def _value(
    team: Any, anchors: Any, codes: Any, pages: Any, queries: Any, near: Any, tables: Any, terms: Any, size: Any,
    out: Any, column: Any,
) -> None:  # fmt: skip
    make_tables(queries, tables, terms)
    pieces = -(-len(pages) * size // PIECE_KEYS)
    arguments = anchors, codes, pages, queries, near, tables, terms, size, out, column, pieces
    run_units(team, anchors.shape[1] * pieces, *unit_call(_value_piece, arguments))


@njit(**SERIAL)
def _value_piece(
    unit: Any, anchors: Any, codes: Any, pages: Any, queries: Any, near: Any, tables: Any, terms: Any, size: Any,
    out: Any, column: Any, pieces: Any,
) -> None:  # fmt: skip
    """The values of one piece of the blocks for one KV head."""
    head, piece = divmod(unit, pieces)
    begin, end = len(pages) * piece // pieces, len(pages) * (piece + 1) // pieces
    group, dim, count = len(queries) // anchors.shape[1], anchors.shape[3], end - begin
    first, head_codes, head_mean = head * group, codes.shape[1] // anchors.shape[1], dim * anchors.itemsize
    means_at, codes_at = np.empty(count, np.int64), np.empty(count, np.int64)
    for i in range(count):
        at = np.int64(pages[begin + i]) * anchors.shape[1] + head
        means_at[i], codes_at[i] = anchors.ctypes.data + at * head_mean, codes.ctypes.data + at * head_codes
    floats = np.empty((group, count + LANES), np.float32)
    of_head = Queries(
        group, dim, queries[first:].ctypes.data, tables[first:].ctypes.data, terms[first:].ctypes.data,
        near[first:].ctypes.data,
    )  # fmt: skip
    into = out[head, column + begin * size :].ctypes.data
    _estimate_piece(
        anchors.reshape(-1)[:0], means_at, codes_at, np.empty(TILE, np.int64), floats, size, of_head, into
    )


@njit(**SERIAL)
def _estimate_piece(
    like: Any, means_at: Any, codes_at: Any, places: Any, products: Any, size: Any, of_head: Any, into: Any
) -> None:
    """A call of its own, which holds the arrays whose addresses are used."""
    desk = Desk(places.ctypes.data, products.ctypes.data, 4 * products.shape[1])
    count = len(means_at)
    estimate(
        like, means_at.ctypes.data, codes_at.ctypes.data, np.int64(0), count, count - 1, size, of_head, desk, into
    )  # fmt: skip
