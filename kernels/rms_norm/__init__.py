"""Root-mean-square norm, with the residual sum before it."""

from __future__ import annotations

import torch

from moorage.kernels.rms_norm import cpu, gpu
from moorage.kernels.triton_support import has_triton


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Norm of x [..., D] over its last axis, in fp32, rounded before the weight [D] as in transformers."""
    if x.is_cuda and has_triton():
        from moorage.kernels.rms_norm import triton

        return triton.rms_norm(x, weight, eps)
    if x.dtype == torch.float32 and not x.is_cuda:
        return cpu.rms_norm(x, weight, eps)
    return gpu.rms_norm(x, weight, eps)


def add_rms_norm(x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x += added, then the norm of x; x, added [T, D] contiguous and of one type."""
    if x.is_cuda and has_triton():
        from moorage.kernels.rms_norm import triton

        return triton.add_rms_norm(x, added, weight, eps)
    if x.dtype == torch.float32 and not x.is_cuda:
        return cpu.add_rms_norm(x, added, weight, eps)
    return gpu.add_rms_norm(x, added, weight, eps)


__all__ = ["add_rms_norm", "rms_norm"]
