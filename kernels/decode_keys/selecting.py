"""The selected keys of one KV head: those with the largest values."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.decode_keys.chunk_rows import key_steps
from moorage.kernels.decode_keys.scan import scan_slice
from moorage.kernels.decode_layer.memory import block_at
from moorage.kernels.decode_layer.packed import page_elements
from moorage.kernels.key_select.filtering import keep_best
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd_lanes import LANES


@njit(**SERIAL)
def select_keys(at: Any, layer: Any, runs: Any, slices: Any, selected: Any) -> None:
    """Selects the keys of one session and KV head, and finds where they lie."""
    i, kv_head = divmod(at, layer.shape.num_kv_heads)
    positions = layer.keys.positions[i, kv_head]
    positions[:], selected.counts[at] = -1, 0
    if slices.first[i] == slices.first[i + 1]:
        return
    ids, count = _best_keys(at, i, kv_head, layer, runs, slices)
    selected.counts[at] = count
    shape, batch, first = layer.shape, layer.batch, np.int64(layer.batch.num_sinks[i])
    size, block, start = np.int64(shape.block_size), np.int64(0), np.int64(0)
    page_size = page_elements(layer.packed, shape)
    to_head, to_next = key_steps(layer.packed, shape, kv_head)
    # Whatever a loop reads is a name of its own, since each look into a named tuple counts references.
    blocks, places, rows, starts = selected.blocks[at], selected.places[at], selected.rows[at], layer.first
    has_kept, kept, before = layer.kept.has[i], layer.kept.blocks[at], np.int64(-1)
    for t in range(count):
        scanned, place = divmod(np.int64(ids[t]), size)
        if scanned != before:
            before, block = scanned, np.int64(kept[scanned]) if has_kept else first + scanned
            start = block_at(block, i, batch, shape.stripe_blocks, starts, page_size) + to_head
        positions[t], blocks[t], places[t] = block * size + place, block, place
        rows[t] = start + place * to_next


@njit(**SERIAL)
def _best_keys(at: Any, i: Any, kv_head: Any, layer: Any, runs: Any, slices: Any) -> Any:
    """(ids, number) of the keys of a head with the largest values, ascending."""
    heads, wanted = np.int64(layer.shape.num_kv_heads), layer.keys.positions.shape[2]
    begin, end = slices.first[i] * heads + kv_head, slices.first[i + 1] * heads + kv_head
    total = slices.counts[begin:end:heads].sum()
    if total < wanted and slices.threshold[at] > -np.inf:
        # The sample of blocks has misjudged the others, so that all keys are listed.
        slices.threshold[at] = -np.inf
        for unit in range(slices.first[i], slices.first[i + 1]):
            scan_slice(i, unit, kv_head, np.int64(1), layer, runs, slices)
        total = slices.counts[begin:end:heads].sum()
    ids, values, count = np.empty(total + LANES, np.int32), np.empty(total + LANES, np.float32), np.int64(0)
    for row in range(begin, end, heads):
        more = slices.counts[row]
        ids[count : count + more] = slices.ids[row, :more]
        values[count : count + more] = slices.values[row, :more]
        count += more
    return ids, keep_best(ids, values, count, wanted)
