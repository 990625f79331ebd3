"""Root-mean-square norm, with the residual sum before it."""

from __future__ import annotations

import torch

from moorage.kernels.rms_norm import cpu, gpu
from moorage.kernels.triton_support import has_triton


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Norm of x [..., D] over its last axis, in fp32, rounded before the weight [D] as in transformers.

    The weight may be of x's type or float32.
    """
    if x.is_cuda and has_triton():
        from moorage.kernels.rms_norm import triton

        return triton.rms_norm(x, weight, eps)
    if cpu.supports(x, weight):
        return cpu.rms_norm(x, weight, eps)
    return gpu.rms_norm(x, weight, eps)


def add_rms_norm(x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x += added, then the norm of x; x, added [T, D] contiguous and of one type."""
    if x.is_cuda and has_triton():
        from moorage.kernels.rms_norm import triton

        return triton.add_rms_norm(x, added, weight, eps)
    if cpu.supports(x, weight):
        return cpu.add_rms_norm(x, added, weight, eps)
    return gpu.add_rms_norm(x, added, weight, eps)


def norm_heads(
    heads: torch.Tensor, num_heads: int, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float
) -> None:
    """Norms queries and keys among heads [T, Hq + 2 Hkv, D] in place, each head by the weight [D] of its kind.

    The first Hq = `num_heads` are queries, then come keys, then values, which stay as they are.
    """
    if heads.is_cuda and has_triton():
        from moorage.kernels.rms_norm import triton

        triton.norm_heads(heads, num_heads, q_weight, k_weight, eps)
        return
    end = (num_heads + heads.shape[1]) // 2
    for part, weight in ((heads[:, :num_heads], q_weight), (heads[:, num_heads:end], k_weight)):
        part.copy_(rms_norm(part, weight, eps))


__all__ = ["add_rms_norm", "norm_heads", "rms_norm"]
