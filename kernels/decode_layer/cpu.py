"""Checks what is given to a layer of decode, and starts the compiled call."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from moorage.kernels.block_score.cpu import prefetch_distance
from moorage.kernels.checks import check_array, check_multiple
from moorage.kernels.decode_layer.layer import run_layer
from moorage.kernels.decode_layer.records import (
    MAX_PARTS,
    Attended,
    Float32,
    LayerMemory,
    Selections,
    SessionBatch,
)
from moorage.kernels.half import NOT_FINITE
from moorage.kernels.thread_team import team_limit, team_of

Arrays = tuple[NDArray[Any], ...]
Shapes = tuple[tuple[int, ...], ...]

_INT32, _INT64, _UINT8 = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.uint8)
_FLOAT32, _COMPLEX = np.dtype(np.float32), np.dtype(np.complex128)
_TYPES: tuple[tuple[str, np.dtype[Any]], ...] = (
    ("position", _INT64), ("pages", _INT32), ("page_start", _INT64), ("first_memory", _INT32),
    ("num_sinks", _INT32), ("near_block", _INT32), ("scale", _FLOAT32), ("softcap", _FLOAT32), ("num_parts", _INT32),
    ("part_low", _INT64), ("part_high", _INT64), ("part_rotates", _UINT8), ("query_turn", _COMPLEX),
    ("bases", _COMPLEX), ("offset_cos", _FLOAT32), ("offset_sin", _FLOAT32), ("score_cos", _FLOAT32),
    ("score_sin", _FLOAT32), ("selects", _UINT8), ("ids", _INT32), ("scores", _FLOAT32), ("window_first", _INT32),
    ("out", _FLOAT32), ("lse", _FLOAT32), ("failed", _INT32),
    ("query", _FLOAT32), ("key", _FLOAT32), ("value", _FLOAT32),
)  # fmt: skip
_BATCH = tuple(
    name for name in SessionBatch._fields if name not in ("period", "rotates_scoring", "raw_pages")
)
_DTYPES = tuple(dtype for _, dtype in _TYPES)


def decode_layer(
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
    """Writes the new row of each of N sessions, selects blocks for those that select, and attends.

    query [N, Hq, D], key and value [N, Hkv, D], un-rotated. The results go into `selections` and `attended`, as their
    fields say. A session's results are the same to the bit alone, with others and by any number of threads; one
    that fails leaves the others right. Returns how many failed. Raises ValueError, with nothing written, if arrays do
    not fit. `is_checked` says that all but the queries, keys and values have the types and shapes of an earlier call
    that was fine: then only these three are looked at.
    """
    check_layer(memory, batch, query, key, value, selections, attended, is_checked=is_checked)
    hints = prefetch_distance(memory.empty.itemsize, memory.anchor_size)
    layer = (
        memory.table, memory.empty, memory.anchor_size, memory.shape, batch, query, key, value, selections, attended,
        hints, int(NOT_FINITE[memory.empty.dtype]), memory.packed,
    )  # fmt: skip
    return int(run_layer(team_of(numba.get_num_threads()), team_limit(), *layer))


def check_layer(
    memory: LayerMemory,
    batch: SessionBatch,
    query: Float32,
    key: Float32,
    value: Float32,
    selections: Selections,
    attended: Attended,
    *,
    is_checked: bool,
) -> None:
    """Raises ValueError if arrays do not fit; `is_checked` is as in `decode_layer`."""
    if is_checked and _are_rows(memory, query, key, value, attended):
        return
    if memory.packed is not None:
        pages = len(query), len(memory.table), memory.packed.num_raw_pages
        check_array("raw_pages", batch.raw_pages, (_INT32,), pages)
    arrays = _arrays(batch, query, key, value, selections, attended)
    shapes = _shapes(memory, batch, query, selections)
    if not (_are_typed(arrays, shapes) and _are_sized(memory, batch, query, selections)):
        raise _misfit(memory, batch, arrays, shapes)


def _are_rows(memory: LayerMemory, query: Float32, key: Float32, value: Float32, attended: Attended) -> bool:
    """Whether queries, keys and values fit the arrays of the results."""
    out, shape = attended.out, memory.shape
    return (
        query.shape == out.shape
        and key.shape == value.shape == (len(out), shape.num_kv_heads, shape.head_dim)
        and query.dtype == key.dtype == value.dtype == _FLOAT32
        and query.flags.c_contiguous
        and key.flags.c_contiguous
        and value.flags.c_contiguous
    )


def _arrays(
    batch: SessionBatch,
    query: Float32,
    key: Float32,
    value: Float32,
    selections: Selections,
    attended: Attended,
) -> Arrays:
    """In the order of _TYPES."""
    return (*(getattr(batch, name) for name in _BATCH), *selections, *attended, query, key, value)


def _shapes(memory: LayerMemory, batch: SessionBatch, query: Float32, selections: Selections) -> Shapes:
    """The shapes that the arrays must have."""
    shape, num_memories = memory.shape, len(memory.table)
    n, heads, half = len(query), query.shape[-2], batch.offset_cos.shape[-1]
    one, parts, turns = (n,), (n, MAX_PARTS), (n, half)
    offsets, ids = (shape.block_size, half), (n, *selections.ids.shape[-2:])
    rows = (n, shape.num_kv_heads, shape.head_dim)
    return (
        one, batch.pages.shape[:1], (n, num_memories + 1), one, one, one, one, one, one, parts, parts, parts,
        (*parts, half), (len(batch.bases), half), offsets, offsets, turns, turns, one, ids, ids, one,
        (n, heads, shape.head_dim), (n, heads), one,
        (n, heads, shape.head_dim), rows, rows,
    )  # fmt: skip


def _are_typed(arrays: Arrays, shapes: Shapes) -> bool:
    found, types = tuple([array.shape for array in arrays]), tuple([array.dtype for array in arrays])
    return found == shapes and types == _DTYPES and all(array.flags.c_contiguous for array in arrays)


def _are_sized(memory: LayerMemory, batch: SessionBatch, query: Float32, selections: Selections) -> bool:
    """Whether sizes suit each other."""
    shape, heads, num_selections = memory.shape, query.shape[1], selections.ids.shape[1]
    if not (heads and heads % shape.num_kv_heads == 0 and 2 * batch.offset_cos.shape[1] <= shape.head_dim):
        return False
    if (
        batch.period < 0
        or batch.period % shape.block_size
        or num_selections not in (1, shape.num_kv_heads, heads)
    ):
        return False
    selects_here = num_selections in (1, shape.num_kv_heads) and memory.anchor_size == _anchor_size(memory)
    return selects_here or not np.count_nonzero(selections.selects)


def _anchor_size(memory: LayerMemory) -> int:
    """Elements of a page's anchors where selections can be made: one vector, or two bounds, of each KV head."""
    shape = memory.shape
    return shape.num_kv_heads * shape.head_dim * (2 if shape.bounds else 1)


def _misfit(memory: LayerMemory, batch: SessionBatch, arrays: Arrays, shapes: Shapes) -> ValueError:
    """Why nothing was done."""
    for (name, dtype), array, shape in zip(_TYPES, arrays, shapes, strict=True):
        check_array(name, array, (dtype,), shape)
    shape, (num_sessions, heads, _), num_selections = memory.shape, arrays[-3].shape, shapes[19][1]
    check_multiple("query heads", heads, shape.num_kv_heads)
    return ValueError(
        f"{num_selections} selections of {num_sessions} sessions, {heads} query and {shape.num_kv_heads} KV heads, "
        f"{memory.anchor_size} elements of anchors a page, {batch.offset_cos.shape[1]} rotated pairs of channels of "
        f"{shape.head_dim}, positions of period {batch.period}: expected 1 selection or one for each head, to select "
        f"here one for each KV head and anchors of {_anchor_size(memory)} elements, at most half as many pairs as "
        f"channels, and a period of whole blocks of {shape.block_size}"
    )
