"""The usage record of a request, from what it has counted and timed."""

from __future__ import annotations

import numpy as np

from moorage.runtime.serving.request import Request
from moorage.runtime.serving.usage import Usage


def usage_of(request: Request, now_s: float) -> Usage:
    """The final record of a request that ends at `now_s` of its clock."""
    first = request.token_s[0] if request.token_s else None
    gaps = np.diff(request.token_s)
    admitted = request.admitted_s if request.admitted_s is not None else now_s
    prefill_s = (request.prefilled_s if request.prefilled_s is not None else now_s) - admitted
    return Usage(
        prompt_tokens=len(request.prompt),
        cached_tokens=request.cached_tokens,
        completion_tokens=len(request.generated),
        queue_s=admitted - request.arrived_s,
        time_to_first_token_s=first - request.arrived_s if first is not None else None,
        prefill_tokens_per_s=(len(request.prompt) - request.cached_tokens) / prefill_s
        if prefill_s > 0
        else None,
        decode_tokens_per_s=float(1 / gaps.mean()) if len(gaps) and gaps.mean() > 0 else None,
        total_s=now_s - request.arrived_s,
        dram_bytes=request.dram_bytes,
        chosen_blocks=_mean(request.chosen_blocks),
        chosen_keys=_mean(request.chosen_keys) if request.memory.selection.topk_keys else None,
        preset_differs=request.preset_differs,
        budget_tokens=request.memory.budget_tokens(request.block_size),
        recall=_mean(request.recall),
        inter_token_p50_s=float(np.quantile(gaps, 0.5)) if len(gaps) else None,
        inter_token_p99_s=float(np.quantile(gaps, 0.99)) if len(gaps) else None,
        drafted_tokens=request.drafted_tokens,
        accepted_tokens=request.accepted_tokens,
        beyond_tokens=request.reach.beyond(len(request.prompt) + len(request.generated)),
        recall_p5=float(np.percentile(request.recall_by_head, 5)) if request.recall_by_head else None,
    )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
