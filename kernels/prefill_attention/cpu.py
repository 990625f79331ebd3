"""Dense attention on the CPU: by the compiled kernel, or by torch's flash attention where that serves."""

from __future__ import annotations

import torch

from moorage.kernels.prefill_attention import compiled, flash

Band = tuple[int, int]
Partial = tuple[torch.Tensor, torch.Tensor]


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
    if compiled.supports(q.dtype, scale):
        return compiled.attend_dense(q, k, v, scale, band, q_start, k_start, softcap, held)
    assert held is None
    return flash.attend_dense(q, k, v, scale, band, q_start, k_start, softcap)


def carries(q: torch.Tensor, scale: float) -> bool:
    """See the package."""
    return compiled.supports(q.dtype, scale)
