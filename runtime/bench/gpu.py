"""`bench gpu`: decode and prefill of a 7B shape with the KV cache in DRAM, each beside what the machine allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import TypeVar

import psutil
import torch

from moorage.runtime.bench.gpu_cases import Group, Method, cached_blocks, decode_cases, groups
from moorage.runtime.bench.gpu_ceilings import measure_ceilings, synchronize
from moorage.runtime.bench.gpu_model import SHAPES, TINY, SharedPastStore, WalkingDecoder
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import use_threads
from moorage.runtime.sizing import Deployment, workspace_bytes
from moorage.workers.errors import MoorageError
from moorage.workers.gpu.copy_engine import copy_engine
from moorage.workers.gpu.engine import Engine
from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.sizes import piece_blocks, slots_per_layer
from moorage.workers.spec import OpenSession, SamplingSpec, Segment, StepPlan, StepResult

PARTS = ("linear", "select", "gather", "attend", "append", "importance", "sample")
WARM_STEPS = 24
CASE_S = 12.0
"""Longest time for the steps of one case."""
OWN_TOKENS = 512
"""Room of a session behind its past."""
HOST_SHARE = 0.8
"""Of the free host memory that a past may take."""
Note = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and for how long."""

    device: torch.device
    shape: str
    contexts: Sequence[int]
    prefill_contexts: Sequence[int]
    batches: Sequence[int]
    device_memory: int
    chunk_tokens: int
    steps: int
    budget_s: float
    threads: int


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


