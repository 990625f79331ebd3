"""Which layers of a step choose, and how many blocks they attend: planned for all layers and sessions at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from moorage.kernels.numba_flags import SERIAL

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]

NEVER = -1
"""Step of a choice that was never made."""


class Policy(NamedTuple):
    """When layers choose."""

    budget: int
    """Blocks of a choice; 0 chooses never."""
    attends_none: bool
    """Whether a layer without a choice attends no candidate; otherwise it attends all of them."""
    dense_layers: int
    """First layers, which never choose."""
    layer_step: int
    """Layers that share one choice."""
    token_step: int
    """Steps that share one choice."""


class LayerChoices(NamedTuple):
    """The choices of N sessions in L layers, as they are between steps."""

    ids: Int32
    """[L, N, S, k]"""
    window_first: Int32
    """[L, N]: first block that is attended because it was in the window when the choice was made."""
    made_at: Int64
    """[L, N]: the step of the choice, or NEVER."""
    chooses: UInt8
    """[L, N], written by `plan_layers`: 1 chooses in this step."""
    is_partial: UInt8
    """[L, N], written by `plan_layers`: 1 attends a choice, 0 all candidates or none."""


class Standing(NamedTuple):
    """Where N sessions stand in a step."""

    step: Int64
    """[N]: decode steps before this one."""
    may_choose: UInt8
    """[N]: 0 where no layer chooses in this step."""
    num_sinks: Int32
    """[N]: first candidate."""
    near_block: Int32
    """[N]: end of the candidates."""


@njit(**SERIAL)
def plan_layers(choices: Any, standing: Any, policy: Any) -> Any:
    """Fills in `chooses` and `is_partial`, and clears choices where there is none now; whether any layer chooses.

    Layer i uses the choice of the last layer before it, itself included, whose number after the dense ones divides
    by `layer_step`.
    """
    found = False
    for layer in range(len(choices.made_at)):
        leads = layer >= policy.dense_layers and (layer - policy.dense_layers) % policy.layer_step == 0
        for i in range(len(standing.step)):
            sinks, near = standing.num_sinks[i], standing.near_block[i]
            partial = layer >= policy.dense_layers and 0 < policy.budget < near - sinks
            partial = partial and standing.may_choose[i]
            choices.is_partial[layer, i], choices.chooses[layer, i] = partial, 0
            if not partial:
                choices.window_first[layer, i] = near if policy.attends_none else sinks
                choices.made_at[layer, i] = NEVER
                choices.ids[layer, i] = -1
                continue
            made_at = choices.made_at[layer, i]
            if leads and (made_at == NEVER or standing.step[i] - made_at >= policy.token_step):
                choices.chooses[layer, i] = 1
                found = True
    return found


@njit(**SERIAL)
def end_step(choices: Any, standing: Any, policy: Any, counts: Any) -> None:
    """Records when choices were made; counts [N] becomes the candidates that all layers attended together."""
    counts[:] = 0
    for layer in range(len(choices.made_at)):
        after = max(0, layer - policy.dense_layers)
        leader = layer - after % policy.layer_step
        for i in range(len(standing.step)):
            if choices.chooses[layer, i]:
                choices.made_at[layer, i] = standing.step[i]
            near = standing.near_block[i]
            if choices.is_partial[layer, i]:
                counts[i] += policy.budget + near - choices.window_first[leader, i]
            elif not policy.attends_none:
                counts[i] += near - standing.num_sinks[i]
