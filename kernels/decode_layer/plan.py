"""Which layers of a step select, and how many blocks they attend: planned for all layers and sessions at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]

NEVER = -1
"""Step of a selection that was never made."""


class Policy(NamedTuple):
    """When layers select."""

    budget: int
    """Blocks of a selection; 0 selects never."""
    attends_none: bool
    """Whether a layer without a selection attends no candidate; otherwise it attends all of them."""
    dense_layers: int
    """First layers, which never select."""
    layer_step: int
    """Layers that share one selection."""
    token_step: int
    """Steps that share one selection."""


class SelectionState(NamedTuple):
    """The selections of N sessions in L layers, as they are between steps."""

    ids: Int32
    """[L, N, S, k]"""
    window_first: Int32
    """[L, N]: first block that is attended because it was in the window when the selection was made."""
    made_at: Int64
    """[L, N]: the step of the selection, or NEVER."""
    selects: UInt8
    """[L, N], written by `plan_layers`: 1 selects in this step."""
    is_partial: UInt8
    """[L, N], written by `plan_layers`: 1 attends a selection, 0 all candidates or none."""


class Standing(NamedTuple):
    """Where N sessions stand in a step."""

    step: Int64
    """[N]: decode steps before this one."""
    may_select: UInt8
    """[N]: 0 where no layer selects in this step."""
    num_sinks: Int32
    """[N]: first candidate."""
    near_block: Int32
    """[N]: end of the candidates."""


@njit(**SERIAL)
def plan_layers(selections: Any, standing: Any, policy: Any) -> Any:
    """Fills in `selects` and `is_partial`, and clears selections where there is none now; whether any layer selects.

    Layer i uses the selection of the last layer before it, itself included, whose number after the dense ones divides
    by `layer_step`.
    """
    found = False
    for layer in range(len(selections.made_at)):
        leads = layer >= policy.dense_layers and (layer - policy.dense_layers) % policy.layer_step == 0
        for i in range(len(standing.step)):
            sinks, near = standing.num_sinks[i], standing.near_block[i]
            partial = layer >= policy.dense_layers and 0 < policy.budget < near - sinks
            partial = partial and standing.may_select[i]
            selections.is_partial[layer, i], selections.selects[layer, i] = partial, 0
            if not partial:
                selections.window_first[layer, i] = near if policy.attends_none else sinks
                selections.made_at[layer, i] = NEVER
                selections.ids[layer, i] = -1
                continue
            made_at = selections.made_at[layer, i]
            if leads and (made_at == NEVER or standing.step[i] - made_at >= policy.token_step):
                selections.selects[layer, i] = 1
                found = True
    return found


@njit(**SERIAL)
def end_step(selections: Any, standing: Any, policy: Any, counts: Any) -> None:
    """Records when selections were made; counts [N] becomes the candidates that all layers attended together."""
    counts[:] = 0
    for layer in range(len(selections.made_at)):
        after = max(0, layer - policy.dense_layers)
        leader = layer - after % policy.layer_step
        for i in range(len(standing.step)):
            if selections.selects[layer, i]:
                selections.made_at[layer, i] = standing.step[i]
            near = standing.near_block[i]
            if selections.is_partial[layer, i]:
                counts[i] += policy.budget + near - selections.window_first[leader, i]
            elif not policy.attends_none:
                counts[i] += near - standing.num_sinks[i]
