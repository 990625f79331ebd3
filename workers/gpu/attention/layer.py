"""One session's attention in one layer: its new rows go to slots and DRAM, then its queries attend."""

from __future__ import annotations

import torch

from moorage.workers.errors import NotFinite
from moorage.workers.gpu.attention.decode import DecodeAttention
from moorage.workers.gpu.attention.prefill import PrefillAttention
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.positions.rotary_tables import DecodeQuery
from moorage.workers.gpu.selection.key_importance import KeyImportance
from moorage.workers.gpu.transfer.block_loader import BlockLoader, storage_dtype
from moorage.workers.gpu.transfer.host_copy import HostCopy
from moorage.workers.kv.block_table import beyond_storage
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import KvLayout, KvType


class SessionAttention:
    """Of a prompt's chunk or of a generated token."""

    def __init__(
        self,
        kv: ShardedKv,
        layout: KvLayout,
        reader: BlockLoader,
        importance: KeyImportance,
        decode: DecodeAttention,
        prefill: PrefillAttention,
        timer: PartTimer,
    ) -> None:
        self._kv, self._layout, self._reader, self._importance = kv, layout, reader, importance
        self._decode, self._prefill, self._timer = decode, prefill, timer
        self._storage = storage_dtype(layout.kv_type)

    def __call__(
        self, session: WorkerSession, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Output [T, Hq, D] for q [T, Hq, D] and k, v [T, Hkv, D], un-rotated, from the session's end on.

        Raises NotFinite for keys and values that can't be stored.
        """
        try:
            return self._store_and_attend(session, layer, q, k, v)
        except NotFinite as error:
            if torch.isfinite(k).all() and torch.isfinite(v).all():
                raise
            raise beyond_storage(
                layer, KvType.FP32
            ) from error  # they were no numbers before they were stored

    def _store_and_attend(
        self, session: WorkerSession, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        if session.decode_step is not None:
            if session.decode_step.resident is not None:
                return self._decode_in_place(session, layer, q, k, v)
            return self._decode_one(session, layer, q[0], k[0], v[0])[None]
        # Rounded once to the stored type, so that results do not depend on where a chunk ends.
        keys, values = k.to(self._storage), v.to(self._storage)
        # A chunk that selects may choose blocks of its own, which must be sealed.
        exact = session.memory.selection.execution_block == 0 or not session.memory.selection.topk
        rows, behind = HostCopy(keys, values), self._stores_behind and exact
        if not behind:
            self._append(session, layer, *rows())
        self._forget(session, layer, session.num_tokens, session.num_tokens + len(keys))
        out = self._prefill(session, layer, q, keys, values)
        if behind:
            self._append(session, layer, *rows())
        if self._importance.wants_tail(session):
            self._keep_tail(session, layer, q)
        return out

    def _decode_in_place(
        self, session: WorkerSession, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """As `_decode_one` where the host attends blocks in the stores' memory; all tensors are [1, heads, D]."""
        self._append(session, layer, k.float(), v.float())  # rounded to the stored type on their way
        if session.cache.slot_of(layer, session.num_tokens // self._layout.block_size) >= 0:
            self._forget(session, layer, session.num_tokens, session.num_tokens + 1)
        query = q[0]
        return self._decode(session, layer, DecodeQuery(query.float(), copied=lambda: query))[None]

    def _decode_one(
        self, session: WorkerSession, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Stores the new row, key and value [Hkv, D], and attends; query and output are [Hq, D]."""
        asked = HostCopy(query)
        block, row = divmod(session.num_tokens, self._layout.block_size)
        # A row that is written while its block is still on the way would be lost.
        session.await_ahead(layer)
        slot = session.cache.slot_of(layer, block)
        with self._timer("append"):
            start, stored = self._start(session, query, key, value, slot, row)
        rows = HostCopy(stored)
        behind = slot >= 0 and self._stores_behind
        if not behind:
            self._append(session, layer, *rows()[0][:, None])
        start.copied = lambda: asked()[0]
        out = self._decode(session, layer, start)
        if behind:
            self._append(session, layer, *rows()[0][:, None])
        return out

    def _start(
        self,
        session: WorkerSession,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        slot: int,
        row: int,
    ) -> tuple[DecodeQuery, torch.Tensor]:
        """What attention starts from, and K and V as stored [2, Hkv, D], written to a slot unless it is -1."""
        tables = session.rotations.tables
        if tables is not None:
            return tables.start(query, key, value, session.num_tokens, self._reader.slots, slot, row)
        stored = torch.stack((key, value)).to(self._storage)
        if slot >= 0:
            self._reader.write_row(slot, row, *stored)
        return DecodeQuery(query.float()), stored

    @property
    def _stores_behind(self) -> bool:
        """Whether DRAM may get new rows while the device computes: attention is only launched, and reads none."""
        return self._reader.overlaps and not self._importance.reads_rows

    def _append(self, session: WorkerSession, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """K, V [T, Hkv, D] of the host go to DRAM."""
        with self._timer("append"):
            self._kv.append(session.session_id, layer, session.num_tokens, keys.numpy(), values.numpy())

    def _forget(self, session: WorkerSession, layer: int, start: int, end: int) -> None:
        session.cache.forget(layer, start // self._layout.block_size, self._layout.num_blocks(end))

    def _keep_tail(self, session: WorkerSession, layer: int, queries: torch.Tensor) -> None:
        """Keeps the prompt's last queries; after the last chunk they tell which keys matter."""
        kept = session.tail_queries.get(layer)
        joined = queries if kept is None else torch.cat((kept, queries))
        session.tail_queries[layer] = joined[-session.memory.selection.importance_queries :].float()
        if session.num_tokens + len(queries) >= session.prompt_tokens:
            self._importance.finish_prompt(session, layer, session.tail_queries.pop(layer))
