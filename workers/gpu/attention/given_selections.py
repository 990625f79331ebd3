"""Selections that a compiled call is given, and which sessions need them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moorage.kernels.decode_layer import Selections
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.selection.selector import Selection
from moorage.workers.spec import HeadPool, HeadSelectMode, KvLayout, MemorySpec, Preselect, Scorer


def selects_compiled(layout: KvLayout, memory: MemorySpec) -> bool:
    """Whether the compiled call selects for sessions with these axes: by one sum of products for each block."""
    axes = memory.selection
    if not axes.topk:
        return True
    one_pass = axes.preselect is Preselect.OFF and layout.scorer is Scorer.NUMBA
    shared = axes.head_select_mode is not HeadSelectMode.PERHEAD
    return one_pass and shared and layout.anchor_num == 1 and axes.head_pool is HeadPool.SUM


def given_selections(steps: Sequence[DecodeStep], selected: Sequence[Selection]) -> Selections:
    """What a `BlockSelector` selected for one layer, which the compiled call attends as it is.

    Selections [S, k] of the sessions may differ in k.
    """
    count = len(steps)
    width = max((ids.shape[1] for ids in selected if ids is not None), default=0)
    rows = max((len(ids) for ids in selected if ids is not None), default=1)
    ids, window_first = np.full((count, rows, width), -1, np.int32), np.zeros(count, np.int32)
    for row, (step, found) in enumerate(zip(steps, selected, strict=True)):
        if found is None:
            window_first[row] = step.ranges.num_sinks
            step.session.stats.add_selection(step.ranges.num_candidates)
            continue
        ids[row, :, : found.shape[1]] = found
        window_first[row] = step.ranges.near_block
        step.session.stats.add_selection(found.shape[1])
    return Selections(np.zeros(count, np.uint8), ids, np.empty(ids.shape, np.float32), window_first)
