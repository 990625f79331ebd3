"""The activation functions of a feed-forward part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from moorage.workers.spec import Activation

Gated = Callable[[Tensor], Tensor]
"""[..., 2 I], the gate's channels before the others -> [..., I]."""

SWISH_SLOPE, SWISH_LIMIT = 1.702, 7.0
"""Constants of Activation.CLAMPED_SWISH."""


def gated(activation: Activation) -> Gated:
    """The function that weights one half of the channels by the activated other half."""
    match activation:
        case Activation.SILU:
            return _silu
        case Activation.GELU_TANH:
            return _gelu_tanh
        case Activation.CLAMPED_SWISH:
            return _clamped_swish


def _silu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)


def _gelu_tanh(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gelu(gate, approximate="tanh").mul_(up)


def _clamped_swish(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.clamp(max=SWISH_LIMIT)
    return torch.sigmoid(gate * SWISH_SLOPE).mul_(gate).mul_(up.clamp(-SWISH_LIMIT, SWISH_LIMIT).add_(1))
