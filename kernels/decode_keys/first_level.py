"""The first level of long contexts: which blocks of a session are scanned at all, by the centres of their keys.

A pass over all codes of a million keys takes ten times what all else does. Many keys of many blocks can't be among
those selected: their centres are far from what the query asks for. Each KV head keeps a fixed number of blocks, those
of the best scores, so that what is scanned does not grow with the context.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.decode_keys.records import FirstLevel, Kept
from moorage.kernels.decode_keys.scan import num_candidates
from moorage.kernels.decode_layer.memory import CENTRES_AT, stripe_at
from moorage.kernels.decode_layer.records import FINE
from moorage.kernels.hadamard import turn_heads
from moorage.kernels.key_codes.centres import LARGEST
from moorage.kernels.key_codes.sizes import CENTRES
from moorage.kernels.key_select.centre_scores import AHEAD, BLOCKS, CENTRE_SCORES, CENTRE_SCORES_64
from moorage.kernels.key_select.filtering import about_reached, below, keep_best, list_above
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd_lanes import LANES

KEPT_BLOCKS = 8
"""Blocks that are scanned for each key that is selected."""
WORTH = 2
"""Times as many candidates make a first level worth more than it takes."""
RADIUS_SHARE = np.float32(0.25)
"""A key of a centre has a logit of at most that of the centre, and so much of what its radius allows. It allows
|query| * radius, which no key reaches where there are many channels."""
UNIT_BLOCKS = 4096
"""Blocks that one thread scores for all heads."""
TILE = 16
"""Times BLOCKS that are scored for one head after the other, so that their lines are read once."""
_SCORES_1, _SCORES_2, _SCORES_3, _SCORES_4 = CENTRE_SCORES
_OF_64_1, _OF_64_2, _OF_64_3, _OF_64_4 = CENTRE_SCORES_64
BYTES_64 = np.int64(32 * CENTRES)
"""Bytes of the codes of one head's centres with 64 channels."""
_MOST = np.float32(127)
"""The largest int8 of a query."""


@njit(**SERIAL)
def new_kept(table: Any, batch: Any, keys: Any, attended: Any) -> Any:
    """Kept, of which sessions have a first level: those that select, where there are centres and no mean stands for
    keys that are not selected."""
    count, heads, wanted = keys.positions.shape
    has, most, enough = np.zeros(count, np.bool_), np.int64(0), WORTH * KEPT_BLOCKS * wanted
    for i in range(count):
        selects = keys.selects[i] != 0 and attended.failed[i] == FINE and not keys.completes
        if selects and table[0, CENTRES_AT] != 0 and batch.near_block[i] - batch.num_sinks[i] > enough:
            has[i], most = True, np.int64(KEPT_BLOCKS * wanted)
    return Kept(has, np.empty((count * heads, most), np.int32), np.zeros(count * heads, np.int64))


