"""Generated tokens in sliding-window layers: what both devices share, and the form for a CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.decode_layer import (
    MAX_PARTS,
    Attended,
    LayerMemory,
    LayerShape,
    Selections,
    SessionBatch,
    decode_layer,
)
from moorage.kernels.rotation import rotate_each
from moorage.workers.gpu.attention.sinks import AttentionSinks
from moorage.workers.gpu.attention.window_rings import Ring, WindowKind, WindowRings
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep, SessionGuard
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.transfer.copy_engine import as_storage_array
from moorage.workers.kv.rows import beyond_storage
from moorage.workers.spec import RING_BLOCK, KvType, ModelSpec

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

MetadataT = TypeVar("MetadataT")

MOST_GROUPS = 32
"""Compositions of sessions whose arrays are kept for the next step."""


def ring_of(step: DecodeStep) -> Ring:
    """The ring of a step's session."""
    ring = step.session.ring
    assert ring is not None
    return ring


def cos_sin_of(steps: Sequence[DecodeStep], kind: int) -> tuple[Float32, Float32]:
    """(cos, sin), each [N, rotary_dim / 2], of the sessions' positions in layers of a kind."""
    positions = np.array([step.ranges.position for step in steps], np.float64)
    inv_freq = np.stack([ring_of(step).views[kind].inv_freq.numpy() for step in steps])
    angles = positions[:, None] * inv_freq
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def first_seen(position: int, kind: WindowKind) -> int:
    """The first token that the query at `position` attends."""
    return max(0, position - kind.window + 1)


class WindowDecode(ABC, Generic[MetadataT]):
    """A backend of generated tokens whose layers are window layers."""

    def __init__(self, rings: WindowRings, model: ModelSpec, sinks: AttentionSinks, timer: PartTimer) -> None:
        self._rings, self._layers, self._sinks, self._timer = rings, rings.layers_of, sinks, timer
        self._num_heads, self._head_dim = model.num_heads, model.head_dim
        self._softcap = model.attention_softcap or 0.0
        self._scale = model.softmax_scale

    def scale_of(self, ring: Ring, kind: int) -> float:
        """Factor on the logits of a session in layers of a kind."""
        return self._scale * ring.views[kind].attention_scale ** 2

    @abstractmethod
    def prepare(self, batch: DecodeBatch) -> MetadataT:
        """See AttentionBackend."""

    @abstractmethod
    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: MetadataT
    ) -> torch.Tensor:
        """See AttentionBackend; `layer` counts window layers."""

    def finish(self, metadata: MetadataT) -> None:
        """Nothing is left open."""

    def commit(self, batch: DecodeBatch) -> None:
        """Records that the rows of a step are written."""
        for step in batch.live():
            self._rings.advance(ring_of(step), step.ranges.position + 1)


@dataclass(slots=True)
class HostWindowTurn:
    """One position of each of some sessions, on a CPU."""

    steps: list[DecodeStep]
    group: HostWindowGroup
    cos_sin: list[tuple[Float32, Float32]]
    """(cos, sin) by kind of layers."""


@dataclass(slots=True)
class HostWindowStep:
    """What the layers of one step share, on a CPU."""

    batch: DecodeBatch
    turns: list[HostWindowTurn]
    """The i-th has the i-th position of each session that has so many."""


class HostWindowGroup:
    """Arrays of the compiled call for some sessions, which are used again in each step."""

    def __init__(
        self, sessions: Sequence[WorkerSession], rings: list[Ring], decode: HostWindowDecode
    ) -> None:
        self._sessions = list(sessions)
        count, heads, dim = len(rings), decode.num_heads, decode.head_dim
        self.output = Attended(
            np.zeros((count, heads, dim), np.float32),
            np.zeros((count, heads), np.float32),
            np.zeros(count, np.int32),
        )
        self.batches = [decode.empty_batch(rings, kind) for kind in range(len(decode.kinds))]
        self.selections = [_nothing_selected(count) for _ in decode.kinds]
        self.checked = [False] * len(decode.kinds)
        """Whether the arrays of each kind were found to fit."""

    def serves(self, sessions: Sequence[WorkerSession]) -> bool:
        """Whether these are the same sessions."""
        return all(mine is other for mine, other in zip(self._sessions, sessions, strict=True))


