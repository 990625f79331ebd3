"""What successive positions of one session attend of one piece, as `attend_lanes` takes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.block_attention.lane_rows import empty_steps
from moorage.kernels.compiling import njit
from moorage.kernels.decode_layer.entries import PIECE_ROWS
from moorage.kernels.decode_layer.memory import block_at
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.simd_queries import lane_angles


@njit(**SERIAL)
def attend_alike(batch: Any, selections: Any) -> Any:
    """Whether each position attends every block up to its own, and there are lanes for all of them."""
    count = len(batch.position)
    for r in range(count):
        if selections.window_first[r] != batch.num_sinks[r] or batch.num_parts[r] != batch.num_parts[0]:
            return False
    return count <= LANES and selections.ids.shape[2] == 0


@njit(**SERIAL)
def split_turns(batch: Any) -> Any:
    """float64 [2, parts, half, 16]: real and imaginary parts of `query_turn`, a position a lane."""
    num_rows, num_parts, half = batch.query_turn.shape
    turns = np.zeros((2, num_parts, half, LANES), np.float64)
    for r in range(num_rows):
        for part in range(batch.num_parts[r]):
            for d in range(half):
                turn = batch.query_turn[r, part, d]
                turns[0, part, d, r], turns[1, part, d, r] = turn.real, turn.imag
    return turns


@njit(**SERIAL)
def plan_steps(piece: Any, first: Any, shape: Any, batch: Any, turns: Any, group: Any) -> Any:
    """(number, `Steps`) of a piece for `group` queries of each position, which `attend_alike`; see `fill_entries`.

    A block has a step for each part of the position scheme that cuts it, and more where positions differ in where it
    is cut.
    """
    num_rows, num_parts, half, size = (
        len(batch.position),
        batch.num_parts[0],
        turns.shape[2],
        shape.block_size,
    )
    page_size, length = 2 * shape.num_kv_heads * size * shape.head_dim, max(1, PIECE_ROWS // size)
    begin, end = piece * length, min(batch.position[num_rows - 1] // size + 1, (piece + 1) * length)
    steps = empty_steps(max(0, end - begin) * num_parts * num_rows, num_rows * group, half)
    count = 0
    for block in range(begin, end):
        start = block * size
        offset = block_at(block, num_rows - 1, batch, shape.stripe_blocks, first, page_size)
        for part in range(num_parts):
            r = 0
            while r < num_rows:
                low, high = max(start, batch.part_low[r, part]), min(start + size, batch.part_high[r, part])
                rotates = batch.part_rotates[r, part]
                if low >= high:
                    r += 1
                    continue
                steps.limit[count] = 0
                while r < num_rows:
                    own = min(start + size, batch.part_high[r, part])
                    if max(start, batch.part_low[r, part]) != low or own <= low:
                        break
                    if batch.part_rotates[r, part] != rotates:
                        break
                    high = max(high, own)
                    for m in range(group):
                        steps.limit[count, m * num_rows + r] = own - start
                    r += 1
                steps.offset[count], steps.rotates[count] = offset, rotates
                steps.begin[count], steps.end[count] = low - start, high - start
                _angles(steps, count, batch, turns, part, start, size, rotates, group)
                count += 1
    return count, steps


@njit(**SERIAL)
def _angles(
    steps: Any, step: Any, batch: Any, turns: Any, part: Any, start: Any, size: Any, rotates: Any, group: Any
) -> None:
    """The angles of all positions towards the block that begins at token `start`; see `turn_angles`."""
    num_parts, half, lanes = turns.shape[1], turns.shape[2], steps.limit.shape[1]
    plain = np.ones(half, np.complex128)
    base = plain.ctypes.data
    if rotates:
        base = batch.bases.ctypes.data + 16 * half * (
            (start % batch.period if batch.period else start) // size
        )
    turn, into = turns.ctypes.data + 8 * part * half * LANES, 4 * step * half * lanes
    lane_angles(
        turn, turn + 8 * num_parts * half * LANES, base, half, group, len(batch.position), lanes,
        steps.cos.ctypes.data + into, steps.sin.ctypes.data + into,
    )  # fmt: skip
    plain[0] = 0  # until here it is held
