"""Short sessions before the first request: no client waits for Triton to compile or for graphs to be recorded."""

from __future__ import annotations

import torch

from moorage.kernels.triton_support import has_triton
from moorage.workers.gpu.engine.engine import Engine
from moorage.workers.spec import (
    KvLayout,
    MemorySpec,
    ModelSpec,
    OpenSession,
    RetentionSpec,
    SamplingSpec,
    Segment,
    SelectionSpec,
    StepPlan,
)

BATCHES = (1, 2, 4, 8)
"""Sessions that decode together. Each needs graphs of its own."""
MOST_PARTS = 128
"""Partial results that one merge joins at most while tokens are generated."""
_FIRST_ID = -1000
"""Requests have positive ids."""


def warm_up_device(engine: Engine, layout: KvLayout, model: ModelSpec, device: torch.device) -> int:
    """Runs prefill and two generated tokens in each batch of `BATCHES`; returns how many batches ran.

    A batch that the stores or the slots have no room for ends the warm-up: no request can run it either. Nothing of
    the sessions stays. Raises whatever else fails in a step.
    """
    for count, batch in enumerate(BATCHES):
        if not _run(engine, layout, batch, _memory(layout, topk=1)):
            return count
    if layout.is_packed:
        # All blocks before the window are streamed, and attended as they are packed.
        _run(engine, layout, 1, _memory(layout, topk=None))
    if device.type == "cuda" and has_triton():
        _merge(model, device)
    return len(BATCHES)


def _run(engine: Engine, layout: KvLayout, batch: int, memory: MemorySpec) -> bool:
    ids = range(_FIRST_ID, _FIRST_ID + batch)
    # The prompt leaves more blocks between the sinks and the window than are selected.
    prompt = (1,) * (5 * layout.block_size)
    opens = tuple(OpenSession(i, len(prompt) + 3, len(prompt), memory, SamplingSpec()) for i in ids)
    plans = [StepPlan(0, (), opens, tuple(Segment(i, 0, prompt, sample=True) for i in ids))]
    for step in range(2):
        segments = tuple(Segment(i, len(prompt) + step, (1,), sample=True) for i in ids)
        plans.append(StepPlan(0, segments=segments))
    try:
        return all(segment.error is None for plan in plans for segment in engine.step(plan).segments)
    finally:
        engine.step(StepPlan(0, drops=tuple(ids)))


def _memory(layout: KvLayout, topk: int | None) -> MemorySpec:
    return MemorySpec(
        preset="warm-up",
        retention=RetentionSpec(sinks=layout.block_size, window=layout.block_size),
        selection=SelectionSpec(topk=topk, dense_until=0),
        recall_every=0,
    )


def _merge(model: ModelSpec, device: torch.device) -> None:
    """Merges of every number of parts, which compile apart."""
    from moorage.kernels.merge_lse.triton import merge_lse

    parts = 2
    while parts <= MOST_PARTS:
        lses = torch.zeros((parts, 1, model.num_heads), device=device)
        merge_lse(torch.zeros((*lses.shape, model.head_dim), device=device), lses)
        parts *= 2
