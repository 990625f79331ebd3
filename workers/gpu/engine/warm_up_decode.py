"""Compiles, or loads from the disk cache, the calls that serve a layer of decode on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.decode_keys import KeyLists, KeySelections, decode_keys
from moorage.kernels.decode_layer import (
    MAX_PARTS,
    Attended,
    LayerMemory,
    LayerShape,
    Selections,
    SessionBatch,
    decode_layer,
)
from moorage.kernels.decode_layer.plan import NEVER, Policy, SelectionState, Standing, end_step, plan_layers
from moorage.kernels.decode_rows import decode_rows
from moorage.kernels.numba_flags import in_both_ways, num_workers
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.host_memory import layer_of
from moorage.workers.spec import AnchorType, KvLayout

_EVERYTHING = 1 << 62
"""Bytes for which all threads are woken."""


class _Step(NamedTuple):
    """A layer of decode of some sessions, which have one token each."""

    memory: LayerMemory
    batch: SessionBatch
    query: NDArray[np.float32]
    rows: NDArray[np.float32]
    """Keys and values."""
    selections: Selections
    attended: Attended


def decode_uses(layout: KvLayout, group_size: int, rotary_dim: int) -> list[Callable[[], None]]:
    """One function for each compiled call, which makes it; the first ones take longest to compile."""
    rows = [] if layout.is_packed else [_run_rows]
    calls = [_run_layer, *rows, *([_run_keys] if layout.anchor_type.codes_keys else [])]
    return [*(partial(_in_all_ways, layout, group_size, rotary_dim // 2, call) for call in calls), _plan]


def _in_all_ways(layout: KvLayout, group_size: int, half: int, call: Callable[[_Step], None]) -> None:
    """Calls for one session, and for as many as there are threads: on one thread, and in parallel."""
    for count in (1, num_workers(_EVERYTHING)):
        arena = Arena(layout, count)
        step = _first_step(arena, layout, group_size, half, count)
        in_both_ways(partial(call, step))
        arena.close()


def _plan() -> None:
    """The plan of a step for one session and one layer."""
    whole, half, flags = np.zeros(1, np.int64), np.zeros(1, np.int32), np.zeros((2, 1, 1), np.uint8)
    selections = SelectionState(
        np.full((1, 1, 1, 1), -1, np.int32),
        np.zeros((1, 1), np.int32),
        np.full((1, 1), NEVER, np.int64),
        flags[0],
        flags[1],
    )
    standing = Standing(whole, np.zeros(1, np.uint8), half, half.copy())
    policy = Policy(budget=1, attends_none=False, dense_layers=0, layer_step=1, token_step=1)
    plan_layers(selections, standing, policy)
    end_step(selections, standing, policy, whole.copy())


def _first_step(arena: Arena, layout: KvLayout, group_size: int, half: int, count: int) -> _Step:
    """The first step of `count` sessions, each of which has a page of its own."""
    heads, kind = layout.num_kv_heads * group_size, layout.anchor_type
    shape = LayerShape(
        layout.num_kv_heads,
        layout.block_size,
        layout.head_dim,
        1,
        kind.bounds,
        kind is AnchorType.KEY_CODES,
    )
    memory = LayerMemory.of(shape, *layer_of([arena], 0))
    rows = np.zeros((2, count, layout.num_kv_heads, layout.head_dim), np.float32)
    selections = Selections(
        np.zeros(count, np.uint8),
        np.full((count, 1, 1), -1, np.int32),
        np.zeros((count, 1, 1), np.float32),
        np.zeros(count, np.int32),
    )
    attended = Attended(
        np.zeros((count, heads, layout.head_dim), np.float32),
        np.zeros((count, heads), np.float32),
        np.zeros(count, np.int32),
    )
    query = np.zeros((count, heads, layout.head_dim), np.float32)
    return _Step(memory, _first_tokens(layout, half, count), query, rows, selections, attended)


def _run_layer(step: _Step) -> None:
    decode_layer(
        step.memory, step.batch, step.query, step.rows[0], step.rows[1], step.selections, step.attended
    )


def _run_rows(step: _Step) -> None:
    """As many positions of one session."""
    count = len(step.query)
    together = np.tile(np.array([0, count], np.int64), (count, 1))
    positions = step.batch._replace(position=np.arange(count, dtype=np.int64), page_start=together)
    decode_rows(
        step.memory, positions, step.query, step.rows[0], step.rows[1], step.selections, step.attended
    )


def _run_keys(step: _Step) -> None:
    """Sessions that select no single key."""
    memory, batch, query = step.memory, step.batch, step.query
    shape, half = memory.shape, batch.offset_cos.shape[1]
    keys = KeySelections(
        np.zeros(len(query), np.uint8),
        np.full((len(query), shape.num_kv_heads, 1), -1, np.int32),
        np.zeros(query.shape[:2], np.float32),
        True,
        np.zeros((len(batch.bases), 2, half), np.float32),
        np.zeros((shape.block_size, 2, half), np.float32),
    )
    decode_keys(memory, batch, query, keys, step.attended, KeyLists())


def _first_tokens(layout: KvLayout, half: int, count: int) -> SessionBatch:
    """Sessions at position 0, the i-th of which has page i."""
    pages = np.arange(count, dtype=np.int64)
    one = np.ones((count, MAX_PARTS), np.int64)
    angles = np.zeros((2, count, half), np.float32)
    offsets = np.zeros((2, layout.block_size, half), np.float32)
    return SessionBatch(
        position=np.zeros(count, np.int64),
        pages=pages.astype(np.int32),
        page_start=np.stack((pages, pages + 1), axis=1),
        first_memory=np.zeros(count, np.int32),
        num_sinks=np.zeros(count, np.int32),
        near_block=np.zeros(count, np.int32),
        scale=np.ones(count, np.float32),
        softcap=np.zeros(count, np.float32),
        num_parts=np.ones(count, np.int32),
        part_low=np.zeros_like(one),
        part_high=one,
        part_rotates=one.astype(np.uint8),
        query_turn=np.ones((count, MAX_PARTS, half), np.complex128),
        period=0,
        bases=np.ones((1, half), np.complex128),
        offset_cos=offsets[0],
        offset_sin=offsets[1],
        score_cos=angles[0],
        score_sin=angles[1],
        rotates_scoring=False,
        raw_pages=np.zeros((count, 1, layout.open_pages + layout.sink_pages), np.int32),
    )
