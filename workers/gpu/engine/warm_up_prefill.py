"""Compiles, or loads from the disk cache, the kernels that prefill a prompt on a CPU."""

from __future__ import annotations

import torch

from moorage.kernels.numba_flags import always_parallel
from moorage.kernels.prefill_attention import attend_dense
from moorage.kernels.rms_norm import add_rms_norm
from moorage.kernels.rotation import rotate_tokens

_TOKENS, _HEADS, _DIM = 3, 2, 16


def warm_up_prefill(dtype: torch.dtype) -> None:
    """Attention and rotation in float32 and in `dtype`, and the norm of hidden states of `dtype`."""
    for kind in {torch.float32, dtype} - {torch.float16}:
        _run(kind)
        with always_parallel():
            _run(kind)


def _run(dtype: torch.dtype) -> None:
    heads, angles = torch.zeros(_TOKENS, _HEADS, _DIM, dtype=dtype), torch.zeros(_TOKENS, _DIM // 2)
    turned = rotate_tokens(heads.transpose(0, 1), angles, angles)
    attend_dense(turned, turned, turned, 1.0)
    rows = heads.flatten(1)
    add_rms_norm(rows, rows, torch.zeros(rows.shape[1]), 1.0)
