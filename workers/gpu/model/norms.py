"""Norms of hidden states, and of the heads of queries and keys. Weights are float32 whatever the decoder's type."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from moorage.kernels.rms_norm import add_rms_norm, norm_heads, rms_norm
from moorage.workers.gpu.model.parameters import LayerWeights, Norm
from moorage.workers.spec import ModelSpec, NormKind, QkNorm

Normalize = Callable[[Tensor, Norm], Tensor]
"""x [..., D] -> its norm, in its type."""
AddNormalize = Callable[[Tensor, Tensor, Norm], Tensor]
"""x, added [T, D] -> the norm of their sum, which is left in x."""
NormalizeHeads = Callable[[Tensor, LayerWeights], None]
"""Norms queries and keys among heads [T, Hq + 2 Hkv, D] in place."""


def normalizer(spec: ModelSpec) -> Normalize:
    """The norm of a model's hidden states."""
    eps = spec.rms_norm_eps
    if spec.norm is NormKind.RMS:
        return lambda x, norm: rms_norm(x, norm.weight, eps)
    return lambda x, norm: layer_norm(x, norm, eps)


def add_normalizer(spec: ModelSpec) -> AddNormalize:
    """The norm after the residual sum, in one pass where there is a kernel for it."""
    eps = spec.rms_norm_eps
    if spec.norm is NormKind.RMS:
        return lambda x, added, norm: add_rms_norm(x, added, norm.weight, eps)
    return lambda x, added, norm: layer_norm(x.add_(added), norm, eps)


def layer_norm(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """The norm by mean and variance over the last axis, computed in float32."""
    return functional.layer_norm(x.float(), x.shape[-1:], norm.weight, norm.bias, eps).to(x.dtype)


def head_normalizer(spec: ModelSpec) -> NormalizeHeads | None:
    """The norm of queries and keys before their rotation; None where a model has none."""
    match spec.qk_norm:
        case QkNorm.NONE:
            return None
        case QkNorm.HEAD:
            return lambda heads, layer: norm_heads(heads, spec.num_heads, *_weights(layer), spec.rms_norm_eps)
        case QkNorm.HEAD_LAYER:
            return lambda heads, layer: _each_head(spec, heads, layer)
        case QkNorm.ALL_HEADS:
            return lambda heads, layer: _all_heads(spec, heads, layer)


def _weights(layer: LayerWeights) -> tuple[Tensor, Tensor]:
    assert layer.q_norm is not None
    assert layer.k_norm is not None
    return layer.q_norm, layer.k_norm


def _parts(spec: ModelSpec, heads: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the queries [T, Hq, D] and of the keys [T, Hkv, D]."""
    return heads[:, : spec.num_heads], heads[:, spec.num_heads : spec.num_heads + spec.num_kv_heads]


def _each_head(spec: ModelSpec, heads: Tensor, layer: LayerWeights) -> None:
    for part, weight in zip(_parts(spec, heads), _weights(layer), strict=True):
        wide = functional.layer_norm(part.float(), (spec.head_dim,), eps=spec.rms_norm_eps)
        part.copy_(wide * weight)


def _all_heads(spec: ModelSpec, heads: Tensor, layer: LayerWeights) -> None:
    for part, weight in zip(_parts(spec, heads), _weights(layer), strict=True):
        part.copy_(rms_norm(part.flatten(1), weight, spec.rms_norm_eps).view(part.shape))
