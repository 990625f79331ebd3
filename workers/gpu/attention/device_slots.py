"""Attention of generated tokens from device slots: blocks that are missing there are fetched first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.attention.attended import Attended
from moorage.workers.gpu.attention.backend import DecodeParts
from moorage.workers.gpu.attention.exact import ExactAttention
from moorage.workers.gpu.attention.stored_blocks import Partial, TokenQuery, merged
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.rotary_tables import DecodeQuery
from moorage.workers.gpu.positions.step_blocks import StepBlocks
from moorage.workers.gpu.selection.queries import LayerQueries, attention_scale
from moorage.workers.gpu.selection.reuse import NO_BLOCKS, selects_keys
from moorage.workers.gpu.selection.selector import Selection
from moorage.workers.gpu.transfer.copy_handle import CopyHandle

Int32 = NDArray[np.int32]


class SelectedKeys(NamedTuple):
    """Single keys that one session attended in a layer."""

    positions: Int32
    """[Hkv, n], ascending, padded with -1."""
    lse: torch.Tensor
    """[Hq]: of these keys, sinks and window; what else is `found` has the completion as well."""


class SlotLayer(NamedTuple):
    """What one layer attended."""

    queries: LayerQueries
    selected: list[Selection]
    """The selection of each row."""
    found: dict[int, Partial]
    """The partial result of each row whose session has not failed."""
    keys: dict[int, SelectedKeys]
    """The keys of each row that selected single keys."""


@dataclass(slots=True)
class SlotMetadata:
    """What the layers of one step share."""

    batch: DecodeBatch
    latest: SlotLayer | None = None
    _blocks: dict[tuple[int, int], StepBlocks] = field(default_factory=dict)
    """The blocks by row and rotary cache."""

    def blocks(self, step: DecodeStep, layer: int) -> StepBlocks:
        """The blocks that a session attends in a layer whatever it selects."""
        rotary = step.session.rotations_of(layer)
        found = self._blocks.get((step.row, id(rotary)))
        if found is None:
            found = StepBlocks.of(step.ranges, rotary, step.selection.topk or 0)
            self._blocks[step.row, id(rotary)] = found
        return found

    def attended(self, layer: int) -> Attended:
        """See DecodeMetadata."""
        if self.latest is None:
            raise ValueError(f"layer {layer} is not attended yet")
        queries, selected, found, keys = self.latest
        none = queries.plain.new_zeros(queries.plain.shape[1])
        rows = range(len(selected))
        completed = torch.stack([found[row].lse if row in found else none for row in rows])
        lse = torch.stack([keys[row].lse if row in keys else completed[row] for row in rows])
        positions = {row: each.positions for row, each in keys.items()}
        return Attended(queries, selected, lse, positions, completed if keys else None)


class DeviceSlotAttention:
    """One session after the other: its new row goes to a slot and to the stores, then its query attends."""

    def __init__(self, parts: DecodeParts, prefetch: bool = False) -> None:
        """`prefetch` begins to fetch what the next layer probably attends while a layer computes."""
        self._loader, self._writer, self._keys = parts.loader, parts.writer, parts.keys
        self._selector, self._sinks = parts.selector, parts.sinks
        self._layout, self._timer, self._prefetch = parts.layout, parts.timer, prefetch
        self._exact = ExactAttention(parts.loader, parts.layout, parts.timer)

    def prepare(self, batch: DecodeBatch) -> SlotMetadata:
        """See AttentionBackend."""
        return SlotMetadata(batch)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: SlotMetadata
    ) -> torch.Tensor:
        """See AttentionBackend."""
        batch, queries = metadata.batch, LayerQueries(q)
        begun: dict[int, DecodeQuery] = {}
        late: dict[int, Callable[[], None]] = {}
        for step in batch.live():
            batch.guard.run(step.session, self._writing(step, layer, (q, k, v), begun, late))
        selected = self._select(layer, queries, batch)
        found: dict[int, Partial] = {}
        for step in batch.live():

            def attend(step: DecodeStep = step) -> None:
                query = self._query(step, layer, begun[step.row], queries)
                found[step.row] = self._attend(query, metadata.blocks(step, layer), selected[step.row])

            if batch.guard.run(step.session, attend) and step.row in late:
                batch.guard.run(step.session, late[step.row])
        keys = self._attend_keys(layer, queries, batch, begun, found)
        metadata.latest = SlotLayer(queries, selected, found, keys)
        if len(found) == 1 and len(batch.steps) == 1:
            outs, lses = found[0].out[None], found[0].lse[None]
        else:
            outs, lses = _stacked(found, q)
        return self._sinks.weigh(layer, outs, lses)

    def finish(self, metadata: SlotMetadata) -> None:
        """See AttentionBackend; the layers leave nothing open."""

    def _writing(
        self,
        step: DecodeStep,
        layer: int,
        heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        begun: dict[int, DecodeQuery],
        late: dict[int, Callable[[], None]],
    ) -> Callable[[], None]:
        """Writes the new row, and leaves its copy to the stores to `late` where attention reads none of it."""

        def write() -> None:
            query, key, value = (each[step.row] for each in heads)
            written = self._writer.write(step, layer, query, key, value)
            begun[step.row] = written.query
            if written.store_late is not None:
                late[step.row] = written.store_late

        return write

    def _select(self, layer: int, queries: LayerQueries, batch: DecodeBatch) -> list[Selection]:
        """The selections by row; no blocks of sessions that select single keys in this layer."""
        selected: list[Selection] = [NO_BLOCKS] * len(batch.steps)
        asking = [step for step in batch.live() if not selects_keys(step, layer)]
        for step, ids in zip(asking, self._selector.select(layer, queries, asking, batch.guard), strict=True):
            selected[step.row] = ids
        return selected

    def _attend_keys(
        self,
        layer: int,
        queries: LayerQueries,
        batch: DecodeBatch,
        begun: dict[int, DecodeQuery],
        found: dict[int, Partial],
    ) -> dict[int, SelectedKeys]:
        """Adds the single keys that sessions select in this layer to what was `found` of sinks and window."""
        keys: dict[int, SelectedKeys] = {}
        asking = [step for step in batch.live() if selects_keys(step, layer)]
        best = self._keys.select(layer, queries, asking, found, batch.guard)
        for step in asking:

            def attend(step: DecodeStep = step) -> None:
                query = self._query(step, layer, begun[step.row], queries)
                attended, completed = self._keys.attend(query, found[step.row], best[step.row])
                keys[step.row] = SelectedKeys(best[step.row].positions, attended.lse)
                found[step.row] = completed
                step.session.stats.num_keys += step.selection.topk_keys

            batch.guard.run(step.session, attend)
        return keys

    def _query(self, step: DecodeStep, layer: int, query: DecodeQuery, queries: LayerQueries) -> TokenQuery:
        session, row = step.session, step.row
        query.copied = lambda: queries.on_host()[row]
        scale, softcap = attention_scale(session, layer), session.softcap
        return TokenQuery(step, layer, query, session.rotations_of(layer), scale, softcap)

    def _attend(self, query: TokenQuery, always: StepBlocks, selected: Selection) -> Partial:
        session, ranges = query.step.session, query.step.ranges
        if selected is None:
            session.stats.add_selection(ranges.num_candidates)
            if ranges.near_block + len(always.window.blocks) > session.cache.slots.shape[1]:
                return self._attend_all(query, always)
            return self._attend_selected(query, always, ranges.candidates)
        session.stats.add_selection(selected.shape[1])
        if len(selected) == 1:
            return self._attend_selected(query, always, selected[0])
        return self._attend_per_head(query, always, selected)

    def _attend_selected(self, query: TokenQuery, always: StepBlocks, ids: Int32) -> Partial:
        return self._attend_blocks(query, always, always.with_selected(query.rotary, ids))

    def _attend_per_head(self, query: TokenQuery, always: StepBlocks, selected: Int32) -> Partial:
        """Every selection with its own heads, one after the other, so that a session's slots hold each in turn."""
        num_selections, num_kv_heads = len(selected), self._layout.num_kv_heads
        count = len(query.query.plain) // num_selections
        parts = [
            self._attend_selected(
                query.of_heads(i * count, (i + 1) * count, i * num_kv_heads // num_selections),
                always,
                selected[i],
            )
            for i in range(num_selections)
        ]
        return Partial(torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts]))

    def _attend_all(self, query: TokenQuery, always: StepBlocks) -> Partial:
        """The window from slots, everything before it streamed and merged."""
        near = self._attend_blocks(query, always, always.window)
        return merged([near, *self._exact.pieces(query, query.step.ranges.near_block)])

    def _attend_blocks(self, query: TokenQuery, always: StepBlocks, blocks: AttentionBlocks) -> Partial:
        """Attention over blocks in slots; while those that are missing come, the others are attended."""
        session, layer = query.step.session, query.layer
        distinct, place = np.unique(blocks.blocks, return_inverse=True)
        found = session.cache.look_up(layer, distinct)
        copies = self._loader.fetch(session.session_id, layer, found.missing, found.into)
        if self._prefetch and layer + 1 < self._layout.num_layers:
            self._prefetch_layer(query.step, layer + 1, always)
        slots = found.slots[place]
        if copies.pending:
            partial = self._attend_around(
                query, slots, blocks, np.isin(found.slots, found.into)[place], copies
            )
        else:
            with self._timer("attend"):
                partial = query.attend(self._loader.slots, slots, blocks)
        if session.cache.scores_blocks:
            self._record_received(query, slots, blocks, partial.lse)
        return partial

    def _prefetch_layer(self, step: DecodeStep, layer: int, always: StepBlocks) -> None:
        """Begins to fetch what `layer` will attend if it selects as it did in the last step."""
        session = step.session
        if layer in session.ahead:
            return
        kept = session.selections.get(layer)
        ids = kept.ids[0] if kept is not None and len(kept.ids) == 1 else np.empty(0, np.int32)
        likely = np.unique(np.concatenate((always.blocks.blocks, ids[ids >= 0])))
        # The token's own row is not stored in that layer yet.
        likely = likely[likely < step.ranges.position // self._layout.block_size]
        found = session.cache.look_up(layer, likely, ahead=True)
        if len(found.missing):
            session.ahead[layer] = self._loader.fetch(session.session_id, layer, found.missing, found.into)

    def _attend_around(
        self,
        query: TokenQuery,
        slots: Int32,
        blocks: AttentionBlocks,
        late: NDArray[np.bool_],
        copies: CopyHandle,
    ) -> Partial:
        """First what is there, then, once the copies are waited for, the `late` blocks."""
        parts = []
        for some in (~late, late):
            if some is late:
                copies.wait()
            if some.any():
                with self._timer("attend"):
                    parts.append(query.attend(self._loader.slots, slots[some], blocks.only(some)))
        with self._timer("attend"):
            return merged(parts)

    def _record_received(
        self, query: TokenQuery, slots: Int32, blocks: AttentionBlocks, lse: torch.Tensor
    ) -> None:
        """Tells the cache how much attention each block has received (InfLLM's lru-s)."""
        session = query.step.session
        parts = query.lse_by_block(self._loader.slots, slots, blocks)
        received = torch.exp(parts - lse).sum(dim=1).cpu().numpy()
        session.cache.record(query.layer, session.decode_index, blocks.blocks, received)


def _stacked(found: dict[int, Partial], q: torch.Tensor) -> Partial:
    """[N, Hq, D] and [N, Hq] in fp32 of the rows that were found; 0 for the others."""
    if len(found) < len(q):
        none = q.new_zeros(q.shape[1:], dtype=torch.float32)
        missing = Partial(none, none[:, 0])
        found = {row: found.get(row, missing) for row in range(len(q))}
    rows = [found[row] for row in range(len(q))]
    return Partial(torch.stack([row.out for row in rows]), torch.stack([row.lse for row in rows]))
