"""Memory for the weights of a decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.model.parameters import (
    DecoderWeights,
    ExpertsWeights,
    LayerWeights,
    MlpWeights,
    Norm,
)
from moorage.workers.gpu.model.parts import LAYER_NORMS, Part, Shape, qk_norm_shapes
from moorage.workers.spec import ExpertsSpec, LayerSpec, ModelSpec

Empty = Callable[..., Tensor]
"""A tensor of these sizes that holds nothing yet."""


def allocate(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    """Weights that hold nothing yet. Raises ResourceExhausted when the device has too little memory."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    try:
        embed = empty(spec.vocab_size, spec.hidden_size)
        return DecoderWeights(
            embed=embed,
            layers=tuple(_layer(spec, spec.layer(i), empty, device) for i in range(spec.num_layers)),
            norm=_norm(spec, device),
            lm_head=embed if spec.tie_word_embeddings else empty(spec.vocab_size, spec.hidden_size),
            dtype=dtype,
        )
    except torch.OutOfMemoryError:
        needed = allocate(spec, dtype, torch.device("meta")).num_bytes
        raise ResourceExhausted(
            f"the weights need {needed / 1e9:.2f} GB, more than {device} has; use a smaller model or dtype"
        ) from None


def _layer(spec: ModelSpec, layer: LayerSpec, empty: Empty, device: torch.device) -> LayerWeights:
    hidden, head_dim = spec.hidden_size, spec.head_dim
    num_q_rows = spec.num_heads * head_dim
    num_qkv_rows = num_q_rows + 2 * spec.num_kv_heads * head_dim
    experts = spec.experts if layer.has_experts else None
    head_norms = qk_norm_shapes(spec)
    return LayerWeights(
        input_norm=_layer_norm(spec, Part.INPUT_NORM, device),
        attention_out_norm=_layer_norm(spec, Part.ATTENTION_OUT_NORM, device),
        post_norm=_layer_norm(spec, Part.POST_NORM, device),
        mlp_out_norm=_layer_norm(spec, Part.MLP_OUT_NORM, device),
        qkv=empty(num_qkv_rows, hidden),
        output=empty(hidden, num_q_rows),
        feed_forward=_mlp(empty, hidden, spec.intermediate_size, spec.mlp_bias)
        if experts is None
        else _experts(empty, hidden, experts),
        qkv_bias=empty(num_qkv_rows) if spec.qkv_bias else None,
        output_bias=empty(hidden) if spec.output_bias else None,
        q_norm=_vector(head_norms.get(Part.Q_NORM), device),
        k_norm=_vector(head_norms.get(Part.K_NORM), device),
        sinks=empty(spec.num_heads) if spec.attention_sinks else None,
    )


def _vector(shape: Shape | None, device: torch.device) -> Tensor | None:
    """The weight of a norm, float32; None where a model has none."""
    return None if shape is None else torch.empty(shape, dtype=torch.float32, device=device)


def _norm(spec: ModelSpec, device: torch.device) -> Norm:
    weight, bias = (torch.empty(spec.hidden_size, dtype=torch.float32, device=device) for _ in range(2))
    return Norm(weight, bias if spec.norm_bias else None)


def _layer_norm(spec: ModelSpec, part: Part, device: torch.device) -> Norm | None:
    return _norm(spec, device) if part in LAYER_NORMS[spec.residual] else None


def _experts(empty: Empty, hidden: int, experts: ExpertsSpec) -> ExpertsWeights:
    number, shared = experts.num_experts, experts.shared_intermediate_size
    return ExpertsWeights(
        router=empty(number, hidden),
        router_bias=empty(number) if experts.router_bias else None,
        experts=_mlp(empty, hidden, experts.intermediate_size, experts.bias, number),
        shared=_mlp(empty, hidden, shared, False) if shared else None,
        shared_weight=empty(1, hidden) if experts.shared_gate else None,
    )


def _mlp(empty: Empty, hidden: int, intermediate: int, biased: bool, *number: int) -> MlpWeights:
    return MlpWeights(
        gate_up=empty(*number, 2 * intermediate, hidden),
        down=empty(*number, hidden, intermediate),
        gate_up_bias=empty(*number, 2 * intermediate) if biased else None,
        down_bias=empty(*number, hidden) if biased else None,
    )


def random_weights(spec: ModelSpec, device: torch.device, seed: int = 0) -> DecoderWeights:
    """Weights for measurements: normal with a deviation of 0.02, norms of 1, in the type of `spec`."""
    weights = allocate(spec, getattr(torch, spec.dtype), device)
    generator = torch.Generator(device=device).manual_seed(seed)
    for tensor in weights.tensors():
        if tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, 0.02, generator=generator)
    return weights
