"""Seconds of one chunk of a prompt behind pasts of several lengths, and of a whole prompt by the trapezoid rule."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from statistics import median

from moorage.runtime.bench.gpu.cases import Case
from moorage.runtime.bench.gpu.rig import Rig
from moorage.runtime.bench.report import Row
from moorage.workers.spec import Segment, StepPlan

ROUNDS = 3


def measure_chunks(rig: Rig, case: Case) -> float:
    """Median seconds of the same chunk behind `case.context` tokens, after one that warms up."""
    chunk, vocab_size = rig.options.chunk_tokens, rig.model.vocab_size
    ids = tuple(2 + i % (vocab_size - 2) for i in range(chunk))
    engine = rig.engine(case.method, 1, case.method.memory.selection.topk or 0)
    seconds = []
    for _ in range(ROUNDS + 1):
        rig.open(engine, case.method, case.context, 1, prompt_tokens=case.context + chunk + 1)
        start = time.perf_counter()
        rig.step(engine, StepPlan(1, segments=(Segment(1, case.context, ids, sample=False),)))
        seconds.append(time.perf_counter() - start)
        engine.step(StepPlan(2, drops=(1,)))
    return median(seconds[1:])


def prefill_row(rig: Rig, case: Case, costs: Mapping[int, float]) -> Row:
    """A prompt of `case.context` tokens; `costs` are the seconds of a chunk by the tokens before it, 0 among them."""
    context, chunk = case.context, rig.options.chunk_tokens
    depths = sorted(depth for depth in costs if depth <= context)
    whole = sum((costs[a] + costs[b]) / 2 * (b - a) / chunk for a, b in pairwise(depths))
    model, weights = rig.model, rig.decoder.weights
    # Rows of the embedding are copied, and the head computes the prompt's last token alone.
    outside = (weights.embed, weights.lm_head)
    computed = sum(t.numel() for t in weights.tensors() if not any(t is other for other in outside))
    attention = 2 * context * model.num_heads * model.head_dim * model.num_layers
    floor = context * (2 * computed + (attention if case.exact else 0)) / rig.ceilings.flops
    values = {"tokens_per_s": context / whole, "chunk_s": costs[context], **rig.memory_values()}
    return Row(case.row_name, whole, context, ratio_to_limit=floor / whole, values=values)
