"""The type that a prompt's attention computes in: on a CPU, bfloat16 only where a trial shows that it is faster."""

from __future__ import annotations

from functools import cache

import torch

from moorage.kernels.prefill_attention import attend_dense
from moorage.workers.gpu.engine.timing import least_seconds

WORTH = 1.2
"""How much faster bfloat16 must be: with less, the precision of float32 is worth more."""
_HEADS, _TOKENS, _DIM = 4, 256, 64


def attention_dtype(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """The type of prefill's queries, keys and values for weights of a type; sums and softmax are in float32.

    A GPU takes the type of the weights. A CPU computes in float32, or in bfloat16 where the weights have that type
    and its products are faster here.
    """
    if device.type != "cpu":
        return weights
    if weights == torch.bfloat16 and bfloat16_speed(torch.get_num_threads()) >= WORTH:
        return torch.bfloat16
    return torch.float32


@cache
def bfloat16_speed(num_threads: int) -> float:  # noqa: ARG001  # another number is measured anew
    """How many times faster than in float32 this CPU attends in bfloat16; some milliseconds, once in a process."""
    return _seconds(torch.float32) / _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    heads = torch.zeros(_HEADS, _TOKENS, _DIM, dtype=dtype)
    return least_seconds(lambda: attend_dense(heads, heads, heads, 1.0), heads.device)
