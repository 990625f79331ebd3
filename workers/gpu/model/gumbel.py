"""Seeded Gumbel noise: element i of a stream is a pure function of the stream's key and i, on every device.

The uniform numbers below are those of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), in torch's wrapping int64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moorage.workers.gpu.transfer.host_copy import on_device

_MASK = 2**64 - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_UNIFORM_BITS = 52
"""Odd multiples of 2**-53 lie symmetrically within (0, 1), and float64 holds each of them."""


def noise_stream(seed: int, step: int) -> int:
    """Key of the noise of one draw: a 64-bit hash of seed and step."""
    return _mix(_mix(seed & _MASK) + (step + 1) * _STEP & _MASK)


def gumbel_noise(streams: Sequence[int], count: int, device: torch.device) -> Tensor:
    """[n, count] float64: the first `count` elements of each stream.

    A token's noise does not depend on how many tokens there are, nor on the other streams.
    """
    return noise_at(streams, torch.arange(count, dtype=torch.int64, device=device)[None])


def noise_at(streams: Sequence[int], places: Tensor) -> Tensor:
    """[n, m] float64: the elements at `places`, int64 [n or 1, m], of each stream."""
    keys = on_device([_signed(key) for key in streams], torch.int64, places.device)[:, None]
    state = (places + 1) * _signed(_STEP) + keys
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        state = (state ^ _shifted(state, shift)).mul_(_signed(factor))
    bits = _shifted(state ^ _shifted(state, 31), 64 - _UNIFORM_BITS)
    uniform = bits.to(torch.float64).mul_(2.0).add_(1.0).mul_(2.0 ** -(_UNIFORM_BITS + 1))
    return uniform.log_().neg_().log_().neg_()


def _shifted(values: Tensor, count: int) -> Tensor:
    """A shift to the right that moves zeros in, which int64 has no operation for."""
    return (values >> count).bitwise_and_((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _mix(value: int) -> int:
    """SplitMix64's finaliser."""
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)