class Bench:
    """One run over all groups; it stops between two measurements when its time is over."""

    def __init__(self, options: Options, note: Note, clock: Clock | None = None) -> None:
        self._options, self._note = options, note
        self._clock = clock or Clock(options.budget_s)
        self._model = SHAPES[options.shape]
        self._cuda = options.device.type == "cuda"
        self._longest_case_s = 0.0

    def rows(self) -> Iterator[Row]:
        """Ceilings first, then decode and prefill of each group."""
        options = self._options
        use_threads(options.threads)
        dtype = getattr(torch, self._model.dtype)
        size = 1 << 30 if self._cuda else 1 << 24
        self._ceilings, ceilings = measure_ceilings(options.device, dtype, options.threads, size)
        yield from ceilings
        self._decoder = WalkingDecoder.random(self._model, options.device)
        for group in groups(self._model, 16 if self._model is TINY else 1):
            if not self._has_time("filling a store"):
                return
            yield from self._group(group)

    def _group(self, group: Group) -> Iterator[Row]:
        options, layout = self._options, group.layout
        own = max(options.batches) * OWN_TOKENS + 2 * options.chunk_tokens
        longest = self._longest_past(group, own)
        if longest is None:
            return
        started = time.monotonic()
        store = SharedPastStore(layout, longest, own + 4 * layout.block_size, options.threads)
        self._kv = ShardedKv([LocalLink(store)], layout)
        self._copies = copy_engine(self._kv, layout, options.device, piece_blocks(layout, not self._cuda))
        seconds = time.monotonic() - started
        size = layout.num_blocks(longest) * layout.page_bytes
        yield Row(f"fill-{group.methods[0].name}", seconds, longest, options.threads, bytes=size)
        try:
            contexts = [context for context in options.contexts if context <= longest]
            for method, context, batch in decode_cases(group.methods, contexts, options.batches):
                if not self._has_time(f"{method.name} at {context} tokens, batch {batch}"):
                    return
                yield from self._timed(partial(self._decode, store, method, context, batch))
            if group.methods[0].name == "moorage":
                yield from self._prefills(store, group.methods[0], longest)
        finally:
            self._copies.close()
            store.close()

    def _longest_past(self, group: Group, own_tokens: int) -> int | None:
        """The longest asked context whose blocks fit the host's free memory."""
        layout = group.layout
        wanted = sorted({*self._options.contexts, *self._options.prefill_contexts}, reverse=True)
        free = HOST_SHARE * psutil.virtual_memory().available
        for context in wanted:
            if layout.num_blocks(context + own_tokens) * layout.page_bytes <= free:
                return context
            self._note(f"{group.methods[0].name}: no host memory for {context} tokens")
        return None

    def _decode(self, store: SharedPastStore, method: Method, context: int, batch: int) -> Iterator[Row]:
        budget, whole = self._options.device_memory, self._whole_memory()
        room = self._room_slots(store, whole if method.resident else budget)
        cached = cached_blocks(method, store.layout, context, batch, room)
        over = cached is None
        if cached is None:
            cached = cached_blocks(method, store.layout, context, batch, self._room_slots(store, whole))
            if cached is None:
                self._note(f"decode-{method.name}-b{batch} {context}: does not fit the device; left out")
                return
            cached = min(cached, 2 * (method.memory.topk or 0))
        engine = self._engine(store, method, batch, cached)
        yield self._measure_decode(engine, store, method, context, batch, over)

    def _measure_decode(
        self, engine: Engine, store: SharedPastStore, method: Method, context: int, batch: int, over: bool
    ) -> Row:
        self._open(engine, store, method, context, batch)
        results, seconds, number = [], [], 0
        deadline = time.monotonic() + min(CASE_S, max(1.0, self._clock.left_s / 4))
        for number in range(WARM_STEPS + self._options.steps):
            start = time.perf_counter()
            results.append(self._step(engine, _decode_plan(context + number, batch)))
            seconds.append(time.perf_counter() - start)
            if time.monotonic() > deadline and number >= 2:
                break
        busy = self._busy_share(lambda: self._step(engine, _decode_plan(context + number + 1, batch)))
        warm = min(WARM_STEPS, len(results) - 1)
        engine.step(StepPlan(0, drops=tuple(range(1, batch + 1))))
        values = {
            "batch": batch,
            "slots_gib": engine.slots_bytes / 2**30,
            "over_device_memory": float(over),
            "peak_gib": self._peak_gib(),
            **busy,
        }
        return self._decode_row(store, method, context, results[warm:], median(seconds[warm:]), values)

    def _decode_row(
        self,
        store: SharedPastStore,
        method: Method,
        context: int,
        results: Sequence[StepResult],
        step_s: float,
        values: dict[str, float],
    ) -> Row:
        layout, count, batch = store.layout, len(results), int(values["batch"])
        hits, misses = (sum(getattr(r, name) for r in results) for name in ("cache_hits", "cache_misses"))
        attended = (hits + misses) / count
        streamed = 0.0
        if method.memory.topk is None and not method.resident:
            streamed = max(0.0, batch * layout.num_layers * layout.num_blocks(context) - attended)
        moved = (misses / count + streamed) * layout.block_bytes
        read = self._decoder.weights.num_bytes + (attended + streamed) * layout.block_bytes
        floor = max(read / self._ceilings.device_bytes_per_s, moved / self._ceilings.link_bytes_per_s)
        parts = {f"{part}_ms": 1e3 * median(r.part_s.get(part, 0.0) for r in results) for part in PARTS}
        values |= {
            "tokens_per_s": batch / step_s,
            "hit_rate": hits / max(1, hits + misses),
            "moved_mb_per_token": moved / batch / 1e6,
            "ceiling_tokens_per_s": batch / floor,
            **parts,
        }
        name = f"decode-{method.name}-b{batch}"
        return Row(name, step_s, context, self._options.threads, int(moved), floor / step_s, values=values)

    def _busy_share(self, step: Callable[[], object]) -> dict[str, float]:
        """Share of one step in which the device had anything to do; on a GPU alone."""
        if not self._cuda:
            return {}
        kind = torch.profiler.ProfilerActivity.CUDA
        with torch.profiler.profile(activities=[kind]) as profile:
            start = time.perf_counter()
            step()
            seconds = time.perf_counter() - start
        spans = sorted((e.time_range.start, e.time_range.end) for e in profile.events())
        busy_us, reached = 0.0, 0.0
        for begin, end in spans:
            busy_us += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return {"device_busy": busy_us / 1e6 / seconds}

    def _prefills(self, store: SharedPastStore, method: Method, longest: int) -> Iterator[Row]:
        """Seconds of one chunk behind growing pasts, and of a whole prompt by the trapezoid rule over them."""
        options = self._options
        chunk = options.chunk_tokens
        selected = replace(method.memory, exc_block_size=512)
        for name, memory in (("exact", method.memory), ("selected", selected)):
            costs: dict[int, float] = {}
            for depth in (0, *options.prefill_contexts):
                if depth > longest or not self._has_time(f"prefill {name} behind {depth} tokens"):
                    break
                case = Method(f"prefill-{name}", memory)
                found = self._timed(partial(self._chunks, store, case, depth))
                if not found:
                    break
                costs[depth] = min(found)
                if depth:
                    yield self._prefill_row(name, depth, chunk, costs)

    def _chunks(self, store: SharedPastStore, method: Method, depth: int) -> Iterator[float]:
        """Seconds of the same chunk, run twice after one that warms up."""
        chunk = self._options.chunk_tokens
        engine = self._engine(store, method, 1, method.memory.topk or 0)
        for number in range(3):
            self._open(engine, store, method, depth, 1, prompt_tokens=depth + chunk + 1)
            ids = tuple(2 + i % (self._model.vocab_size - 2) for i in range(chunk))
            segment = Segment(1, depth, ids, sample=False)
            start = time.perf_counter()
            self._step(engine, StepPlan(1, segments=(segment,)))
            if number:
                yield time.perf_counter() - start
            engine.step(StepPlan(2, drops=(1,)))

    def _prefill_row(self, name: str, context: int, chunk: int, costs: dict[int, float]) -> Row:
        depths = sorted(costs)
        whole = sum((costs[a] + costs[b]) / 2 * (b - a) / chunk for a, b in pairwise(depths))
        model = self._model
        linear = 2 * (self._decoder.weights.num_bytes // self._decoder.dtype.itemsize)
        attention = 2 * context * model.num_heads * model.head_dim * model.num_layers
        floor = context * (linear + (attention if name == "exact" else 0)) / self._ceilings.flops
        values = {"tokens_per_s": context / whole, "chunk_s": costs[context], "peak_gib": self._peak_gib()}
        return Row(f"prefill-{name}", whole, context, ratio_to_limit=floor / whole, values=values)

    def _engine(self, store: SharedPastStore, method: Method, batch: int, cached: int) -> Engine:
        options, layout = self._options, store.layout
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(options.device)
        slots = batch * layout.num_layers * slots_per_layer(method.memory, layout, cached)
        settings = EngineSettings(
            slots,
            max_cached_block=cached,
            score_on=method.score_on,
            attend_on=method.attend_on,
            in_place=False,
        )
        return Engine(self._decoder, self._model, layout, self._kv, options.device, settings, self._copies)

    def _open(
        self,
        engine: Engine,
        store: SharedPastStore,
        method: Method,
        context: int,
        batch: int,
        prompt_tokens: int | None = None,
    ) -> None:
        """Opens `batch` sessions that already hold `context` tokens of the past."""
        store.share(context)
        total = (prompt_tokens or context) + OWN_TOKENS
        opens = tuple(
            OpenSession(i, total, prompt_tokens or context, method.memory, SamplingSpec())
            for i in range(1, batch + 1)
        )
        self._step(engine, StepPlan(0, opens=opens))
        for session in engine.sessions.values():
            session.num_tokens = context
        self._decoder.start(batch)

    def _step(self, engine: Engine, plan: StepPlan) -> StepResult:
        result = engine.step(plan)
        synchronize(self._options.device)
        for segment in result.segments:
            if segment.error is not None:
                raise segment.error
        return result

    def _whole_memory(self) -> int:
        """Bytes of the device, less a part for the runtime and other tensors."""
        if not self._cuda:
            return self._options.device_memory
        return int(0.9 * torch.cuda.get_device_properties(self._options.device).total_memory)

    def _room_slots(self, store: SharedPastStore, memory_bytes: int) -> int:
        """Slots that `memory_bytes` of the device leave beside weights and workspace."""
        layout, options = store.layout, self._options
        memory = groups(self._model)[0].methods[0].memory
        deployment = Deployment(
            self._model,
            layout,
            memory,
            "auto",
            not self._cuda,
            max_running=max(options.batches),
            max_step_tokens=512,
        )
        room = memory_bytes - self._decoder.weights.num_bytes - workspace_bytes(deployment)
        return max(0, room // layout.block_bytes)

    def _peak_gib(self) -> float:
        if not self._cuda:
            return 0.0
        return torch.cuda.max_memory_allocated(self._options.device) / 2**30

    def _timed(self, run: Callable[[], Iterator[T]]) -> list[T]:
        started = time.monotonic()
        try:
            return list(run())
        except (MoorageError, torch.OutOfMemoryError) as error:
            self._note(f"left out: {str(error).splitlines()[0]}")
            return []
        finally:
            self._longest_case_s = max(self._longest_case_s, time.monotonic() - started)

    def _has_time(self, what: str) -> bool:
        """Whether a case as long as the longest so far still fits."""
        if self._clock.left_s > self._longest_case_s:
            return True
        self._note(f"time is over before {what}")
        return False


def _decode_plan(position: int, batch: int) -> StepPlan:
    segments = (Segment(i, position, (position % 97 + 2,), sample=True) for i in range(1, batch + 1))
    return StepPlan(position, segments=tuple(segments))
