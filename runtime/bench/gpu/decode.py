"""Seconds of a generated token for each session of a batch, in the steady state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch._C._autograd import DeviceType

from moorage.runtime.bench.gpu.cases import Case, cached_blocks
from moorage.runtime.bench.gpu.rig import Rig
from moorage.runtime.bench.report import Row
from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.engine.engine import Engine
from moorage.workers.spec import Segment, StepPlan, StepResult

PARTS = ("linear", "select", "gather", "attend", "append", "importance", "sample")
WARM_STEPS = 24
"""Steps before the first that counts: kernels compile, graphs are recorded, and the slots fill."""
STREAMED_STEPS = 3
"""Steps, and as many before them, of a method that streams all of the past in every step."""


def measure_decode(rig: Rig, case: Case) -> Row:
    """One row. Raises ResourceExhausted where the sessions do not fit the device."""
    method, batch = case.method, case.batch
    asked = rig.slots_in(rig.whole_memory() if method.resident else rig.options.device_memory)
    cached = cached_blocks(method, rig.store.layout, case.context, batch, asked)
    over = cached is None
    if cached is None:
        cached = cached_blocks(
            method, rig.store.layout, case.context, batch, rig.slots_in(rig.whole_memory())
        )
        if cached is None:
            raise ResourceExhausted(f"{batch} sessions do not fit the device")
        cached = min(cached, 2 * (method.memory.selection.topk or 0))
    engine = rig.engine(method, batch, cached)
    rig.open(engine, method, case.context, batch)
    try:
        return _steady(rig, engine, case, over)
    finally:
        engine.step(StepPlan(0, drops=tuple(range(1, batch + 1))))


def _steady(rig: Rig, engine: Engine, case: Case, over: bool) -> Row:
    warm, count = (STREAMED_STEPS,) * 2 if case.streamed else (WARM_STEPS, rig.options.steps)
    for number in range(warm):
        rig.step(engine, _plan(case, number))
    results, seconds, left_before = [], [], _left_to_host(engine)
    for number in range(warm, warm + count):
        start = time.perf_counter()
        results.append(rig.step(engine, _plan(case, number)))
        seconds.append(time.perf_counter() - start)
    left = (_left_to_host(engine) - left_before) / count
    values = {
        "batch": case.batch,
        "slots_gib": engine.slots_bytes / 2**30,
        "over_device_memory": float(over),
        "distinct_past": rig.store.distinct_share(case.context, case.batch),
        **rig.memory_values(),
        **_busy_share(rig, lambda: rig.step(engine, _plan(case, warm + count))),
    }
    return _row(rig, case, results, median(seconds), left, values)


def _row(
    rig: Rig,
    case: Case,
    results: Sequence[StepResult],
    step_s: float,
    left: float,
    values: dict[str, float],
) -> Row:
    """`left` blocks a step were attended by the host: they do not travel and the device does not read them."""
    layout, count, batch = rig.store.layout, len(results), case.batch
    hits, misses = (sum(getattr(r, name) for r in results) for name in ("cache_hits", "cache_misses"))
    attended = (hits + misses) / count
    streamed = 0.0
    if case.streamed:
        streamed = max(0.0, batch * layout.num_layers * layout.num_blocks(case.context) - attended)
    moved = (misses / count - left + streamed) * layout.block_bytes
    read = rig.read_bytes(batch) + (attended - left + streamed) * layout.block_bytes
    limits = rig.ceilings
    floor = max(read / limits.device_bytes_per_s, moved / limits.link_bytes_per_s)
    parts = {f"{part}_ms": 1e3 * median(r.part_s.get(part, 0.0) for r in results) for part in PARTS}
    values |= {
        "tokens_per_s": batch / step_s,
        "hit_rate": hits / max(1, hits + misses),
        "moved_mb_per_token": moved / batch / 1e6,
        "host_attended_mb_per_token": left * layout.block_bytes / batch / 1e6,
        "ceiling_tokens_per_s": batch / floor,
        **parts,
    }
    threads = rig.options.threads
    return Row(case.row_name, step_s, case.context, threads, int(moved), floor / step_s, values=values)


def _left_to_host(engine: Engine) -> int:
    return sum(session.cache.num_left for session in engine.sessions.values())


def _busy_share(rig: Rig, step: Callable[[], object]) -> dict[str, float]:
    """Share of one step in which the device had anything to do; on a GPU alone."""
    if not rig.options.cuda:
        return {}
    kind = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[kind]) as profile:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    on_device = [e for e in profile.events() if e.device_type is DeviceType.CUDA]
    busy_us, reached = 0.0, 0.0
    for begin, end in sorted((e.time_range.start, e.time_range.end) for e in on_device):
        busy_us += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return {"device_busy": busy_us / 1e6 / seconds}


def _plan(case: Case, number: int) -> StepPlan:
    position = case.context + number
    tokens = (position % 97 + 2,)
    ids = range(1, case.batch + 1)
    return StepPlan(position, segments=tuple(Segment(i, position, tokens, sample=True) for i in ids))