@njit(**SERIAL)
def first_level(layer: Any, runs: Any, less: Any) -> Any:
    """The FirstLevel of the sessions that have one; `less` [N * Hkv, G] is what a score is relative to."""
    count, heads, dim = layer.query.shape
    units, most = np.zeros(count + 1, np.int64), np.int64(0)
    for i in range(count):
        total = num_candidates(i, layer) if layer.kept.has[i] else np.int64(0)
        units[i + 1], most = units[i] + -(-total // UNIT_BLOCKS), max(most, total)
    code_bytes = _code_bytes(dim)
    number = runs.queries.shape[1] if most else 0
    queries = np.zeros((count, number, heads, 2 * code_bytes), np.int8)
    terms = np.empty((count, number, heads, 3), np.float32)
    for i in range(count):
        for r in range(number):
            if units[i] < units[i + 1] and runs.bounds[i, r, 0] < runs.bounds[i, r, 1]:
                _repeat_queries(runs.queries[i, r], queries[i, r], terms[i, r])
    width = -(-most // LANES) * LANES if most else 0
    return FirstLevel(
        units, less, queries, terms, np.empty((count * layer.shape.num_kv_heads, width), np.float32)
    )


@njit(**INLINE)
def _code_bytes(dim: Any) -> Any:
    """Bytes of the codes of all centres of one head of a block."""
    return np.int64(-(-dim // 32) * 32 * CENTRES // 2)


@njit(**SERIAL)
def _repeat_queries(rows: Any, queries: Any, terms: Any) -> None:
    """queries [Hq, bytes] and terms [Hq, 3], as `CENTRE_SCORES` takes them, of scaled queries [Hq, D]."""
    turned = rows.copy()
    turn_heads(turned)
    for g in range(len(turned)):
        largest, squares, total = np.float32(0), np.float32(0), np.int64(0)
        for d in range(turned.shape[1]):
            largest = max(largest, abs(turned[g, d]))
            squares += turned[g, d] * turned[g, d]
        step = largest / _MOST if largest > 0 else np.float32(1)
        for d in range(turned.shape[1]):
            number = np.int64(np.rint(turned[g, d] / step))
            total += number
            place = d // 4 * 4 * CENTRES + d % 4
            for m in range(CENTRES):
                queries[g, place + 4 * m] = number
        terms[g, 0], terms[g, 1] = 2 * step, -step * np.float32(LARGEST * total)
        terms[g, 2] = RADIUS_SHARE * np.sqrt(squares)


@njit(**SERIAL)
def score_unit(unit: Any, layer: Any, runs: Any, first: Any) -> None:
    """Scores UNIT_BLOCKS blocks of a session for all its heads."""
    i = np.searchsorted(first.units, unit, side="right") - 1
    heads, sinks = np.int64(layer.shape.num_kv_heads), np.int64(layer.batch.num_sinks[i])
    begin = (unit - first.units[i]) * UNIT_BLOCKS
    end = min(num_candidates(i, layer), begin + UNIT_BLOCKS)
    first.scores[i * heads : (i + 1) * heads, begin:end] = -np.inf
    for r in range(runs.bounds.shape[1]):
        low, high = max(begin, runs.bounds[i, r, 0] - sinks), min(end, runs.bounds[i, r, 1] - sinks)
        if low >= high:
            continue
        places = _find_centres(i, sinks + low, high - low, layer)
        _score_run(i, r, low, high - low, layer, first, places)


@njit(**SERIAL)
def _find_centres(i: Any, block: Any, number: Any, layer: Any) -> Any:
    """The addresses of the centres of `number` blocks from `block` on, and behind them the last one again."""
    batch, shape, table = layer.batch, layer.shape, layer.table
    starts, first_memory, num_memories = batch.page_start[i], batch.first_memory[i], len(layer.table)
    pages, stripe = batch.pages, shape.stripe_blocks
    page_bytes = np.int64(shape.num_kv_heads) * (_code_bytes(shape.head_dim) + 4 * CENTRES)
    places = np.empty(number + BLOCKS + AHEAD, np.int64)
    done = np.int64(0)
    while done < number:
        m, at, count = stripe_at(block + done, starts, first_memory, num_memories, stripe, number - done)
        for b in range(count):
            places[done + b] = table[m, CENTRES_AT] + pages[at + b] * page_bytes
        done += count
    places[number:] = places[number - 1]
    return places


@njit(**SERIAL)
def _score_run(i: Any, r: Any, low: Any, number: Any, layer: Any, first: Any, places: Any) -> None:
    """Scores `number` blocks of a run, from candidate `low` on, whose centres lie at `places`."""
    # Whatever the loop reads is a name of its own, since each look into a named tuple counts references.
    heads, group = np.int64(layer.shape.num_kv_heads), np.int64(first.less.shape[1])
    code_bytes, whole, scores = _code_bytes(layer.shape.head_dim), number // BLOCKS, first.scores
    rest = np.empty(BLOCKS, np.float32)
    blocks, spare, row_bytes = places.ctypes.data, rest.ctypes.data, 4 * scores.shape[1]
    out = scores.ctypes.data + i * heads * row_bytes + 4 * low
    queries, terms = first.queries[i, r].ctypes.data, first.terms[i, r].ctypes.data
    less = first.less[i * heads].ctypes.data
    for tile in range(0, whole, TILE):
        count, at = min(TILE, whole - tile), tile * BLOCKS
        for head in range(heads):
            shift, before = head * (code_bytes + 4 * CENTRES), head * group
            query, term, other = queries + before * 2 * code_bytes, terms + 12 * before, less + 4 * before
            into = out + head * row_bytes + 4 * at
            _scores(group, blocks + 8 * at, count, shift, code_bytes, query, term, other, into)
    at = whole * BLOCKS
    for head in range(heads):
        shift, before = head * (code_bytes + 4 * CENTRES), head * group
        query, term, other = queries + before * 2 * code_bytes, terms + 12 * before, less + 4 * before
        # Behind the last scores lie those of another run or unit.
        if at < number:
            _scores(group, blocks + 8 * at, np.int64(1), shift, code_bytes, query, term, other, spare)
        for b in range(number - at):
            scores[i * heads + head, low + at + b] = rest[b]


@njit(**INLINE)
def _scores(
    group: Any,
    blocks: Any,
    count: Any,
    shift: Any,
    code_bytes: Any,
    query: Any,
    term: Any,
    less: Any,
    out: Any,
) -> None:
    """`CENTRE_SCORES` for any number of queries."""
    for done in range(0, group, 4):
        left, joins = group - done, done > 0
        own, terms, other = query + 2 * done * code_bytes, term + 12 * done, less + 4 * done
        if code_bytes == BYTES_64:
            if left >= 4:
                _OF_64_4(blocks, count, shift, code_bytes, own, terms, other, joins, out)
            elif left == 3:
                _OF_64_3(blocks, count, shift, code_bytes, own, terms, other, joins, out)
            elif left == 2:
                _OF_64_2(blocks, count, shift, code_bytes, own, terms, other, joins, out)
            else:
                _OF_64_1(blocks, count, shift, code_bytes, own, terms, other, joins, out)
        elif left >= 4:
            _SCORES_4(blocks, count, shift, code_bytes, own, terms, other, joins, out)
        elif left == 3:
            _SCORES_3(blocks, count, shift, code_bytes, own, terms, other, joins, out)
        elif left == 2:
            _SCORES_2(blocks, count, shift, code_bytes, own, terms, other, joins, out)
        else:
            _SCORES_1(blocks, count, shift, code_bytes, own, terms, other, joins, out)


@njit(**SERIAL)
def keep_blocks(at: Any, layer: Any, first: Any) -> None:
    """Lists the blocks of one session's head that have the best scores, ascending; of equal ones the first."""
    i, kept = at // layer.shape.num_kv_heads, layer.kept
    if not kept.has[i]:
        return
    total, most = num_candidates(i, layer), np.int64(kept.blocks.shape[1])
    scores, vectors = first.scores[at], -(-total // LANES)
    scores[total : vectors * LANES] = -np.inf
    least = about_reached(scores, total, most)
    ids, values = np.empty(total + LANES, np.int32), np.empty(total + LANES, np.float32)
    found = list_above(
        scores.ctypes.data, vectors, below(least) if least > -np.inf else least, np.int64(layer.batch.num_sinks[i]),
        ids.ctypes.data, values.ctypes.data,
    )  # fmt: skip
    number = keep_best(ids, values, found, most)
    kept.blocks[at, :number], kept.counts[at] = ids[:number], number
    kept.blocks[at, number:] = layer.batch.num_sinks[i]