class HostWindowDecode(WindowDecode[HostWindowStep]):
    """One compiled call a layer for all sessions writes the new rows and attends the windows.

    It is the call that attends stored blocks. Positions within a ring take the place of positions in a session: the
    pages of a ring stand twice in its table, so that a window that begins before the ring's start is one range.
    """

    def __init__(self, rings: WindowRings, model: ModelSpec, sinks: AttentionSinks, timer: PartTimer) -> None:
        super().__init__(rings, model, sinks, timer)
        self.num_heads, self.head_dim, self.kinds = model.num_heads, model.head_dim, rings.layers_of.kinds
        shape = LayerShape(model.num_kv_heads, RING_BLOCK, model.head_dim, 1, bounds=False)
        self._memory = []
        for layer in rings.layers:
            rows = as_storage_array(layer)
            anchors = np.zeros((len(rows), model.num_kv_heads, 0, model.head_dim), rows.dtype)
            self._memory.append(
                LayerMemory.of(shape, (rows,), (anchors,), (np.zeros((len(rows), 0), np.uint8),))
            )
        self._groups: OrderedDict[tuple[int, ...], HostWindowGroup] = OrderedDict()

    def prepare(self, batch: DecodeBatch) -> HostWindowStep:
        """See AttentionBackend."""
        turns: list[list[DecodeStep]] = []
        seen: Counter[int] = Counter()
        for step in batch.steps:
            turn = seen[step.session.session_id]
            seen[step.session.session_id] += 1
            if turn == len(turns):
                turns.append([])
            turns[turn].append(step)
        return HostWindowStep(batch, [self._turn(at, steps) for at, steps in enumerate(turns)])

    def _turn(self, number: int, steps: list[DecodeStep]) -> HostWindowTurn:
        group = self._group(number, [step.session for step in steps], [ring_of(step) for step in steps])
        length = self._rings.layout.num_blocks * RING_BLOCK
        for kind, arrays, selections in zip(self.kinds, group.batches, group.selections, strict=True):
            for row, step in enumerate(steps):
                position = step.ranges.position
                seen = position - first_seen(position, kind)
                # Of the two places of a ring's row the later one, where there are rows before it.
                at = position if position < length else length + position % length
                arrays.position[row] = at
                arrays.part_low[row, 0], arrays.part_high[row, 0] = at - seen, at + 1
                arrays.near_block[row] = selections.window_first[row] = (at - seen) // RING_BLOCK
        return HostWindowTurn(steps, group, [cos_sin_of(steps, kind) for kind in range(len(self.kinds))])

    def _group(self, turn: int, sessions: list[WorkerSession], rings: list[Ring]) -> HostWindowGroup:
        # Each turn has arrays of its own, also where it is of the same sessions.
        key = (turn, *(session.session_id for session in sessions))
        group = self._groups.pop(key, None)
        if group is None or not group.serves(sessions):
            group = HostWindowGroup(sessions, rings, self)
        self._groups[key] = group
        if len(self._groups) > MOST_GROUPS:
            self._groups.popitem(last=False)
        return group

    def empty_batch(self, rings: list[Ring], kind: int) -> SessionBatch:
        """The arrays of a group in layers of a kind, before a step sets its positions."""
        count, num_blocks = len(rings), self._rings.layout.num_blocks
        pages = [np.tile(self._rings.pages(ring, np.arange(num_blocks)), 2) for ring in rings]
        starts = 2 * num_blocks * np.arange(count + 1, dtype=np.int64)
        no_turn, scores = np.zeros((RING_BLOCK, 0), np.float32), np.zeros((count, 0), np.float32)
        return SessionBatch(
            position=np.zeros(count, np.int64),
            pages=np.concatenate(pages).astype(np.int32),
            page_start=np.stack((starts[:-1], starts[1:]), axis=1),
            first_memory=np.zeros(count, np.int32),
            num_sinks=np.zeros(count, np.int32),
            near_block=np.zeros(count, np.int32),
            scale=np.array([self.scale_of(ring, kind) for ring in rings], np.float32),
            softcap=np.full(count, self._softcap, np.float32),
            num_parts=np.ones(count, np.int32),
            part_low=np.zeros((count, MAX_PARTS), np.int64),
            part_high=np.zeros((count, MAX_PARTS), np.int64),
            part_rotates=np.zeros((count, MAX_PARTS), np.uint8),
            query_turn=np.zeros((count, MAX_PARTS, 0), np.complex128),
            period=0,
            bases=np.zeros((1, 0), np.complex128),
            offset_cos=no_turn,
            offset_sin=no_turn,
            score_cos=scores,
            score_sin=scores,
            rotates_scoring=False,
        )

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: HostWindowStep
    ) -> torch.Tensor:
        """See AttentionBackend."""
        guard = metadata.batch.guard
        if len(metadata.turns) == 1:
            return self._attend(layer, metadata.turns[0], (q, k, v), guard)
        out = torch.zeros(q.shape)
        for turn in metadata.turns:
            rows = [step.row for step in turn.steps]
            out[rows] = self._attend(layer, turn, (q[rows], k[rows], v[rows]), guard)
        return out

    def _attend(
        self, layer: int, turn: HostWindowTurn, heads: tuple[torch.Tensor, ...], guard: SessionGuard
    ) -> torch.Tensor:
        """[n, Hq, D] in fp32, overwritten by the next call."""
        group, kind, (q, k, v) = turn.group, self._layers.kind_of[layer], heads
        cos, sin = turn.cos_sin[kind]
        with self._timer("attend"):
            num_failed = decode_layer(
                self._memory[layer],
                group.batches[kind],
                rotate_each(_array(q), cos, sin),
                rotate_each(_array(k), cos, sin),
                _array(v),
                group.selections[kind],
                group.output,
                is_checked=group.checked[kind],
            )
        group.checked[kind] = True
        if num_failed:
            self._record_failures(layer, k, v, turn, guard)
        output = group.output
        return self._sinks.weigh(layer, torch.from_numpy(output.out), torch.from_numpy(output.lse))

    def _record_failures(
        self, layer: int, k: torch.Tensor, v: torch.Tensor, turn: HostWindowTurn, guard: SessionGuard
    ) -> None:
        for row in np.flatnonzero(turn.group.output.failed):
            finite = bool(torch.isfinite(k[row]).all() and torch.isfinite(v[row]).all())
            error = beyond_storage(layer, KvType.FP16 if finite else KvType.FP32)
            guard.failed.setdefault(turn.steps[row].session.session_id, error)


def _nothing_selected(count: int) -> Selections:
    none = np.zeros((count, 1, 0), np.int32)
    return Selections(
        np.zeros(count, np.uint8), none, np.zeros((count, 1, 0), np.float32), np.zeros(count, np.int32)
    )


def _array(tensor: torch.Tensor) -> Float32:
    array: Float32 = tensor.float().contiguous().numpy()
    return array
