"""Copies as a GPU makes them, on a CPU: they begin late, go on beside the caller, and end in any order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.transfer.copy_handle import CopyHandle
from moorage.workers.gpu.transfer.staging_ring import StagingRing
from moorage.workers.kv.shards import ShardedKv

Int32 = NDArray[np.int32]


class UnderWay:
    """Copies of some blocks, each on its own."""

    pending = True

    def __init__(self, futures: list[Future[None]]) -> None:
        self._futures = futures

    def wait(self) -> None:
        for future in self._futures:
            future.result()


class Forgotten(UnderWay):
    """Copies that nobody waits for: the mistake that the emulation must show."""

    def wait(self) -> None:
        """Does not wait."""


class EmulatedCopies:
    """Until they are complete, targets hold NaN: whoever looks too early gets it into every logit."""

    overlaps = True
    packed = None

    def __init__(
        self,
        kv: ShardedKv,
        block: tuple[int, ...],
        dtype: torch.dtype,
        seed: int = 0,
        delay_s: float = 2e-3,
        handle: Callable[[list[Future[None]]], CopyHandle] = UnderWay,
        staging_blocks: int = 3,
    ) -> None:
        self._kv, self.link_bytes = kv, 0
        self._random = random.Random(seed)
        self._delay_s = delay_s
        self._handle = handle
        self._threads = ThreadPoolExecutor(max_workers=3)
        self._ring = StagingRing(torch.zeros((2, staging_blocks, *block), dtype=dtype))
        self._lock = threading.Lock()
        self.num_copies = 0
        self.num_staged = 0

    def prepare(self, pinned: Callable[[int, int], None] | None = None) -> None:
        """Nothing to do."""

    def copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> CopyHandle:
        out[torch.from_numpy(into).long()] = torch.nan
        self.link_bytes += len(blocks) * self._kv.layout.slot_bytes
        jobs: list[tuple[torch.Tensor, torch.Tensor]] = []
        futures: list[Future[None]] = []
        for link, local, places in self._kv.parts(session_id, blocks):
            if link.shard is None:
                self.num_staged += len(local)
                for part, staged, busy in self._ring.pass_through(link, session_id, layer, local):
                    slots = into[places][part]
                    begun = self._begin([(staged[i], out[slot]) for i, slot in enumerate(slots)])
                    busy(UnderWay(begun).wait)
                    futures += begun
                continue
            arena, pages = link.shard.arena, link.shard.pages_of(session_id, layer, local)
            kv = arena.kv.view(np.float16) if arena.kv.dtype == np.uint16 else arena.kv
            stored = torch.from_numpy(kv)[layer]
            pairs = zip(pages.tolist(), into[places].tolist(), strict=True)
            jobs += [(stored[page], out[slot]) for page, slot in pairs]
        return self._handle(futures + self._begin(jobs))

    def close(self) -> None:
        self._threads.shutdown()

    def _begin(self, jobs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[Future[None]]:
        self._random.shuffle(jobs)
        self.num_copies += len(jobs)
        delays = [self._random.uniform(self._delay_s / 4, self._delay_s) for _ in jobs]
        return [
            self._threads.submit(_copy_later, source, target, delay)
            for (source, target), delay in zip(jobs, delays, strict=True)
        ]


def _copy_later(source: torch.Tensor, target: torch.Tensor, delay_s: float) -> None:
    time.sleep(delay_s)
    target.copy_(source)
