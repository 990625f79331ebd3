"""What the sessions of a compiled call attend in each layer where the call itself selects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.decode_layer import Selections
from moorage.kernels.decode_layer.plan import NEVER, Policy, SelectionState, Standing, end_step, plan_layers
from moorage.workers.gpu.engine.batch import DecodeStep, SessionGuard
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.selection.reuse import selects_in_step, unselected, with_aged_blocks
from moorage.workers.gpu.selection.selection_records import LayerSelections
from moorage.workers.gpu.selection.selector import Selection
from moorage.workers.kv.host_memory import HostMemory
from moorage.workers.spec import ModelSpec

Int32 = NDArray[np.int32]


class CompiledSelections:
    """Selections that the compiled call makes, of sessions with the same axes.

    Which layers select in a step, and which use a selection again, is planned for all layers before the first.
    """

    def __init__(self, host: HostMemory, model: ModelSpec, sessions: Sequence[WorkerSession]) -> None:
        self._host, self._sessions = host, list(sessions)
        layout, axes, count = host.layout, sessions[0].memory.selection, len(sessions)
        self._policy = Policy(
            axes.topk or 0,
            axes.topk == 0,
            axes.dense_layers,
            axes.layer_step,
            axes.token_step,
        )
        num_selections = axes.head_select_mode.num_selections(model.num_heads, model.num_kv_heads)
        shape = count, num_selections if axes.topk else 1, self._policy.budget
        by_layer = layout.num_layers, count
        self._held = SelectionState(
            np.full((layout.num_layers, *shape), -1, np.int32),
            np.zeros(by_layer, np.int32),
            np.full(by_layer, NEVER, np.int64),
            np.zeros(by_layer, np.uint8),
            np.zeros(by_layer, np.uint8),
        )
        self._standing = Standing(
            np.zeros(count, np.int64),
            np.zeros(count, np.uint8),
            np.zeros(count, np.int32),
            np.zeros(count, np.int32),
        )
        self._counts = np.zeros(count, np.int64)
        self._layers = self._of_layers(np.empty(shape, np.float32))
        self._mine = [
            LayerSelections(
                self._held.ids[:, row], self._held.window_first[:, row], self._held.made_at[:, row]
            )
            for row in range(count)
        ]

    def _of_layers(self, scores: NDArray[np.float32]) -> list[Selections]:
        """The arrays of each layer; one that shares a selection has those of the layer that makes it."""
        held, found = self._held, []
        for layer in range(len(held.made_at)):
            leader = self._leader(layer)
            found.append(Selections(held.selects[layer], held.ids[leader], scores, held.window_first[leader]))
        return found

    def _leader(self, layer: int) -> int:
        """The layer whose selection `layer` uses, see `plan_layers`."""
        return layer - max(0, layer - self._policy.dense_layers) % self._policy.layer_step

    def prepare(self, steps: Sequence[DecodeStep], guard: SessionGuard) -> None:
        """Plans a step."""
        standing = self._standing
        for row, (step, mine) in enumerate(zip(steps, self._mine, strict=True)):
            session, ranges = step.session, step.ranges
            if session.layer_selections is not mine:
                _adopt(session, mine)
            standing.step[row], standing.may_select[row] = session.decode_index, selects_in_step(step)
            standing.num_sinks[row], standing.near_block[row] = ranges.num_sinks, ranges.near_block
        if plan_layers(self._held, standing, self._policy):
            for step in steps:
                guard.run(step.session, partial(self._host.confirm, step.session.session_id))

    def of_layer(self, layer: int) -> Selections:
        """The selections of one layer."""
        return self._layers[layer]

    def selected(self, layer: int, row: int, step: DecodeStep) -> Selection:
        """What one session attends in a layer that was attended, with the blocks that left the window since."""
        if not self._held.is_partial[layer, row]:
            return unselected(step)
        leader = self._leader(layer)
        window_first = int(self._held.window_first[leader, row])
        return with_aged_blocks(self._held.ids[leader, row].copy(), window_first, step.ranges)

    def finish(self) -> None:
        """Records when selections were made, and how many blocks were attended."""
        end_step(self._held, self._standing, self._policy, self._counts)
        for session, count in zip(self._sessions, self._counts.tolist(), strict=True):
            session.stats.num_selected += count
            session.stats.num_selections += len(self._layers)


class AllBlocks:
    """What verified positions of one session attend: everything up to themselves."""

    def __init__(self, num_rows: int) -> None:
        none = np.zeros((num_rows, 1, 0), np.int32)
        self._selections = Selections(
            np.zeros(num_rows, np.uint8), none, np.zeros(none.shape, np.float32), np.zeros(num_rows, np.int32)
        )

    def prepare(self, steps: Sequence[DecodeStep], guard: SessionGuard) -> None:
        """Begins a step."""
        del guard
        self._selections.window_first[:] = [step.ranges.num_sinks for step in steps]

    def of_layer(self, layer: int) -> Selections:
        """The selections of one layer."""
        del layer
        return self._selections

    def selected(self, layer: int, row: int, step: DecodeStep) -> Selection:
        """See CompiledSelections."""
        del layer, row, step
        return None

    def finish(self) -> None:
        """Counts nothing: no selection was made."""


def _adopt(session: WorkerSession, mine: LayerSelections) -> None:
    """Takes over what a session has selected; from now on its selections lie in the arrays of `mine`."""
    held = session.layer_selections
    mine.made_at[:] = NEVER
    if held is not None and held.ids.shape == mine.ids.shape:
        mine.ids[:], mine.window_first[:], mine.made_at[:] = held.ids, held.window_first, held.made_at
    session.layer_selections = mine
