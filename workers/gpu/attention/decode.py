"""Attention of one generated token over sinks, chosen blocks and the local window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.block_attention import attend_blocks, entry_lse
from moorage.kernels.merge_lse import merge_lse
from moorage.kernels.triton_support import upload
from moorage.workers.gpu.attention.host import Partial, attend_on_host
from moorage.workers.gpu.engine.session_state import DecodeStep, WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.rotary import RotaryCache
from moorage.workers.gpu.positions.rotary_tables import DecodeQuery
from moorage.workers.gpu.selection.block_selector import BlockSelector
from moorage.workers.gpu.selection.key_importance import KeyImportance
from moorage.workers.gpu.transfer.block_loader import BlockLoader
from moorage.workers.gpu.transfer.copy_engine import CopyHandle
from moorage.workers.kv.resident import Resident
from moorage.workers.spec import KvLayout

Int32 = NDArray[np.int32]
Observer = Callable[[WorkerSession, int, torch.Tensor, Int32 | None, torch.Tensor], None]
"""(session, layer, query [Hq, D], chosen ids [S, k] or None for all, lse [Hq]) of each attention while decoding."""


class DecodeAttention:
    """One query of one session in one layer. Its K and V must already be stored."""

    def __init__(
        self,
        reader: BlockLoader,
        chooser: BlockSelector,
        importance: KeyImportance,
        layout: KvLayout,
        timer: PartTimer,
        prefetch: bool = False,
    ) -> None:
        self._importance = importance
        self.observer: Observer | None = None
        self._prefetch = prefetch
        self._reader = reader
        self._chooser = chooser
        self._layout = layout
        self._timer = timer

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._layout.block_size

    def __call__(self, session: WorkerSession, layer: int, query: DecodeQuery) -> torch.Tensor:
        """Output [Hq, D] in fp32 for `query`."""
        assert session.decode_step is not None
        span = session.decode_step.span
        if session.memory.selection.topk == 0:
            chosen: Int32 | None = np.empty((1, 0), np.int32)
        else:
            chosen = self._chooser.for_decode(session, layer, query.plain, query.on_host)
        if chosen is None:
            session.stats.add_choice(span.num_candidates)
            if span.near_block + len(session.decode_step.near.blocks) > session.cache.slots.shape[1]:
                partial = self._attend_all(session, layer, query)
            else:
                distant = np.arange(span.num_sinks, span.near_block, dtype=np.int32)
                partial = self._attend_chosen(session, layer, query, distant)
        else:
            session.stats.add_choice(chosen.shape[1])
            if len(chosen) == 1:
                partial = self._attend_chosen(session, layer, query, chosen[0])
            else:
                partial = self._attend_per_head(session, layer, query, chosen)
            self._chooser.catch_up(session, layer)
            self._sample_recall(session, layer, query.plain, partial[1])
        self._importance.add_one(session, layer, span.position, query.plain, partial[1])
        if self.observer is not None:
            self.observer(session, layer, query.plain, chosen, partial[1])
        return partial[0]

    def _attend_chosen(
        self,
        session: WorkerSession,
        layer: int,
        query: DecodeQuery,
        chosen: Int32,
        kv_head: int | None = None,
    ) -> Partial:
        assert session.decode_step is not None
        entries = _entries(session.rotations, session.decode_step, _present(chosen))
        return self._attend_slots(session, layer, query, entries, kv_head)

    def _attend_slots(
        self,
        session: WorkerSession,
        layer: int,
        query: DecodeQuery,
        entries: AttentionBlocks,
        kv_head: int | None = None,
        rotations: RotaryCache | None = None,
    ) -> Partial:
        """Attention over blocks in slots, and by the host over those that it attends where they lie."""
        step = session.decode_step
        assert step is not None
        if step.resident is not None:
            with self._timer("attend"):
                return attend_on_host(
                    query.plain, step.resident, layer, self._layout, entries, session.rotations,
                    self._scale(session), kv_head,
                )  # fmt: skip
        if step.aside is not None:
            distant = (step.span.num_sinks <= entries.blocks) & (entries.blocks < step.span.near_block)
            left = session.cache.leave(layer, entries.blocks, distant, kv_head or 0)
            if left.any():
                return self._attend_aside(
                    session, layer, query, entries, left, step.aside, kv_head, rotations
                )
        return self._attend_fetched(session, layer, query, entries, kv_head, rotations)

    def _attend_aside(
        self,
        session: WorkerSession,
        layer: int,
        query: DecodeQuery,
        entries: AttentionBlocks,
        left: NDArray[np.bool_],
        aside: Resident,
        kv_head: int | None,
        rotations: RotaryCache | None,
    ) -> Partial:
        """The device attends what it holds; the host attends meanwhile the entries that are `left` to it."""
        assert session.decode_step is not None
        there = self._attend_fetched(session, layer, query, entries.only(~left), kv_head, rotations)
        seen = session.rotations.with_angles(session.decode_step.span.position, entries.only(left))
        asked = query.on_host().float()
        with self._timer("attend"):
            scale = self._scale(session)
            here = attend_on_host(asked, aside, layer, self._layout, seen, session.rotations, scale, kv_head)
            came = upload([part.numpy() for part in here], there[0].device)
            outs, lses = (torch.stack(pair) for pair in zip(there, came, strict=True))
            return merge_lse(outs, lses)

    def _attend_fetched(
        self,
        session: WorkerSession,
        layer: int,
        query: DecodeQuery,
        entries: AttentionBlocks,
        kv_head: int | None,
        rotations: RotaryCache | None,
    ) -> Partial:
        """Attention over blocks in slots; while those that are missing come, the others are attended."""
        assert session.decode_step is not None
        blocks, place = np.unique(entries.blocks, return_inverse=True)
        slots, missing, into = session.cache.ensure(layer, blocks)
        copies = self._reader.fetch(session.session_id, layer, missing, into)
        if self._prefetch and layer + 1 < self._layout.num_layers:
            self._fetch_ahead(session, layer + 1)
        if copies.pending:
            late = np.isin(slots, into)[place]
            partial = self._attend_around(
                session, query, slots[place], entries, late, copies, kv_head, rotations
            )
        else:
            partial = self._attend(
                session, query, self._reader.slots, slots[place], entries, kv_head, rotations
            )
        if session.cache.scores_blocks:
            self._note_received(session, layer, query, entries, slots[place], kv_head, partial[1])
        return partial

    def _fetch_ahead(self, session: WorkerSession, layer: int) -> None:
        """Begins to fetch what `layer` will attend if it chooses as it did in the last step."""
        if layer in session.ahead:
            return
        assert session.decode_step is not None
        kept = session.choices.get(layer)
        chosen = kept.ids[0] if kept is not None and len(kept.ids) == 1 else np.empty(0, np.int32)
        likely = np.unique(np.concatenate((session.decode_step.always.blocks, chosen[chosen >= 0])))
        # The token's own row is not stored in that layer yet.
        likely = likely[likely < session.decode_step.span.position // self._layout.block_size]
        _, missing, into = session.cache.ensure(layer, likely, ahead=True)
        if len(missing):
            session.ahead[layer] = self._reader.fetch(session.session_id, layer, missing, into)

    def _attend_around(
        self,
        session: WorkerSession,
        query: DecodeQuery,
        slots: Int32,
        entries: AttentionBlocks,
        late: NDArray[np.bool_],
        copies: CopyHandle,
        kv_head: int | None,
        rotations: RotaryCache | None,
    ) -> Partial:
        """First what is there, then, once the copies are waited for, the `late` entries."""
        parts = []
        for chosen in (~late, late):
            if chosen is late:
                copies.wait()
            if chosen.any():
                some = entries.only(chosen)
                there = slots[chosen]
                parts.append(
                    self._attend(session, query, self._reader.slots, there, some, kv_head, rotations)
                )
        if len(parts) == 1:
            return parts[0]
        with self._timer("attend"):
            outs, lses = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
            return merge_lse(outs, lses)

    def _note_received(
        self,
        session: WorkerSession,
        layer: int,
        query: DecodeQuery,
        entries: AttentionBlocks,
        slots: Int32,
        kv_head: int | None,
        lse: torch.Tensor,
    ) -> None:
        """Tells the cache how much attention each block has received (InfLLM's lru-s)."""
        heads = slice(None) if kv_head is None else slice(kv_head, kv_head + 1)
        arguments = self._arguments(session, slots, entries)
        parts = entry_lse(query.plain, self._reader.slots[:, :, heads], **arguments)
        received = torch.exp(parts - lse).sum(dim=1).cpu().numpy()
        session.cache.note(layer, session.decode_index, entries.blocks, received)

    def _attend_per_head(
        self, session: WorkerSession, layer: int, query: DecodeQuery, chosen: Int32
    ) -> Partial:
        """Every choice with its own heads, one after the other, so that a session's slots hold each in turn."""
        num_choices, num_kv_heads = len(chosen), self._layout.num_kv_heads
        count = len(query.plain) // num_choices
        parts = [
            self._attend_chosen(
                session,
                layer,
                query.of_heads(i * count, (i + 1) * count),
                chosen[i],
                i * num_kv_heads // num_choices,
            )
            for i in range(num_choices)
        ]
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])

    def attend_all(
        self, session: WorkerSession, layer: int, query: torch.Tensor, rotations: RotaryCache | None = None
    ) -> Partial:
        """Exact attention of `query` f32 [Hq, D]: near blocks from slots, all others streamed and merged.

        `rotations` are those of `RotaryCache.exact`, or the session's own.
        """
        return self._attend_all(session, layer, DecodeQuery(query), rotations)

    def _attend_all(
        self, session: WorkerSession, layer: int, query: DecodeQuery, rotations: RotaryCache | None = None
    ) -> Partial:
        assert session.decode_step is not None
        span, near = session.decode_step.span, session.decode_step.near
        rotations = rotations or session.rotations
        if rotations is not session.rotations:
            near = rotations.window_blocks(span)
        parts = [self._attend_slots(session, layer, query, near, rotations=rotations)]
        everything = np.arange(span.near_block, dtype=np.int32)
        for piece, staged in self._reader.stream(session.session_id, layer, everything):
            entries = rotations.distant_blocks(span, piece)
            slots = np.arange(len(piece), dtype=np.int32)
            parts.append(self._attend(session, query, staged, slots, entries, rotations=rotations))
        outs, lses = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
        return merge_lse(outs, lses)

    def block_lse(
        self, session: WorkerSession, layer: int, query: torch.Tensor, blocks: Int32, rotations: RotaryCache
    ) -> torch.Tensor:
        """[n, Hq] log-sum-exp of the logits of each of the distant `blocks` alone, as `rotations` see them."""
        assert session.decode_step is not None
        span, found = session.decode_step.span, []
        for piece, staged in self._reader.stream(session.session_id, layer, blocks):
            # One by one: a block that two variants of the query meet has two entries.
            for slot in range(len(piece)):
                entries = rotations.distant_blocks(span, piece[slot : slot + 1])
                slots = np.full(len(entries.blocks), slot, np.int32)
                parts = entry_lse(query, staged, **self._arguments(session, slots, entries))
                found.append(torch.logsumexp(parts, dim=0))
        return torch.stack(found) if found else query.new_zeros((0, len(query)))

    def _attend(
        self,
        session: WorkerSession,
        query: DecodeQuery,
        blocks: torch.Tensor,
        slots: Int32,
        entries: AttentionBlocks,
        kv_head: int | None = None,
        rotations: RotaryCache | None = None,
    ) -> Partial:
        """`entries` are those of `rotations`, or of the session's own."""
        assert session.decode_step is not None
        if kv_head is not None:
            blocks = blocks[:, :, kv_head : kv_head + 1]
        rotations = rotations or session.rotations
        with self._timer("attend"):
            if rotations.tables is None:
                return attend_blocks(query.plain, blocks, **self._arguments(session, slots, entries))
            turned = query.turned
            if turned is None or rotations is not session.rotations:
                turned = rotations.tables.turn(query.plain, session.decode_step.span.position)
            return rotations.tables.attend(turned, blocks, slots, entries, self._scale(session))

    def _arguments(self, session: WorkerSession, slots: Int32, entries: AttentionBlocks) -> dict[str, Any]:
        """Of the kernels in `kernels.block_attention`, beside the query and the blocks."""
        assert session.decode_step is not None
        rotations = session.rotations
        entries = rotations.with_angles(session.decode_step.span.position, entries)
        return {
            "slot": slots,
            "begin": entries.begin,
            "end": entries.end,
            "angle_cos": entries.angle_cos,
            "angle_sin": entries.angle_sin,
            "rotate_keys": entries.rotate_keys,
            "offset_cos": rotations.offset_cos,
            "offset_sin": rotations.offset_sin,
            "scale": self._scale(session),
        }

    def _scale(self, session: WorkerSession) -> float:
        return session.rotations.view.attention_scale**2 / math.sqrt(self._layout.head_dim)

    def _sample_recall(
        self, session: WorkerSession, layer: int, query: torch.Tensor, lse_chosen: torch.Tensor
    ) -> None:
        """On sampled steps and one layer of each, how much of the exact attention mass was attended.

        Recall is exp(lse_chosen - lse_all), the mean over heads (DESIGN: selection is measured, not believed).
        """
        every = session.memory.recall_every
        if not every or session.decode_index % every:
            return
        if layer != session.decode_index // every % self._layout.num_layers:
            return
        exact = session.rotations.exact()
        if exact is None:
            return
        _, lse_all = self.attend_all(session, layer, query, exact)
        session.stats.recall.append(float(torch.exp(lse_chosen - lse_all).mean()))


def _present(chosen: Int32) -> Int32:
    """The ids without the padding at their end."""
    return chosen if not chosen.size or chosen[-1] >= 0 else chosen[chosen >= 0]


def _entries(rotations: RotaryCache, step: DecodeStep, chosen: Int32) -> AttentionBlocks:
    """Entries of `chosen`, the sinks and the near blocks."""
    if not len(chosen):
        return step.always
    if not rotations.clamped:
        return rotations.distant_blocks(step.span, chosen).joined(step.always)
    kept = step.with_distant.get(len(chosen))
    if kept is None:
        kept = rotations.clamped_blocks(step.span, len(chosen))
        step.with_distant[len(chosen)] = kept
    return kept.with_blocks(np.concatenate((chosen, step.always.blocks)))
