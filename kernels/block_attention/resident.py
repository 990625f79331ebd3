"""Decode attention over blocks where they lie in the stores' memory: nothing is copied, no slot is managed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.addresses import address_of, matrix_at, spanned
from moorage.kernels.block_attention.cpu import attend
from moorage.kernels.checks import INT32, check_array, check_multiple
from moorage.kernels.compiling import njit
from moorage.kernels.half import Storage
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.simd import LANES
from moorage.kernels.thread_team import team_of

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Rotations = tuple[Float32, Float32, NDArray[np.uint8], Float32, Float32]
"""angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin, as `attend_blocks` takes them."""


def attend_resident(
    query: Float32,
    memories: tuple[Storage, ...],
    tables: tuple[Int32, ...],
    layer_sizes: Int64,
    layer: int,
    stripe_blocks: int,
    block_shape: tuple[int, int, int],
    blocks: Int32,
    rows: tuple[Int32, Int32],
    rotations: Rotations,
    scale: float,
    kv_head: int | None = None,
    softcap: float = 0.0,
) -> tuple[Float32, Float32]:
    """(out [Hq, D], lse [Hq]) of one query over rows [begin, end) of n blocks, as `attend_blocks`.

    Stripes of `stripe_blocks` blocks are dealt to the flat `memories` in turn; block i of memory m is page
    tables[m][i] of the layer, which begins at element layer * layer_sizes[m] and has pages of [2, Hkv, B, D];
    block_shape is the last three. With `kv_head`, the query's heads are those of this KV head alone. Raises
    ValueError for a block or row that does not exist.
    """
    num_kv_heads, block_size, dim = block_shape
    check_multiple("head size", dim, 2 * LANES)
    seen_heads = num_kv_heads if kv_head is None else 1
    check_multiple("query heads", len(query), seen_heads)
    out, lse = np.empty(query.shape, np.float32), np.empty(len(query), np.float32)
    workers = num_workers(2 * len(blocks) * seen_heads * block_size * dim * memories[0].itemsize)
    splits = max(1, min(-(-workers // seen_heads), len(blocks)))
    for memory, table in zip(memories, tables, strict=True):
        check_array("memory", memory, (memories[0].dtype,), (None,))
        check_array("table", table, INT32, (None,))
    arrays = np.array(
        [
            (address_of(memory), len(memory), address_of(table), len(table))
            for memory, table in zip(memories, tables, strict=True)
        ],
        np.int64,
    )
    wrong = _attend(
        team_of(workers), query, arrays, (memories[0][:0], blocks[:0]), layer_sizes, layer, stripe_blocks,
        num_kv_heads, block_size, blocks, rows, rotations, np.float32(scale), np.float32(softcap), kv_head or 0,
        seen_heads, splits, out, lse,
    )  # fmt: skip
    if wrong >= 0:
        raise ValueError(
            f"entry {wrong}: rows {rows[0][wrong]} to {rows[1][wrong]} of block {blocks[wrong]} do not exist"
        )
    return out, lse


@njit(**SERIAL)
def _attend(
    team: Any, query: Any, arrays: Any, empty: Any, layer_sizes: Any, layer: Any, stripe_blocks: Any,
    num_kv_heads: Any, block_size: Any, blocks: Any, rows: Any, rotations: Any, scale: Any, softcap: Any,
    first_head: Any, seen_heads: Any, splits: Any, out: Any, lse: Any,
) -> Any:  # fmt: skip
    """Returns the first entry that lies nowhere, or -1.

    arrays [M, 4]: address and length of each memory and of its page table; empty: none of the elements of each.
    """
    stored, memory_at = spanned(arrays[:, 0].copy(), arrays[:, 1].copy(), empty[0])
    count, num_memories, head_size = len(blocks), len(arrays), block_size * query.shape[1]
    offset = np.empty(count, np.int64)
    for e in range(count):
        stripe, within = divmod(np.int64(blocks[e]), stripe_blocks)
        turn, m = divmod(stripe, num_memories)
        local = turn * stripe_blocks + within
        if not 0 <= local < arrays[m, 3] or not 0 <= rows[0][e] <= rows[1][e] <= block_size:
            return e
        table = matrix_at(arrays[m, 2], np.int64(1), arrays[m, 3], empty[1])
        page = np.int64(table[0, local])
        offset[e] = memory_at[m] + layer * layer_sizes[m] + (page * 2 * num_kv_heads + first_head) * head_size
    problem = stored, head_size, num_kv_heads * head_size, offset, rows, rotations, scale, softcap
    attend(team, query, seen_heads, problem, splits, out, lse)
    return -1
