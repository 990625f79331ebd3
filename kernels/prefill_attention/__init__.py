"""Attention of many queries over dense keys, with its log-sum-exp."""

from __future__ import annotations

import torch

from moorage.kernels.prefill_attention import cpu, gpu
from moorage.kernels.triton_support import has_triton


def attend_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    band: tuple[int, int] | None = None,
    q_start: int = 0,
    k_start: int = 0,
    softcap: float = 0.0,
    held: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out f32 [Hq, T, D], lse f32 [Hq, T]) of q [Hq, T, D] over k, v [Hkv, N, D], on their device.

    The key at k_start + c is visible to the query at q_start + r if band is None or
    band[0] <= (q_start + r) - (k_start + c) < band[1]. A softcap c other than 0
    makes a scaled logit x to c * tanh(x / c). A row that sees no key has out 0 and lse -inf. Raises
    ValueError if shapes or types do not fit.

    `held` is the result of the same queries over other keys: it is overwritten, and the result is of all these keys
    together. Only for queries that `carries` is true of.
    """
    shapes_fit = k.shape == v.shape and q.shape[2] == k.shape[2] and q.shape[0] % k.shape[0] == 0
    if not shapes_fit or not q.dtype == k.dtype == v.dtype:
        kinds = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (q, k, v))
        raise ValueError(f"q, k, v: {kinds}; expected one type, [Hq, T, D], [Hkv, N, D] and the same")
    arguments = q, k, v, scale, band, q_start, k_start, softcap
    if q.device.type == "cpu":
        return cpu.attend_dense(*arguments, held)
    assert held is None
    if q.device.type == "cuda" and has_triton():
        from moorage.kernels.prefill_attention import triton

        return triton.attend_dense(*arguments)
    return gpu.attend_dense(*arguments)


def carries(q: torch.Tensor, scale: float) -> bool:
    """Whether `attend_dense` takes what is held of these queries, which is cheaper than merging results."""
    return q.device.type == "cpu" and cpu.carries(q, scale)


__all__ = ["attend_dense", "carries"]
