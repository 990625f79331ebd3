"""Single keys that the sessions of a group select and attend in the stores' memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.decode_keys import KeyLists, KeySelections, decode_keys
from moorage.kernels.decode_layer import Attended, LayerMemory, Selections, SessionBatch
from moorage.workers.gpu.engine.batch import DecodeStep, SessionGuard
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.selection.reuse import NO_BLOCKS, selects_keys, unselected
from moorage.workers.gpu.selection.selector import Selection
from moorage.workers.kv.host_memory import HostMemory
from moorage.workers.spec import AnchorSpace, ModelSpec

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class HostKeys:
    """Selections of single keys by sessions with the same axes; sinks and window are attended by blocks before."""

    def __init__(
        self, host: HostMemory, model: ModelSpec, sessions: Sequence[WorkerSession], lists: KeyLists
    ) -> None:
        """`lists` is memory that all groups of a worker may use, one after the other."""
        self._host, self._sessions, self._lists = host, list(sessions), lists
        layout, count = host.layout, len(sessions)
        self._most = sessions[0].memory.selection.topk_keys
        self._completes = sessions[0].memory.selection.completion
        # A session that may select all its keys attends everything, so that no more room is ever needed.
        room = min(self._most, max(session.max_tokens for session in sessions))
        self._is_rotated = layout.anchor_space is AnchorSpace.ROTATED
        self._selects = np.zeros((layout.num_layers, count), np.uint8)
        self._positions = np.full((count, layout.num_kv_heads, room), -1, np.int32)
        """Positions in the latest layer, as is the next."""
        self._lse = np.zeros((count, model.num_heads), np.float32)
        self._window_first = np.zeros((layout.num_layers, count), np.int32)
        self._turns: dict[int, tuple[NDArray[np.complex128], Float32, Float32]] = {}
        self._num_candidates = np.zeros(count, np.int64)
        self._is_checked = False
        """Whether a layer of this step has had its arrays checked, which are of one shape in all layers."""
        none = np.zeros((count, 1, 0), np.int32)
        self._blocks = [
            Selections(np.zeros(count, np.uint8), none, np.zeros(none.shape, np.float32), first)
            for first in self._window_first
        ]

    def prepare(self, steps: Sequence[DecodeStep], guard: SessionGuard) -> None:
        """Plans a step: which sessions select in which layers."""
        self._is_checked = False
        dense = self._sessions[0].memory.selection.dense_layers
        for row, step in enumerate(steps):
            ranges = step.ranges
            self._selects[:, row] = selects_keys(step, dense)
            self._selects[:dense, row] = 0
            self._num_candidates[row] = ranges.num_candidates
            self._window_first[:, row] = np.where(self._selects[:, row], ranges.near_block, ranges.num_sinks)
            if self._selects[:, row].any():
                guard.run(step.session, lambda session=step.session: self._host.confirm(session.session_id))  # type: ignore[misc]

    def of_layer(self, layer: int) -> Selections:
        """The blocks that are attended in one layer."""
        return self._blocks[layer]

    def attend(
        self, layer: int, memory: LayerMemory, batch: SessionBatch, query: Float32, attended: Attended
    ) -> None:
        """Adds the selected keys of one layer to what was `attended` of its blocks."""
        if not self._selects[layer].any():
            return
        base_turns, offset_turns = self._turns_of(batch)
        keys = KeySelections(
            self._selects[layer],
            self._positions,
            self._lse,
            self._is_rotated,
            base_turns,
            offset_turns,
            self._completes,
        )
        decode_keys(memory, batch, query, keys, attended, self._lists, is_checked=self._is_checked)
        self._is_checked = True

    def _turns_of(self, batch: SessionBatch) -> tuple[Float32, Float32]:
        """(base_turns, offset_turns) of KeySelections; made anew where the bases have grown."""
        known = self._turns.get(id(batch.offset_cos))
        if known is None or known[0] is not batch.bases:
            bases = np.stack([batch.bases.real, batch.bases.imag], axis=1).astype(np.float32)
            offsets = np.stack([batch.offset_cos, batch.offset_sin], axis=1)
            known = batch.bases, bases, offsets
            self._turns[id(batch.offset_cos)] = known
        return known[1:]

    def selected(self, layer: int, row: int, step: DecodeStep) -> Selection:
        """The blocks that one session attends in a layer beside sinks and window: none, or all."""
        return NO_BLOCKS if self._selects[layer, row] else unselected(step)

    def keys(self, layer: int, row: int) -> tuple[Int32, Float32] | None:
        """(positions [Hkv, k], log-sum-exp [Hq] of the attended keys) of a session in the latest layer.

        None where it selected no single key.
        """
        return (self._positions[row], self._lse[row]) if self._selects[layer, row] else None

    def finish(self) -> None:
        """Counts what was attended."""
        num_layers = len(self._selects)
        for row, session in enumerate(self._sessions):
            selecting = int(self._selects[:, row].sum())
            session.stats.num_keys += selecting * self._most
            session.stats.num_selected += (num_layers - selecting) * int(self._num_candidates[row])
            session.stats.num_selections += num_layers
