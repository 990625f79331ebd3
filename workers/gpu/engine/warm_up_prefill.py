"""Compiles, or loads from the disk cache, the kernels that prefill a prompt on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from moorage.kernels.numba_flags import in_both_ways
from moorage.kernels.prefill_attention import attend_dense
from moorage.kernels.rms_norm import add_rms_norm
from moorage.kernels.rotation import rotate_tokens

_TOKENS, _HEADS, _DIM = 3, 2, 16


def prefill_uses(dtype: torch.dtype) -> list[Callable[[], None]]:
    """A function for float32, and one for `dtype`, if it differs: attention, rotation and norm of hidden states."""
    kinds = [torch.float32, *([dtype] if dtype not in (torch.float16, torch.float32) else [])]
    return [partial(in_both_ways, partial(_run, kind)) for kind in kinds]


def _run(dtype: torch.dtype) -> None:
    heads, angles = torch.zeros(_TOKENS, _HEADS, _DIM, dtype=dtype), torch.zeros(_TOKENS, _DIM // 2)
    turned = rotate_tokens(heads.transpose(0, 1), angles, angles)
    attend_dense(turned, turned, turned, 1.0)
    rows = heads.flatten(1)
    add_rms_norm(rows, rows, torch.zeros(rows.shape[1]), 1.0)
