"""New keys and values on their way into device slots and into the stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from moorage.workers.errors import NotFinite
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.positions.rotary_tables import DecodeQuery
from moorage.workers.gpu.selection.key_importance import KeyImportance
from moorage.workers.gpu.transfer.block_loader import BlockLoader, storage_dtype
from moorage.workers.gpu.transfer.host_copy import HostCopy
from moorage.workers.kv.rows import beyond_storage
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import KvLayout, KvType


class Written(NamedTuple):
    """A generated token's row."""

    query: DecodeQuery
    """What its attention starts from."""
    store_late: Callable[[], None] | None
    """Stores the row, which may wait until attention is launched; None where it is stored."""


class RowWriter:
    """Writes rows of one worker's sessions."""

    def __init__(
        self,
        kv: ShardedKv,
        layout: KvLayout,
        loader: BlockLoader,
        importance: KeyImportance,
        timer: PartTimer,
    ) -> None:
        self._kv, self._layout, self._loader, self._timer = kv, layout, loader, timer
        self._storage = storage_dtype(layout.kv_type)
        self.stores_late = loader.overlaps and not importance.reads_rows and not layout.is_packed
        """Whether the stores may get new rows while the device computes, since attention reads none of them."""

    def write(
        self, step: DecodeStep, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> Written:
        """Writes one token's K and V [Hkv, D] to its slot, if its block has one, and to the stores.

        `query` is [Hq, D]. Raises NotFinite for keys and values that can't be stored.
        """
        session, position = step.session, step.ranges.position
        block, row = divmod(position, self._layout.block_size)
        # A row that is written while its block is still on the way would be lost.
        session.await_ahead(layer)
        if self._layout.is_packed and row == 0 and block:
            # From now on the block before is seen as it is packed.
            session.cache.invalidate(layer, block - 1, block)
        slot = session.cache.slot_of(layer, block)
        with self._timer("append"):
            start, stored = self._start(step, layer, (query, key, value), slot, row)
        rows = HostCopy(stored)

        def store() -> None:
            with finite_rows(layer, key, value):
                self.append(session, layer, position, *rows()[0][:, None])

        if slot >= 0 and self.stores_late:
            return Written(start, store)
        store()
        return Written(start, None)

    def _start(
        self, step: DecodeStep, layer: int, heads: tuple[torch.Tensor, ...], slot: int, row: int
    ) -> tuple[DecodeQuery, torch.Tensor]:
        """What attention starts from, and K and V as stored [2, Hkv, D], written to a slot unless it is -1."""
        query, key, value = heads
        tables = step.session.rotations_of(layer).tables
        if tables is not None:
            return tables.start(query, key, value, step.ranges.position, self._loader.slots, slot, row)
        stored = torch.stack((key, value)).to(self._storage)
        if slot >= 0:
            self._loader.write_row(slot, row, *stored)
        return DecodeQuery(query.float()), stored

    def append(
        self, session: WorkerSession, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """K, V [T, Hkv, D] of the host go to the stores, from position `start` on."""
        with self._timer("append"):
            self._kv.append(session.session_id, layer, start, keys.numpy(), values.numpy())


@contextmanager
def finite_rows(layer: int, keys: torch.Tensor, values: torch.Tensor) -> Iterator[None]:
    """Says of rows that can't be stored whether they were no numbers before."""
    try:
        yield
    except NotFinite as error:
        if torch.isfinite(keys).all() and torch.isfinite(values).all():
            raise
        raise beyond_storage(layer, KvType.FP32) from error
