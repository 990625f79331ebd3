"""The queries of a session as they meet the codes of its blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.decode_keys.records import Runs
from moorage.kernels.decode_layer.records import MAX_PARTS
from moorage.kernels.key_select.lanes import TABLE_BYTES
from moorage.kernels.key_select.tables import make_tables
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.rotation import rotate_into
from moorage.kernels.simd import LINE_BYTES


@njit(**SERIAL)
def make_runs(layer: Any) -> Any:
    """The Runs of all sessions: one for each part of the position scheme, and for each period within it."""
    batch, shape, query = layer.batch, layer.shape, layer.query
    count, heads, dim = query.shape
    most = MAX_PARTS
    if batch.period:
        most += batch.position.max() // batch.period + 1
    runs = Runs(
        np.zeros((count, most, 2), np.int64), np.empty((count, most, heads, dim), np.float32),
        _tables(count, most, heads, dim), np.empty((count, most, heads, 2), np.float32),
    )  # fmt: skip
    for i in range(count):
        if not layer.keys.selects[i]:
            continue
        number, step = np.int64(0), np.int64(batch.period) // shape.block_size
        for part in range(batch.num_parts[i]):
            low = max(np.int64(batch.num_sinks[i]), -(-batch.part_low[i, part] // shape.block_size))
            high = min(np.int64(batch.near_block[i]), -(-batch.part_high[i, part] // shape.block_size))
            while low < high and number < most:
                end = min(high, (low // step + 1) * step) if step else high
                runs.bounds[i, number, 0], runs.bounds[i, number, 1] = low, end
                turn_for_codes(i, part, low, layer, runs.queries[i, number])
                make_tables(runs.queries[i, number], runs.tables[i, number], runs.terms[i, number])
                low, number = end, number + 1
    return runs


@njit(**SERIAL)
def _tables(count: Any, most: Any, heads: Any, dim: Any) -> Any:
    """[count, most, heads, dim / 8, 2, TABLE_BYTES] at an address that no vector of a table crosses a line from."""
    size = count * most * heads * (dim // 8) * 2 * TABLE_BYTES
    memory = np.empty(size + LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + size].reshape(count, most, heads, dim // 8, 2, TABLE_BYTES)


@njit(**SERIAL)
def _move_by_periods(count: Any, layer: Any, turn: Any) -> None:
    """Adds the angles of `count` periods to those of `turn`."""
    bases, size = layer.batch.bases, layer.shape.block_size
    step = np.int64(layer.batch.period) // size
    offsets = layer.keys.offset_turns
    for _ in range(count):
        for d in range(len(turn)):
            # A period ends one token after the last of its last block.
            last = complex(offsets[size - 1, 0, d], offsets[size - 1, 1, d])
            turn[d] *= bases[step - 1, d] * last
            if size > 1:
                turn[d] *= complex(offsets[1, 0, d], offsets[1, 1, d])


@njit(**SERIAL)
def turn_for_codes(i: Any, part: Any, block: Any, layer: Any, out: Any) -> None:
    """out [Hq, D]: the scaled queries as they meet the codes of a run of blocks that begins at `block`.

    Codes are of keys at their own positions; where positions begin anew after each period, the queries are moved by
    the periods before the run instead.
    """
    batch, query = layer.batch, layer.query[i]
    rotates = batch.part_rotates[i, part] != 0
    turn = batch.query_turn[i, part].copy()
    if rotates and not layer.keys.is_rotated:
        turn[:] = 1
    if rotates and layer.keys.is_rotated and batch.period:
        _move_by_periods(block // (np.int64(batch.period) // layer.shape.block_size), layer, turn)
    turned_queries(query, turn, batch.scale[i], out)


@njit(**SERIAL)
def turned_queries(query: Any, turn: Any, scale: Any, out: Any) -> None:
    """out [n, D]: queries rotated by `turn` [rd / 2] and scaled."""
    rotate_into(query, turn.real.astype(np.float32), turn.imag.astype(np.float32), out)
    out *= scale
