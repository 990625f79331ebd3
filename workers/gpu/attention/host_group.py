"""Sessions that one compiled call serves, and their part of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from moorage.kernels.decode_keys import KeyLists
from moorage.kernels.decode_layer import Attended as Output
from moorage.kernels.decode_layer import SessionBatch
from moorage.workers.gpu.attention.attended import Attended
from moorage.workers.gpu.attention.host_geometry import HostGeometry
from moorage.workers.gpu.attention.host_keys import HostKeys
from moorage.workers.gpu.attention.host_selections import AllBlocks, CompiledSelections
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep
from moorage.workers.gpu.selection.queries import LayerQueries
from moorage.workers.gpu.selection.selector import Selection
from moorage.workers.kv.host_memory import HostMemory
from moorage.workers.spec import ModelSpec


class HostGroup:
    """Sessions with the same axes and the same rotary cache, which one call serves."""

    def __init__(
        self,
        host: HostMemory,
        model: ModelSpec,
        steps: Sequence[DecodeStep],
        compiled: bool,
        lists: KeyLists,
    ) -> None:
        """`compiled` has the call select blocks; else it is given what a selector selects.

        Single keys are always selected by a compiled call, which works in `lists`. Steps that are exact are of one
        session, and attend everything.
        """
        self._sessions = [step.session for step in steps]
        self._memory, self._rotary = self._sessions[0].memory, self._sessions[0].rotations
        first, layers = self._sessions[0], range(host.layout.num_layers)
        leader = {
            layer: next(at for at in layers if first.rotations_of(at) is first.rotations_of(layer))
            for layer in layers
        }
        self._geometries = {
            at: HostGeometry(host, self._sessions, at) for at in dict.fromkeys(leader.values())
        }
        self._leader = tuple(leader.values())
        self.is_exact = steps[0].exact
        self.selections: CompiledSelections | HostKeys | AllBlocks | None = None
        if self.is_exact:
            self.selections = AllBlocks(len(steps))
        elif self._memory.selection.topk_keys:
            self.selections = HostKeys(host, model, self._sessions, lists)
        elif compiled:
            self.selections = CompiledSelections(host, model, self._sessions)
        self.is_checked = False
        """Whether its arrays were found to fit the stores' memory."""
        count, heads = len(steps), model.num_heads
        self.output = Output(
            np.zeros((count, heads, model.head_dim), np.float32),
            np.zeros((count, heads), np.float32),
            np.zeros(count, np.int32),
        )

    def batches(self, steps: Sequence[DecodeStep]) -> list[SessionBatch]:
        """Where the sessions stand in a step, by layer; layers with one rotary cache share the arrays."""
        made = {at: geometry.of(steps) for at, geometry in self._geometries.items()}
        return [made[at] for at in self._leader]

    def serves(self, steps: Sequence[DecodeStep]) -> bool:
        """Whether these are the same sessions, with the axes and positions that they had."""
        return all(
            step.session is session and session.memory is self._memory and session.rotations is self._rotary
            for step, session in zip(steps, self._sessions, strict=True)
        )


@dataclass(slots=True)
class GroupStep:
    """One group in one step."""

    group: HostGroup
    steps: list[DecodeStep]
    rows: torch.Tensor | None
    """Which rows of the batch's queries; None is all."""
    batches: list[SessionBatch]
    """The arrays of each layer."""
    given: list[Selection] = field(default_factory=list)
    """The selections of the latest layer, where the call does not select."""


@dataclass(slots=True)
class HostMetadata:
    """What the layers of one step share."""

    batch: DecodeBatch
    num_heads: int
    """Query heads."""
    groups: list[GroupStep] = field(default_factory=list)
    given: list[GroupStep] = field(default_factory=list)
    """The `groups` for which a selector selects."""
    queries: torch.Tensor | None = None
    """The queries of the latest layer."""

    def attended(self, layer: int) -> Attended:
        """See DecodeMetadata."""
        count = len(self.batch.steps)
        selected: list[Selection] = [None] * count
        lse, completed, keys = *torch.zeros((2, count, self.num_heads)), {}
        for part in self.groups:
            selections = part.group.selections
            for at, step in enumerate(part.steps):
                ids = part.given[at] if selections is None else selections.selected(layer, at, step)
                selected[step.row] = ids
                lse[step.row] = completed[step.row] = torch.from_numpy(part.group.output.lse[at])
                single = selections.keys(layer, at) if isinstance(selections, HostKeys) else None
                if single is not None:
                    keys[step.row], lse[step.row] = single[0], torch.from_numpy(single[1])
        queries = self.queries if self.queries is not None else torch.zeros((count, 0, 0))
        return Attended(LayerQueries(queries), selected, lse, keys, completed if keys else None)
