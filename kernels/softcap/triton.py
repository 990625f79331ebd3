"""Soft caps of logits within Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def capped(logits, softcap):
    """softcap * tanh(logits / softcap); logits that are -inf, or far from 0, lie at the ends."""
    return softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)
