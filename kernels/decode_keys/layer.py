"""The compiled call: codes are scanned in slices of all heads, then each head attends its keys."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moorage.kernels.decode_keys.attending import attend_head
from moorage.kernels.decode_keys.records import Layer, Slices
from moorage.kernels.decode_keys.runs import make_runs
from moorage.kernels.decode_keys.scan import list_length, scan_unit, set_threshold, slice_blocks
from moorage.kernels.decode_layer.memory import all_memory
from moorage.kernels.decode_layer.records import FINE
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.thread_team import run_units, unit_call


@njit(**SERIAL)
def attend_selected(
    team: Any, table: Any, empty: Any, shape: Any, head_codes: Any, batch: Any, query: Any, keys: Any, attended: Any,
    ids: Any, values: Any,
) -> Any:  # fmt: skip
    """`decode_keys` of arrays that fit; 0, or how many slices there are where the lists have no room for them."""
    page_size = 2 * shape.num_kv_heads * shape.block_size * shape.head_dim
    memory, first = all_memory(table, page_size, empty)
    layer = Layer(table, empty, shape, batch, query, keys, attended, memory, first, head_codes)
    count, group = len(query) * shape.num_kv_heads, query.shape[1] // shape.num_kv_heads
    bounds = _first_slices(layer)
    number = bounds[count]
    if number > len(ids) or list_length(shape.block_size) > ids.shape[1]:
        return number
    slices = Slices(
        bounds, attended.lse.copy().reshape(count, group), np.empty(count, np.float32), ids, values,
        np.zeros(number, np.int64), np.empty((number, group, slice_blocks(shape.block_size)), np.float32),
        np.empty((number, group), np.float32),
        np.empty((number, group, shape.head_dim), np.float32), np.empty(0, np.uint16),
    )  # fmt: skip
    runs = make_runs(layer)
    run_units(team, count, *unit_call(set_threshold, (layer, runs, slices)))
    run_units(team, number, *unit_call(scan_unit, (layer, runs, slices)))
    run_units(team, count, *unit_call(attend_head, (layer, runs, slices)))
    return np.int64(0)


@njit(**SERIAL)
def _first_slices(layer: Any) -> Any:
    """[N * Hkv + 1]: where the slices of each session's head begin; those that select nothing have none."""
    shape, batch = layer.shape, layer.batch
    length = slice_blocks(shape.block_size)
    bounds = np.zeros(len(layer.query) * shape.num_kv_heads + 1, np.int64)
    for at in range(len(bounds) - 1):
        i = at // shape.num_kv_heads
        blocks = np.int64(batch.near_block[i]) - batch.num_sinks[i]
        selects = layer.keys.selects[i] != 0 and layer.attended.failed[i] == FINE and blocks > 0
        bounds[at + 1] = bounds[at] + (-(-blocks // length) if selects else 0)
    return bounds
