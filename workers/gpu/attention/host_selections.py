"""What the sessions of a compiled call attend in each layer: selected by the call itself, or given to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.decode_layer import Choices
from moorage.workers.gpu.engine.batch import DecodeStep, SessionGuard
from moorage.workers.gpu.engine.session_state import LayerSelections, WorkerSession
from moorage.workers.gpu.selection.selector import Selection
from moorage.workers.kv.host_memory import HostCodes, HostMemory
from moorage.workers.spec import ModelSpec

Int32 = NDArray[np.int32]
NEVER = -1
"""Decode step of a selection that was never made."""


class CompiledSelections:
    """Selections that the compiled call makes, of sessions with the same axes.

    Which layers select in a step, and which use a selection again, is planned for all layers before the first.
    """

    def __init__(self, host: HostMemory, model: ModelSpec, sessions: Sequence[WorkerSession]) -> None:
        self._host, self._sessions = host, list(sessions)
        layout, axes, count = host.layout, sessions[0].memory.selection, len(sessions)
        self._axes, self._topk = axes, axes.topk or 0
        num_choices = axes.head_select_mode.num_choices(model.num_heads, model.num_kv_heads)
        shape = count, num_choices if self._topk else 1, self._topk
        by_layer = layout.num_layers, count
        self._ids = np.full((layout.num_layers, *shape), -1, np.int32)
        self._window_first, self._makes = np.zeros(by_layer, np.int32), np.zeros(by_layer, np.uint8)
        self._made_at = np.full(by_layer, NEVER, np.int64)
        self._some = np.zeros(by_layer, np.bool_)
        num_links = len(host.layers[0].kv)
        size = layout.num_kv_heads * layout.anchor_vectors * layout.head_dim if layout.anchor_codes else 0
        self._steps = np.zeros((*by_layer, num_links, size), np.float32)
        self._kept = np.zeros((*by_layer, num_links), np.int32)
        self._codes: list[HostCodes | None] = [None] * count
        self._leader = [self._leader_of(layer) for layer in range(layout.num_layers)]
        scores = np.empty(shape, np.float32)
        none = np.zeros(count, np.uint8)
        self._choices = [
            Choices(
                self._makes[layer] if leader == layer else none, self._ids[leader], scores,
                self._window_first[leader], self._steps[leader], self._kept[leader],
            )
            for layer, leader in enumerate(self._leader)
        ]  # fmt: skip
        self._mine = [
            LayerSelections(self._ids[:, row], self._window_first[:, row], self._made_at[:, row])
            for row in range(count)
        ]

    def _leader_of(self, layer: int) -> int:
        """The layer whose selection `layer` uses: itself, or the one before that `layer_step` says."""
        after = layer - self._axes.dense_layers
        return layer - after % self._axes.layer_step if after >= 0 else layer

    def prepare(self, steps: Sequence[DecodeStep], guard: SessionGuard) -> None:
        """Plans a step."""
        axes = self._axes
        self._adopt()
        sinks = np.array([step.ranges.num_sinks for step in steps], np.int32)
        near = np.array([step.ranges.near_block for step in steps], np.int32)
        self._index = np.array([step.session.decode_index for step in steps], np.int64)
        self._near, self._candidates = near, near - sinks
        held = np.array([step.session.num_tokens for step in steps])
        some = (self._topk > 0) & (self._candidates > self._topk) & (held >= axes.dense_until)
        self._some[:] = some
        self._some[: axes.dense_layers] = False
        none = ~self._some
        self._ids[none], self._made_at[none] = -1, NEVER
        self._window_first[none] = np.broadcast_to(near if axes.topk == 0 else sinks, none.shape)[none]
        old = self._index - self._made_at >= axes.token_step
        self._makes[:] = self._some & (old | (self._made_at == NEVER))
        if self._makes.any():
            for row, step in enumerate(steps):
                guard.run(step.session, lambda row=row: self._read_codes(row))  # type: ignore[misc]

    def _adopt(self) -> None:
        """Takes over what the sessions have selected; from now on their selections lie in these arrays."""
        for session, mine in zip(self._sessions, self._mine, strict=True):
            held = session.layer_selections
            if held is mine:
                continue
            mine.made_at[:] = NEVER
            if held is not None and held.ids.shape == mine.ids.shape:
                mine.ids[:], mine.window_first[:], mine.made_at[:] = held.ids, held.window_first, held.made_at
            session.layer_selections = mine

    def _read_codes(self, row: int) -> None:
        found = self._host.codes(self._sessions[row].session_id, self._topk)
        if found is not self._codes[row]:
            self._codes[row] = found
            self._steps[:, row], self._kept[:, row] = found.steps, found.num_kept

    def choices(self, layer: int) -> Choices:
        """Of one layer."""
        return self._choices[layer]

    def selected(self, layer: int, row: int) -> Selection:
        """What one session attends in a layer that was attended, with the blocks that left the window since."""
        leader = self._leader[layer]
        if not self._some[leader, row]:
            return None if self._axes.topk != 0 else np.empty((1, 0), np.int32)
        ids = self._ids[leader, row].copy()
        aged = np.arange(self._window_first[leader, row], self._near[row], dtype=np.int32)
        return np.concatenate((np.tile(aged, (len(ids), 1)), ids), axis=1) if len(aged) else ids

    def finish(self) -> None:
        """Records when selections were made, and how many blocks were attended."""
        makes = self._makes.view(np.bool_)
        self._made_at[makes] = np.broadcast_to(self._index, makes.shape)[makes]
        leaders = self._leader
        everything = np.zeros_like(self._candidates) if self._axes.topk == 0 else self._candidates
        some = self._topk + self._near - self._window_first[leaders]
        counts = np.where(self._some[leaders], some, everything).sum(axis=0)
        for session, count in zip(self._sessions, counts.tolist(), strict=True):
            session.stats.num_chosen += count
            session.stats.num_choices += len(leaders)


def given_choices(steps: Sequence[DecodeStep], selected: Sequence[Selection], num_links: int) -> Choices:
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
            step.session.stats.add_choice(step.ranges.num_candidates)
            continue
        ids[row, :, : found.shape[1]] = found
        window_first[row] = step.ranges.near_block
        step.session.stats.add_choice(found.shape[1])
    return Choices(
        np.zeros(count, np.uint8), ids, np.empty(ids.shape, np.float32), window_first,
        np.zeros((count, num_links, 0), np.float32), np.zeros((count, num_links), np.int32),
    )  # fmt: skip
