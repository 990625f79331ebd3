"""The compiled call: codes are scanned in slices, then each head selects its keys and attends them in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.decode_keys.attending import attend_chunk, join_head, num_chunks
from moorage.kernels.decode_keys.first_level import first_level, keep_blocks, new_kept, score_unit
from moorage.kernels.decode_keys.records import Layer, Parts, Selected, Slices
from moorage.kernels.decode_keys.runs import make_runs
from moorage.kernels.decode_keys.scan import list_length, num_scanned, scan_unit, slice_blocks
from moorage.kernels.decode_keys.selecting import select_keys
from moorage.kernels.decode_keys.thresholds import (
    PIECES,
    needs_threshold,
    sample_of,
    sample_piece,
    set_threshold,
)
from moorage.kernels.decode_layer.memory import all_memory
from moorage.kernels.decode_layer.packed import page_elements
from moorage.kernels.decode_layer.records import FINE
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.thread_team import run_units, unit_call


@njit(**SERIAL)
def attend_selected(
    team: Any, table: Any, empty: Any, shape: Any, head_codes: Any, batch: Any, query: Any, keys: Any, attended: Any,
    packed: Any, ids: Any, values: Any,
) -> Any:  # fmt: skip
    """`decode_keys` of arrays that fit; 0, or how many rows the lists must have where they have too few."""
    memory, first = all_memory(table, page_elements(packed, shape), empty)
    kept = new_kept(table, batch, keys, attended)
    layer = Layer(table, empty, shape, batch, query, keys, attended, memory, first, head_codes, packed, kept)
    count, group = len(query) * shape.num_kv_heads, query.shape[1] // shape.num_kv_heads
    first_slice = _first_slices(layer)
    number = first_slice[len(query)]
    rows = number * shape.num_kv_heads
    if rows > len(ids) or list_length(shape.block_size) > ids.shape[1]:
        return rows
    slices = Slices(
        first_slice, attended.lse.copy().reshape(count, group), np.empty(count, np.float32), ids, values,
        np.zeros(rows, np.int64), np.empty((rows, group, slice_blocks(shape.block_size) + LANES), np.float32),
        np.empty((rows, group), np.float32),
        np.empty((rows, group, shape.head_dim), np.float32), np.empty(0, np.uint16),
    )  # fmt: skip
    runs = make_runs(layer)
    _keep_blocks(team, layer, runs, slices)
    _set_thresholds(team, layer, runs, slices)
    run_units(team, number, *unit_call(scan_unit, (layer, runs, slices)))
    wanted = keys.positions.shape[2]
    selected = Selected(
        np.empty(count, np.int64), np.empty((count, wanted), np.int32), np.empty((count, wanted), np.int32),
        np.empty((count, wanted), np.int64),
    )  # fmt: skip
    run_units(team, count, *unit_call(select_keys, (layer, runs, slices, selected)))
    units = count * num_chunks(wanted)
    parts = Parts(
        np.empty((units, group), np.float32), np.empty((units, group), np.float32),
        np.empty((units, group, shape.head_dim), np.float32),
    )  # fmt: skip
    run_units(team, units, *unit_call(attend_chunk, (layer, slices, selected, parts)))
    for at in range(count):
        join_head(at, layer, slices, parts)
    return np.int64(0)


@njit(**SERIAL)
def _keep_blocks(team: Any, layer: Any, runs: Any, slices: Any) -> None:
    """Finds which blocks are scanned, where not all are."""
    first = first_level(layer, runs, slices.less)
    units = first.units[len(layer.query)]
    if units:
        run_units(team, units, *unit_call(score_unit, (layer, runs, first)))
        run_units(team, len(slices.less), *unit_call(keep_blocks, (layer, first)))


@njit(**SERIAL)
def _set_thresholds(team: Any, layer: Any, runs: Any, slices: Any) -> None:
    most = np.int64(0)
    for i in range(len(layer.query)):
        if needs_threshold(i, layer, slices):
            most = max(most, sample_of(i, layer)[0])
    samples = np.empty((len(slices.threshold), most * layer.shape.block_size), np.float32)
    if most:
        units = len(layer.query) * PIECES
        run_units(team, units, *unit_call(sample_piece, (layer, runs, slices, samples)))
    run_units(team, len(samples), *unit_call(set_threshold, (layer, slices, samples)))


@njit(**SERIAL)
def _first_slices(layer: Any) -> Any:
    """[N + 1]: where the slices of each session begin; those that select nothing have none."""
    length = slice_blocks(layer.shape.block_size)
    bounds = np.zeros(len(layer.query) + 1, np.int64)
    for i in range(len(layer.query)):
        blocks = num_scanned(i, layer)
        selects = layer.keys.selects[i] != 0 and layer.attended.failed[i] == FINE and blocks > 0
        bounds[i + 1] = bounds[i] + (-(-blocks // length) if selects else 0)
    return bounds
