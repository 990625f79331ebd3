"""The order of a run: the most telling rows first, and an end between two measurements when the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import psutil
import torch

from moorage.kernels.triton_support import has_triton
from moorage.runtime.bench.gpu.cases import Case, Group, Kind, cases_of, groups
from moorage.runtime.bench.gpu.ceilings import measure_ceilings
from moorage.runtime.bench.gpu.decode import measure_decode
from moorage.runtime.bench.gpu.model import SHAPES, TINY, PastStore, WalkingDecoder
from moorage.runtime.bench.gpu.options import Options
from moorage.runtime.bench.gpu.packed import measure_packed
from moorage.runtime.bench.gpu.prefill import measure_chunks, prefill_row
from moorage.runtime.bench.gpu.rig import OWN_TOKENS, Rig
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import use_threads
from moorage.workers.errors import MoorageError
from moorage.workers.gpu.transfer.factory import copy_engine
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.sizes import piece_blocks

HOST_SHARE = 0.8
"""The share of the free host memory that a past may take where --host-memory does not say."""
Note = Callable[[str], None]


@dataclass
class Clock:
    """The time budget of the whole run."""

    budget_s: float
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self.now()

    @property
    def left_s(self) -> float:
        """Seconds until everything must have stopped."""
        return self.budget_s - (self.now() - self._started)


@dataclass
class Bench:
    """One run over all stores."""

    options: Options
    note: Note
    clock: Clock | None = None
    _longest_s: dict[Kind, float] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """Ceilings first, then packed blocks by themselves, then the cases of each store."""
        options, model = self.options, SHAPES[self.options.shape]
        self._clock = self.clock or Clock(options.budget_s)
        use_threads(options.threads)
        size = 1 << 30 if options.cuda else 1 << 24
        dtype = getattr(torch, model.dtype)
        ceilings, rows = measure_ceilings(options.device, dtype, options.threads, size)
        yield from rows
        if options.cuda and has_triton():
            yield from measure_packed(options, model, ceilings)
        decoder = WalkingDecoder.random(model, options.device)
        for group in groups(model, 16 if model is TINY else 1):
            cases = [case for case in cases_of(group, options) if options.wants(case.row_name)]
            if not cases:
                continue
            if not self._has_time(Kind.FILL, f"filling the store of {group.methods[0].name}"):
                return
            yield from self._group(group, cases, partial(Rig, options, model, decoder, ceilings))

    def _group(self, group: Group, cases: list[Case], rig_of: Callable[..., Rig]) -> Iterator[Row]:
        """Fills a store, pins it, and runs the cases that fit it."""
        options, layout = self.options, group.layout
        own = max(options.batches) * OWN_TOKENS + 2 * options.chunk_tokens
        longest = self._longest_past(group, cases, own)
        if longest is None:
            return
        started = time.monotonic()
        store = PastStore(layout, longest, own + 4 * layout.block_size, options.threads)
        kv = ShardedKv([LocalLink(store)], layout)
        copies = copy_engine(kv, layout, options.device, piece_blocks(layout, not options.cuda))
        try:
            size, name = layout.num_blocks(longest) * layout.page_bytes, group.methods[0].name
            self._took(Kind.FILL, started)
            yield Row(f"fill-{name}", time.monotonic() - started, longest, options.threads, bytes=size)
            started = time.monotonic()
            copies.prepare()
            if options.cuda:
                yield Row(f"pin-{name}", time.monotonic() - started, longest, bytes=store.arena.kv.nbytes)
            rig = rig_of(store, kv, copies)
            yield from self._cases(rig, [case for case in cases if case.context <= longest])
        finally:
            copies.close()
            store.close()

    def _cases(self, rig: Rig, cases: list[Case]) -> Iterator[Row]:
        chunk_s: dict[tuple[str, int], float] = {}
        for case in cases:
            if not self._has_time(case.kind, f"{case.row_name} at {case.context} tokens"):
                continue
            started = time.monotonic()
            try:
                if case.kind is Kind.PREFILL:
                    chunk_s[case.method.name, case.context] = measure_chunks(rig, case)
                    if case.context:
                        costs = {at: cost for (name, at), cost in chunk_s.items() if name == case.method.name}
                        yield prefill_row(rig, case, costs)
                else:
                    yield measure_decode(rig, case)
            except (MoorageError, torch.OutOfMemoryError) as error:
                self.note(f"{case.row_name} at {case.context} tokens: {str(error).splitlines()[0]}; left out")
            self._took(case.kind, started)

    def _longest_past(self, group: Group, cases: list[Case], own_tokens: int) -> int | None:
        """The longest context of the cases whose blocks fit the host's memory."""
        layout = group.layout
        free = self.options.host_memory or HOST_SHARE * psutil.virtual_memory().available
        for context in sorted({case.context for case in cases if case.context}, reverse=True):
            if layout.num_blocks(context + own_tokens) * layout.page_bytes <= free:
                return context
            self.note(f"{group.methods[0].name}: no host memory for {context} tokens")
        return None

    def _took(self, kind: Kind, started: float) -> None:
        self._longest_s[kind] = max(self._longest_s.get(kind, 0.0), time.monotonic() - started)

    def _has_time(self, kind: Kind, what: str) -> bool:
        """Whether a case as long as the longest of its kind so far still fits."""
        if self._clock.left_s > self._longest_s.get(kind, 0.0):
            return True
        self.note(f"time is over before {what}")
        return False
