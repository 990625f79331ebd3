"""Excludes unlikely tokens before a draw: min-p, then top-k, then top-p."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moorage.workers.gpu.transfer.host_copy import on_device
from moorage.workers.spec import SamplingSpec

MOST_KEPT = 1024
"""Likeliest tokens that are put in order where these are enough: a whole vocabulary takes milliseconds on a CPU."""


def truncate(logits: Tensor, specs: Sequence[SamplingSpec]) -> Tensor:
    """`logits` [n, V] with -inf for the excluded tokens of each row; ties at the k-th logit all stay."""
    if any(spec.min_p > 0 for spec in specs):
        floors = _column([math.log(spec.min_p) if spec.min_p > 0 else -math.inf for spec in specs], logits)
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + floors, -math.inf)
    vocab_size = logits.shape[1]
    sizes = [spec.top_k if 0 < spec.top_k < vocab_size else vocab_size for spec in specs]
    if all(size == vocab_size and spec.top_p >= 1 for size, spec in zip(sizes, specs, strict=True)):
        return logits
    top_p = [spec.top_p if spec.top_p < 1 else 2.0 for spec in specs]
    found = None if logits.is_cuda else truncate_likeliest(logits, sizes, top_p)
    return truncate_sorted(logits, sizes, top_p) if found is None else found


def truncate_sorted(logits: Tensor, sizes: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """The `sizes` likeliest tokens of each row, of which those stay before which less than `top_p` of the mass lies.

    All tokens are put in order.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    cutoffs = ordered.gather(1, on_device(sizes, torch.int64, logits.device)[:, None] - 1)
    logits, ordered = (part.masked_fill(part < cutoffs, -math.inf) for part in (logits, ordered))
    if min(top_p) >= 1:
        return logits
    excluded = _beyond(ordered.softmax(-1, dtype=torch.float64), top_p)
    return logits.masked_fill(torch.empty_like(excluded).scatter_(1, order, excluded), -math.inf)


def truncate_likeliest(logits: Tensor, sizes: Sequence[int], top_p: Sequence[float]) -> Tensor | None:
    """`truncate_sorted` by the MOST_KEPT likeliest tokens; None where these do not suffice."""
    vocab_size = logits.shape[1]
    if vocab_size <= 2 * MOST_KEPT or any(MOST_KEPT < size < vocab_size for size in sizes):
        return None
    if any(size == vocab_size and share >= 1 for size, share in zip(sizes, top_p, strict=True)):
        return None  # a row of which all tokens stay
    places = logits.topk(MOST_KEPT, dim=-1).indices.sort(dim=-1).values
    ordered, order = logits.gather(1, places).sort(dim=-1, descending=True, stable=True)
    least = ordered[:, -1:].clone()
    at_most = on_device([min(size, MOST_KEPT) for size in sizes], torch.int64, logits.device)[:, None]
    is_whole = (
        on_device([float(size == vocab_size) for size in sizes], logits.dtype, logits.device)[:, None] > 0
    )
    cutoffs = ordered.gather(1, at_most - 1).masked_fill(is_whole, -math.inf)
    ordered = ordered.masked_fill(ordered < cutoffs, -math.inf)
    if min(top_p) < 1:
        weights = (ordered.double() - ordered[:, :1].double()).exp()
        total = weights.sum(-1, keepdim=True)
        if bool(is_whole.any()):
            whole = (logits.double() - ordered[:, :1].double()).exp().sum(-1, keepdim=True)
            total = torch.where(is_whole, whole, total)
        ordered = ordered.masked_fill(_beyond(weights / total, top_p), -math.inf)
    kept = ordered.masked_fill(ordered == -math.inf, math.inf).amin(-1, keepdim=True)
    if not bool((kept > least).all()):
        return None  # tokens as likely as the last one that stays may be missing
    return torch.full_like(logits, -math.inf).scatter_(1, places.gather(1, order), ordered)


def _beyond(probs: Tensor, top_p: Sequence[float]) -> Tensor:
    """Which tokens in order have `top_p` of the mass before them; never the first."""
    excluded = probs.cumsum(-1) - probs >= _column(top_p, probs)
    excluded[:, 0] = False
    return excluded


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return on_device(values, like.dtype, like.device)[:, None]
