"""Which layers select at all, and selections that later layers and steps use again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moorage.workers.gpu.engine.batch import DecodeStep, SessionGuard
from moorage.workers.gpu.positions.rotary import BlockRanges
from moorage.workers.gpu.selection.queries import LayerQueries
from moorage.workers.gpu.selection.selection_records import SelectionRecord
from moorage.workers.gpu.selection.selector import BlockSelector, Selection

Int32 = NDArray[np.int32]


def selects_in_step(step: DecodeStep) -> bool:
    """Whether a session selects at all in a step; every backend of decode obeys it."""
    return not step.exact and step.ranges.position >= step.selection.dense_until


def selects(step: DecodeStep, layer: int) -> bool:
    """Whether a layer attends some of the candidates; otherwise it attends all of them, or with a topk of 0 none."""
    axes = step.selection
    if not axes.topk or layer < axes.dense_layers or step.ranges.num_candidates <= axes.topk:
        return False
    return selects_in_step(step)


def selects_keys(step: DecodeStep, layer: int) -> bool:
    """Whether a layer attends some single keys of the candidates; otherwise it attends all of them."""
    axes, ranges = step.selection, step.ranges
    if not axes.topk_keys or layer < axes.dense_layers:
        return False
    if ranges.num_candidates * step.session.rotations.block_size <= axes.topk_keys:
        return False
    return selects_in_step(step)


NO_BLOCKS = np.empty((1, 0), np.int32)
"""The selection of no block."""


def unselected(step: DecodeStep) -> Selection:
    """What a session attends where nothing is selected: all blocks, or none with a topk of 0."""
    return NO_BLOCKS if step.selection.topk == 0 and not step.exact else None


def with_aged_blocks(ids: Int32, window_first: int, ranges: BlockRanges) -> Int32:
    """The `ids` [S, k] of an earlier step, and the blocks from `window_first` on that have left the window since.

    Those come first, since ids may be padded at their end.
    """
    if window_first == ranges.near_block:
        return ids
    aged = np.arange(window_first, ranges.near_block, dtype=np.int32)
    return np.concatenate((np.tile(aged, (len(ids), 1)), ids), axis=1)


class SelectiveLayers:
    """Gives None where a session attends all blocks of a layer, and asks `inner` elsewhere."""

    def __init__(self, inner: BlockSelector) -> None:
        self._inner = inner

    def select(
        self, layer: int, queries: LayerQueries, steps: Sequence[DecodeStep], guard: SessionGuard
    ) -> list[Selection]:
        """See BlockSelector."""
        return among(self._inner, layer, queries, steps, guard, [selects(step, layer) for step in steps])


class ReusePrevious:
    """Uses a selection again over `layer_step` layers and `token_step` steps."""

    def __init__(self, inner: BlockSelector) -> None:
        self._inner = inner

    def select(
        self, layer: int, queries: LayerQueries, steps: Sequence[DecodeStep], guard: SessionGuard
    ) -> list[Selection]:
        """See BlockSelector."""
        kept = [_kept(step, layer) for step in steps]
        found = among(self._inner, layer, queries, steps, guard, [selection is None for selection in kept])
        for i, (step, selection) in enumerate(zip(steps, kept, strict=True)):
            ids = found[i]
            if selection is not None:
                found[i] = with_aged_blocks(selection.ids, selection.near_block, step.ranges)
            elif ids is not None:
                session = step.session
                session.selections[layer] = SelectionRecord(ids, session.decode_index, step.ranges.near_block)
        return found


def _kept(step: DecodeStep, layer: int) -> SelectionRecord | None:
    """The selection that `layer_step` and `token_step` say to use again, if there is one."""
    axes, session = step.selection, step.session
    offset = (layer - axes.dense_layers) % axes.layer_step
    kept = session.selections.get(layer - offset)
    if kept is None:
        return None
    if offset:
        session.selections[layer] = kept
        return kept
    return kept if session.decode_index - kept.decode_step < axes.token_step else None


def among(
    inner: BlockSelector,
    layer: int,
    queries: LayerQueries,
    steps: Sequence[DecodeStep],
    guard: SessionGuard,
    asks: list[bool],
) -> list[Selection]:
    """Selections of those steps that ask `inner`; of the others, what they attend without a selection."""
    if all(asks):
        return inner.select(layer, queries, steps, guard)
    asking = [step for step, asked in zip(steps, asks, strict=True) if asked]
    answers = iter(inner.select(layer, queries, asking, guard) if asking else ())
    return [next(answers) if asked else unselected(step) for step, asked in zip(steps, asks, strict=True)]
