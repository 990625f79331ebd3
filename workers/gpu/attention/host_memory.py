"""Attention of generated tokens by the host, to blocks where they lie in the stores' memory: no slots, no copies."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from moorage.workers.gpu.attention.backend import Attended, DecodeMetadata, DecodeParts
from moorage.workers.gpu.attention.host_blocks import attend_on_host
from moorage.workers.gpu.attention.row_writer import finite_rows
from moorage.workers.gpu.attention.stored_blocks import Partial, TokenQuery
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep
from moorage.workers.gpu.positions.rotary_tables import DecodeQuery
from moorage.workers.gpu.positions.step_blocks import StepBlocks
from moorage.workers.gpu.selection.queries import LayerQueries, attention_scale
from moorage.workers.gpu.selection.selector import Selection
from moorage.workers.kv.resident import Resident
from moorage.workers.kv.shards import ShardedKv


@dataclass(slots=True)
class HostMetadata(DecodeMetadata):
    """Of the sessions of a batch, by row."""

    blocks: list[StepBlocks] = field(default_factory=list)
    resident: list[Resident | None] = field(default_factory=list)


class HostMemoryAttention:
    """For a worker on a CPU whose stores all lie on this host."""

    def __init__(self, parts: DecodeParts, kv: ShardedKv) -> None:
        self._selector, self._deferring = parts.selector, parts.deferring
        self._writer, self._kv = parts.writer, kv
        self._layout, self._timer = parts.layout, parts.timer

    def prepare(self, batch: DecodeBatch) -> HostMetadata:
        """See AttentionBackend."""
        blocks = [
            StepBlocks.of(step.ranges, step.session.rotations, step.selection.topk or 0)
            for step in batch.steps
        ]
        resident = [self._kv.resident(step.session.session_id) for step in batch.steps]
        return HostMetadata(batch, blocks=blocks, resident=resident)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: HostMetadata
    ) -> torch.Tensor:
        """See AttentionBackend."""
        batch, queries = metadata.batch, LayerQueries(q)
        for step in batch.live():

            def write(step: DecodeStep = step) -> None:
                rows = k[step.row][None].float(), v[step.row][None].float()
                with finite_rows(layer, *rows):
                    self._writer.append(step.session, layer, *rows)

            batch.guard.run(step.session, write)
        live = batch.live()
        selected: list[Selection] = [None] * len(batch.steps)
        for step, ids in zip(live, self._selector.select(layer, queries, live, batch.guard), strict=True):
            selected[step.row] = ids
        out, lse = q.new_zeros(q.shape), q.new_zeros(q.shape[:2], dtype=torch.float32)
        for step in batch.live():

            def attend(step: DecodeStep = step) -> None:
                found = self._attend(step, layer, queries.plain[step.row], metadata, selected[step.row])
                out[step.row], lse[step.row] = found.out.to(out.dtype), found.lse

            batch.guard.run(step.session, attend)
        self._deferring.make_deferred(batch.live(), batch.guard, until=layer)
        metadata.attended = {layer: Attended(queries, selected, lse)}
        return out

    def finish(self, metadata: HostMetadata) -> None:
        """See AttentionBackend."""
        self._deferring.make_deferred(metadata.batch.live(), metadata.batch.guard)

    def _attend(
        self, step: DecodeStep, layer: int, plain: torch.Tensor, metadata: HostMetadata, selected: Selection
    ) -> Partial:
        session, always, resident = step.session, metadata.blocks[step.row], metadata.resident[step.row]
        if resident is None:
            raise ValueError(f"session {session.session_id} lies on another host")
        scale = attention_scale(session, self._layout.head_dim)
        query = TokenQuery(step, layer, DecodeQuery(plain), session.rotations, scale)
        ids = step.ranges.candidates[None] if selected is None else selected
        session.stats.add_choice(ids.shape[1])
        count, parts = len(plain) // len(ids), []
        for i, row in enumerate(ids):
            part = query
            if len(ids) > 1:
                part = query.of_heads(i * count, (i + 1) * count, i * self._layout.num_kv_heads // len(ids))
            with self._timer("attend"):
                blocks = always.with_selected(query.rotary, row)
                parts.append(attend_on_host(part, part.query.plain, resident, self._layout, blocks))
        if len(parts) == 1:
            return parts[0]
        return Partial(torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts]))
