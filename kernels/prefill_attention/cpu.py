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
) -> Partial:
    """See the package."""
    form = compiled if compiled.supports(q.dtype, scale) else flash
    return form.attend_dense(q, k, v, scale, band, q_start, k_start, softcap)
