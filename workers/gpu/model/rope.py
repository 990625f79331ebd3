"""Rotary position embedding of un-rotated queries and keys (RoFormer, arXiv 2104.09864).

Frequencies of every scaling method equal those of transformers' `modeling_rope_utils`, in fp64. Angles are fp64
too, so that positions of several million tokens keep their phase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moorage.kernels.rotation import rotate_tokens
from moorage.workers.spec import MemorySpec, RopeSpec


@dataclass(frozen=True, slots=True)
class RopeView:
    """The angles of positions at one sequence length."""

    inv_freq: Tensor
    """f64 [rotary_dim / 2], radians per token; on the CPU."""
    attention_scale: float
    """Factor on queries and on keys. The softmax scale takes its square; stored keys never have it."""
    unrotated: float = 1.0
    """Factor on the channels of queries that do not rotate, since a scaling of attention is not meant for them."""


def rope_view(spec: RopeSpec, seq_len: int) -> RopeView:
    """The view for a sequence of `seq_len` tokens; dynamic, longrope and `longer` depend on the length."""
    length = spec.fixed_length or seq_len
    view = _scaled_view(spec.of_length(length), length)
    return RopeView(
        view.inv_freq * spec.distance_scale, view.attention_scale, unrotated=1 / view.attention_scale**2
    )


def session_view(spec: RopeSpec, memory: MemorySpec, seq_len: int) -> RopeView:
    """The view of a session, which may have a rotary embedding of its own and a growth of attention."""
    view = rope_view(memory.positions.rope or spec, seq_len)
    return replace(view, attention_scale=view.attention_scale * memory.positions.attention_growth(seq_len))


def _scaled_view(spec: RopeSpec, seq_len: int) -> RopeView:
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float64) / spec.rotary_dim
    inv_freq = spec.theta**-exponents
    match spec.rope_type:
        case "default":
            return RopeView(inv_freq, 1.0)
        case "linear":
            return RopeView(inv_freq / spec.factor, 1.0)
        case "dynamic":
            return RopeView(_dynamic_theta(spec, seq_len) ** -exponents, 1.0)
        case "yarn":
            return RopeView(_yarn(spec, inv_freq), _yarn_attention_scale(spec))
        case "longrope":
            return RopeView(_longrope(spec, inv_freq, seq_len), _longrope_attention_scale(spec))
        case "llama3":
            return RopeView(_llama3(spec, inv_freq), 1.0)
    raise AssertionError(f"rope_type {spec.rope_type} passed the configuration's check")


def cos_sin(view: RopeView, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, each f32 [n, rotary_dim / 2], of `positions` [n] (integers or floats), on their device."""
    angles = positions.to(torch.float64)[:, None] * view.inv_freq.to(positions.device)
    return angles.cos().to(torch.float32), angles.sin().to(torch.float32)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., T, D] rotated by cos, sin [T or 1, rotary_dim / 2]; computed in fp32, returned in x's dtype.

    Channel i pairs with i + rotary_dim / 2 (the rotate-half convention); channels >= rotary_dim pass through.
    """
    is_simple = x.dim() == 3 and cos.dim() == 2 and x.dtype in (torch.float32, torch.bfloat16)
    if is_simple and x.device.type == "cpu":
        return rotate_tokens(x, cos, sin)
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*(part.to(x.dtype) for part in rotated), x[..., 2 * half :]), dim=-1)


def _dynamic_theta(spec: RopeSpec, seq_len: int) -> float:
    """NTK-aware base that grows with the sequence once it outgrows the trained length."""
    stretch = max(seq_len, spec.max_position_embeddings) / spec.max_position_embeddings
    scale = spec.factor * stretch - (spec.factor - 1)
    return float(spec.theta * scale ** (spec.rotary_dim / (spec.rotary_dim - 2)))


def _yarn(spec: RopeSpec, inv_freq: Tensor) -> Tensor:
    """Fast channels keep their frequency, slow ones are interpolated, a ramp between (arXiv 2309.00071)."""
    dim = spec.rotary_dim
    low, high = (_yarn_channel(spec, rotations) for rotations in (spec.beta_fast, spec.beta_slow))
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return inv_freq * (1 - ramp) + inv_freq / spec.factor * ramp


def _yarn_channel(spec: RopeSpec, rotations: float) -> float:
    """The (fractional) channel with that many rotations over the trained length."""
    return (
        spec.rotary_dim
        * math.log(_original_length(spec) / (rotations * 2 * math.pi))
        / (2 * math.log(spec.theta))
    )


def _yarn_attention_scale(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor

    def magnitude(weight: float) -> float:
        return 1.0 if spec.factor <= 1 else 0.1 * weight * math.log(spec.factor) + 1.0

    if spec.mscale and spec.mscale_all_dim:
        return magnitude(spec.mscale) / magnitude(spec.mscale_all_dim)
    return magnitude(1.0)


def _longrope(spec: RopeSpec, inv_freq: Tensor, seq_len: int) -> Tensor:
    """Each channel has its own factor, one set up to the trained length and one beyond (arXiv 2402.13753)."""
    factors = spec.long_factor if seq_len > _original_length(spec) else spec.short_factor
    return inv_freq / torch.tensor(factors, dtype=torch.float64)


def _longrope_attention_scale(spec: RopeSpec) -> float:
    if spec.attention_factor is not None:
        return spec.attention_factor
    if spec.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(spec.factor) / math.log(_original_length(spec)))


def _llama3(spec: RopeSpec, inv_freq: Tensor) -> Tensor:
    """Llama 3.1: long wavelengths are stretched by the factor, short ones kept, a ramp between."""
    rotations = _original_length(spec) * inv_freq / (2 * math.pi)
    keep = ((rotations - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)).clamp(0, 1)
    return inv_freq * keep + inv_freq / spec.factor * (1 - keep)


def _original_length(spec: RopeSpec) -> int:
    return spec.original_max_position_embeddings or spec.max_position_embeddings
