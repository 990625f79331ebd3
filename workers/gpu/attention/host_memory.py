"""Attention of generated tokens by the host, in the stores' own memory: one compiled call a layer for all sessions.

The call writes the new rows, selects blocks, and attends them where they lie. Nothing is copied to slots. Sessions
that select single keys attend sinks and window by it, and the keys by a second call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.decode_keys import KeyLists
from moorage.kernels.decode_layer import NOT_FINITE_ROW, LayerMemory, LayerShape, decode_layer
from moorage.kernels.decode_rows import decode_rows
from moorage.workers.errors import Internal, MoorageError
from moorage.workers.gpu.attention.backend import DecodeParts
from moorage.workers.gpu.attention.given_selections import given_selections, selects_compiled
from moorage.workers.gpu.attention.host_group import GroupStep, HostGroup, HostMetadata
from moorage.workers.gpu.attention.host_keys import HostKeys
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep
from moorage.workers.gpu.selection.queries import LayerQueries
from moorage.workers.gpu.selection.reuse import NO_BLOCKS
from moorage.workers.kv.host_memory import HostMemory
from moorage.workers.kv.rows import beyond_storage
from moorage.workers.spec import AnchorType, KvType, ModelSpec

NO_SESSION = -1
MOST_GROUPS = 16
"""Compositions of sessions whose arrays are kept for the next step."""


class HostMemoryAttention:
    """The backend of a worker on a CPU that maps every store."""

    def __init__(self, parts: DecodeParts, host: HostMemory, model: ModelSpec, stripe_blocks: int) -> None:
        self._parts, self._host, self._model = parts, host, model
        layout = host.layout
        shape = LayerShape(
            layout.num_kv_heads,
            layout.block_size,
            layout.head_dim,
            stripe_blocks,
            layout.anchor_type.bounds,
            layout.anchor_type is AnchorType.KEY_CODES,
        )
        self._memory = [LayerMemory.of(shape, *layer) for layer in host.layers]
        self._lists = KeyLists()
        self._commits_layers = layout.anchor_type.needs_importance
        """Whether anchors of a step's own blocks are made in that step, which needs their rows committed."""
        self._groups: OrderedDict[tuple[bool | int, ...], HostGroup] = OrderedDict()

    def prepare(self, batch: DecodeBatch) -> HostMetadata:
        """See AttentionBackend."""
        failed = self._host.begin(_rows(batch.live()))
        for session_id, error in failed.items():
            batch.guard.failed.setdefault(session_id, error)
        alike: dict[tuple[int, int, int], list[DecodeStep]] = {}
        for step in batch.live():
            # Positions of one session that are verified are a group of their own.
            alone = step.session.session_id if step.exact else NO_SESSION
            alike.setdefault((id(step.memory), id(step.session.rotations), alone), []).append(step)
        metadata = HostMetadata(batch, self._model.num_heads)
        for steps in alike.values():
            metadata.groups += self._group_step(steps, batch)
        metadata.given += [part for part in metadata.groups if part.group.selections is None]
        return metadata

    def _group_step(self, steps: list[DecodeStep], batch: DecodeBatch) -> list[GroupStep]:
        """The group of some sessions in this step; none where they can't be looked up."""
        try:
            group = self._group(steps)
        except MoorageError as error:
            for step in steps:
                batch.guard.failed.setdefault(step.session.session_id, error)
            return []
        if group.selections is not None:
            group.selections.prepare(steps, batch.guard)
        rows = None if len(steps) == len(batch.steps) else torch.tensor([step.row for step in steps])
        return [GroupStep(group, steps, rows, group.batches(steps))]

    def _group(self, steps: Sequence[DecodeStep]) -> HostGroup:
        key = (steps[0].exact, *(step.session.session_id for step in steps))
        group = self._groups.pop(key, None)
        if group is None or not group.serves(steps):
            compiled = self._parts.scores_in_stores and selects_compiled(self._host.layout, steps[0].memory)
            group = HostGroup(self._host, self._model, steps, compiled, self._lists)
        self._groups[key] = group
        if len(self._groups) > MOST_GROUPS:
            self._groups.popitem(last=False)
        return group

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: HostMetadata
    ) -> torch.Tensor:
        """See AttentionBackend."""
        metadata.queries = q
        if metadata.given:
            self._select(layer, q, metadata)
        groups = metadata.groups
        if groups and groups[0].rows is None:  # one group of all sessions
            out = self._attend(layer, groups[0], (q, k, v), metadata.batch)
        else:
            out = q.new_zeros(q.shape)
            for part in groups:
                heads = q[part.rows], k[part.rows], v[part.rows]
                out[part.rows] = self._attend(layer, part, heads, metadata.batch).to(out.dtype)
        if self._commits_layers:
            self._host.commit_layer(layer, _rows(metadata.batch.live()))
        return out

    def _attend(
        self, layer: int, part: GroupStep, heads: tuple[torch.Tensor, ...], batch: DecodeBatch
    ) -> torch.Tensor:
        """[n, Hq, D] in fp32, overwritten by the next layer."""
        group = part.group
        if group.selections is not None:
            selections = group.selections.of_layer(layer)
        else:
            selections = given_selections(part.steps, part.given)
        q, k, v = _array(heads[0]), _array(heads[1]), _array(heads[2])
        with self._parts.timer("attend"):
            # Positions of one session are rows of one block where blocks are packed, and few.
            together = group.is_exact and len(part.steps) > 1 and not self._host.layout.is_packed
            attend = decode_rows if together else decode_layer
            num_failed = attend(
                self._memory[layer],
                part.batches[layer],
                q,
                k,
                v,
                selections,
                group.output,
                is_checked=group.is_checked,
            )
            if isinstance(group.selections, HostKeys):
                group.selections.attend(layer, self._memory[layer], part.batches[layer], q, group.output)
        # The arrays of a group, unlike those that a selector's answers are put in, are the same in each layer.
        group.is_checked = group.selections is not None
        if num_failed:
            self._record_failures(layer, part, heads, batch)
        output = group.output
        return self._parts.sinks.weigh(layer, torch.from_numpy(output.out), torch.from_numpy(output.lse))

    def _select(self, layer: int, q: torch.Tensor, metadata: HostMetadata) -> None:
        """Asks the selector for the sessions whose blocks the compiled call does not select.

        A session that has failed attends its window alone, so that the others need not wait for more.
        """
        steps = [step for part in metadata.given for step in part.steps]
        found = iter(self._parts.selector.select(layer, LayerQueries(q), steps, metadata.batch.guard))
        failed = metadata.batch.guard.failed
        for part in metadata.given:
            selected = [next(found) for _ in part.steps]
            part.given = [
                NO_BLOCKS if step.session.session_id in failed else ids
                for step, ids in zip(part.steps, selected, strict=True)
            ]

    def _record_failures(
        self, layer: int, part: GroupStep, heads: tuple[torch.Tensor, ...], batch: DecodeBatch
    ) -> None:
        for at in np.flatnonzero(part.group.output.failed):
            session_id = part.steps[at].session.session_id
            rows = slice(None) if part.group.is_exact else slice(at, at + 1)
            finite = bool(torch.isfinite(heads[1][rows]).all() and torch.isfinite(heads[2][rows]).all())
            error: MoorageError = Internal(
                f"layer {layer}: no store holds a block of session {session_id}", ""
            )
            if part.group.output.failed[at] == NOT_FINITE_ROW:
                error = beyond_storage(layer, self._host.layout.kv_type if finite else KvType.FP32)
            batch.guard.failed.setdefault(session_id, error)

    def finish(self, metadata: HostMetadata) -> None:
        """See AttentionBackend."""
        live, failed = metadata.batch.live(), metadata.batch.guard.failed
        for part in metadata.groups:
            if part.group.selections is not None:
                part.group.selections.finish()
        if self._commits_layers:
            return
        with self._parts.timer("append"):
            for session_id, error in self._host.commit(_rows(live)).items():
                failed.setdefault(session_id, error)


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """A tensor of the host in fp32 and in one piece; no copy where it is that."""
    if tensor.dtype is not torch.float32 or not tensor.is_contiguous():
        tensor = tensor.float().contiguous()
    array: NDArray[np.float32] = tensor.numpy()
    return array


def _rows(steps: Sequence[DecodeStep]) -> list[tuple[int, int]]:
    """(session, position) of each step's new row."""
    return [(step.session.session_id, step.ranges.position) for step in steps]
