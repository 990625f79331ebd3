"""Dense attention on a CPU by register tiles: products of bfloat16 pairs or of float32, a softmax in fp32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from moorage.kernels.numba_flags import num_workers
from moorage.kernels.prefill_attention.online import Problem, attend_share, pack_share
from moorage.kernels.prefill_attention.packing import PANEL, padded, word_counts
from moorage.kernels.prefill_attention.tiles import HAS_PAIRS
from moorage.kernels.threads import run_by_threads

Band = tuple[int, int]
Partial = tuple[torch.Tensor, torch.Tensor]

_FOREVER = 1 << 61
_LOGIT_BYTES = 16
"""Of `num_workers`, for each logit: it costs about as much as so much memory traffic."""


def supports(dtype: torch.dtype, scale: float) -> bool:
    """Whether inputs of this type can be attended here."""
    return scale > 0 and (dtype == torch.float32 or (dtype == torch.bfloat16 and HAS_PAIRS))


def attend_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    band: Band | None = None,
    q_start: int = 0,
    k_start: int = 0,
    softcap: float = 0.0,
    held: Partial | None = None,
) -> Partial:
    """See the package."""
    num_heads, num_rows, dim = q.shape
    low, high = (-_FOREVER, _FOREVER) if band is None else (max(band[0], -_FOREVER), min(band[1], _FOREVER))
    num_keys = max(0, min(k.shape[1], q_start + num_rows - low - k_start))
    out, lse = _results(q, held)
    if not q.numel() or not num_keys:
        return out, lse
    (words, beside), panels, heads = word_counts(dim, q.element_size()), -(-num_keys // PANEL), len(k)
    like: Any = np.uint16(0) if q.dtype == torch.bfloat16 else np.float32(0)
    problem = Problem(
        *_words(q), *_words(k), *_elements(v), num_keys, (low, high), q_start, k_start,
        _factors(scale, softcap), np.empty((heads, panels, words, PANEL), np.uint32),
        np.empty((heads, panels, PANEL // beside, padded(dim), beside), like.dtype),
        out.transpose(0, 1).numpy(), lse.numpy(), held is not None,
    )  # fmt: skip
    counters = np.zeros((2, 1), np.int64)
    workers = num_workers(_LOGIT_BYTES * num_heads * num_rows * num_keys)
    run_by_threads(lambda: pack_share(counters[0], problem), workers)
    run_by_threads(lambda: attend_share(like, counters[1], problem), workers)
    return out, lse


def _factors(scale: float, softcap: float) -> tuple[Any, Any, Any]:
    """(factor inside a soft cap, 0 without one; factor outside; factor of what comes out), in powers of two."""
    log2_e = math.log2(math.e)
    inside, outside, factor = (
        (scale / softcap, softcap * log2_e, 1.0) if softcap else (0.0, 0.0, scale * log2_e)
    )
    return np.float32(inside), np.float32(outside), np.float32(factor)


def _results(q: torch.Tensor, held: Partial | None) -> Partial:
    """Where results go: out as a view of [T, Hq, D]."""
    num_heads, num_rows, dim = q.shape
    if held is not None and held[0].transpose(0, 1).is_contiguous() and held[1].is_contiguous():
        return held
    out = torch.zeros(num_rows, num_heads, dim).transpose(0, 1)
    lse = torch.full((num_heads, num_rows), -math.inf)
    if held is not None:
        out.copy_(held[0])
        lse.copy_(held[1])
    return out, lse


def _flat(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """All elements from the first to the last in one piece, and the strides of heads and rows."""
    beside = 4 // tensor.element_size()
    is_whole = tensor.data_ptr() % 4 == 0 and all(stride % beside == 0 for stride in tensor.stride()[:2])
    if tensor.stride(2) != 1 or not is_whole or tensor.shape[2] % beside:
        dim = tensor.shape[2]
        wider = tensor.new_zeros((*tensor.shape[:2], -(-dim // beside) * beside))
        wider[..., :dim] = tensor
        tensor = wider
    size = 1 + sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((size,), (1,)), (tensor.stride(0), tensor.stride(1))


def _words(tensor: torch.Tensor) -> tuple[Any, tuple[int, int]]:
    flat, strides = _flat(tensor)
    beside = 4 // tensor.element_size()
    words = flat.view(torch.int32).numpy().view(np.uint32)
    return words, (strides[0] // beside, strides[1] // beside)


def _elements(tensor: torch.Tensor) -> tuple[Any, tuple[int, int]]:
    flat, strides = _flat(tensor)
    if tensor.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16), strides
    return flat.numpy(), strides
