"""Checks what is given to a layer of successive positions, and starts the compiled call."""

from __future__ import annotations

import numba

from moorage.kernels.decode_layer.cpu import check_layer
from moorage.kernels.decode_layer.records import Attended, Float32, LayerMemory, Selections, SessionBatch
from moorage.kernels.decode_rows.layer import run_rows
from moorage.kernels.half import NOT_FINITE
from moorage.kernels.thread_team import team_for


def decode_rows(
    memory: LayerMemory,
    batch: SessionBatch,
    query: Float32,
    key: Float32,
    value: Float32,
    selections: Selections,
    attended: Attended,
    *,
    is_checked: bool = False,
) -> int:
    """`decode_layer` of R successive positions of one session, which select nothing, at the price of about one.

    Row r of `batch` has the pages of the session and position `batch.position[0] + r`. All rows are written before
    any of them is attended. The bits are those that `decode_layer` gives for one position after the other, where half
    the rotated channels are whole vectors. Returns how many rows failed: none or all. `is_checked` is as in
    `decode_layer`.
    """
    check_layer(memory, batch, query, key, value, selections, attended, is_checked=is_checked)
    if not len(query):
        return 0
    shape, last = memory.shape, int(batch.position[-1])
    row_bytes = 2 * shape.num_kv_heads * shape.head_dim * memory.empty.itemsize
    team = team_for((last + 1) * row_bytes)
    return int(
        run_rows(
            team, numba.get_num_threads() if team else 1, memory.table, memory.empty, shape, batch, query, key, value,
            selections, attended, int(NOT_FINITE[memory.empty.dtype]),
        )
    )  # fmt: skip
