"""Memory for the weights of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moorage.kernels.quantized_linear import PANEL, QuantizedMatrix
from moorage.workers.errors import ResourceExhausted
from moorage.workers.gpu.model.matrix_kind import MatrixKind
from moorage.workers.gpu.model.parameters import (
    DecoderWeights,
    ExpertsWeights,
    LayerWeights,
    MlpWeights,
    Norm,
)
from moorage.workers.gpu.model.parts import (
    DENSE,
    EXPERT,
    LAYER_NORMS,
    SHARED,
    MlpParts,
    Part,
    Shape,
    qk_norm_shapes,
)
from moorage.workers.gpu.model.quantized import Matrix, ReorderedMatrix, StackedMatrix, empty_matrix
from moorage.workers.gpu.model.weight_plan import WeightPlan
from moorage.workers.spec import ExpertsPlace, ExpertsSpec, LayerSpec, ModelSpec


def allocate(
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    plan: WeightPlan | None = None,
    experts: ExpertsPlace = ExpertsPlace.DEVICE,
) -> DecoderWeights:
    """Weights that hold nothing yet: matrices as `plan` says, all else in `dtype`.

    Those of experts are on the device or on the host, as `experts` says; routers and shared experts on the device.
    Raises ResourceExhausted when the device has too little memory.
    """
    outside = _Space(dtype, device, plan or {}, None)
    try:
        embed = outside.whole(Part.EMBED, spec.vocab_size, spec.hidden_size)
        head = (
            embed
            if spec.tie_word_embeddings
            else outside.whole(Part.LM_HEAD, spec.vocab_size, spec.hidden_size)
        )
        return DecoderWeights(
            embed=embed,
            layers=tuple(
                _layer(spec, spec.layer(i), _Space(dtype, device, plan or {}, i), experts)
                for i in range(spec.num_layers)
            ),
            norm=_norm(spec, device),
            lm_head=head,
            dtype=dtype,
        )
    except torch.OutOfMemoryError:
        needed = allocate(spec, dtype, torch.device("meta"), plan).num_bytes
        other = ", or model.experts host" if spec.experts is not None else ""
        raise ResourceExhausted(
            f"the weights need {needed / 1e9:.2f} GB, more than {device} has; use a smaller model or dtype, or "
            f"model.weights int8 or int4{other}"
        ) from None


@dataclass(frozen=True, slots=True)
class _Space:
    """Allocates the weights of one layer, or those outside the layers."""

    dtype: torch.dtype
    device: torch.device
    plan: WeightPlan
    layer: int | None

    def empty(self, *shape: int) -> Tensor:
        """A float tensor."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def whole(self, part: Part, rows: int, width: int) -> Tensor | QuantizedMatrix:
        """A matrix of one part that can't have a column order of its own."""
        matrix = self.stack({part: rows}, width)
        assert isinstance(matrix, Tensor | QuantizedMatrix)
        return matrix

    def stack(self, rows: Mapping[Part, int], width: int, number: int = 0) -> Matrix:
        """Parts below one another, by their numbers of rows; those of `number` experts where it is not 0.

        Parts of one kind lie in one matrix, expert after expert; others are matrices of their own.
        """
        kinds = {self.plan.get((self.layer, part)) for part in rows}
        aligned = all(count % PANEL == 0 for count in rows.values())
        kind = next(iter(kinds))
        if len(kinds) == 1 and (
            kind is None or ((aligned or not number) and _may_join(kind, aligned, len(rows)))
        ):
            return self._one(kind, sum(rows.values()), width, number)
        parts = (
            self._one(self.plan.get((self.layer, part)), count, width, number) for part, count in rows.items()
        )
        return StackedMatrix(tuple(parts))

    def _one(
        self, kind: MatrixKind | None, rows: int, width: int, number: int
    ) -> Tensor | QuantizedMatrix | ReorderedMatrix:
        if kind is None:
            return self.empty(number, rows, width) if number else self.empty(rows, width)
        return empty_matrix((rows * max(1, number), width), kind, self.device, number)


def _may_join(kind: MatrixKind, aligned: bool, num_parts: int) -> bool:
    """Whether parts of one kind may lie in one matrix."""
    return num_parts == 1 or (aligned and not kind.has_order)


def _layer(spec: ModelSpec, layer: LayerSpec, space: _Space, place: ExpertsPlace) -> LayerWeights:
    hidden, head_dim, empty, device = spec.hidden_size, spec.head_dim, space.empty, space.device
    query, key_value = spec.num_heads * head_dim, spec.num_kv_heads * head_dim
    experts = spec.experts if layer.has_experts else None
    head_norms = qk_norm_shapes(spec)
    rows = {Part.QUERY: query, Part.KEY: key_value, Part.VALUE: key_value}
    return LayerWeights(
        input_norm=_layer_norm(spec, Part.INPUT_NORM, device),
        attention_out_norm=_layer_norm(spec, Part.ATTENTION_OUT_NORM, device),
        post_norm=_layer_norm(spec, Part.POST_NORM, device),
        mlp_out_norm=_layer_norm(spec, Part.MLP_OUT_NORM, device),
        qkv=space.stack(rows, hidden),
        output=space.stack({Part.OUTPUT: hidden}, query),
        feed_forward=_mlp(space, DENSE, hidden, spec.intermediate_size, spec.mlp_bias)
        if experts is None
        else _experts(space, hidden, experts, place),
        qkv_bias=empty(query + 2 * key_value) if spec.qkv_bias else None,
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


def _experts(space: _Space, hidden: int, experts: ExpertsSpec, place: ExpertsPlace) -> ExpertsWeights:
    home = replace(space, device=torch.device("cpu")) if place is ExpertsPlace.HOST else space
    number, shared = experts.num_experts, experts.shared_intermediate_size
    return ExpertsWeights(
        router=space.empty(number, hidden),
        router_bias=space.empty(number) if experts.router_bias else None,
        experts=_mlp(home, EXPERT, hidden, experts.intermediate_size, experts.bias, number),
        shared=_mlp(space, SHARED, hidden, shared, False) if shared else None,
        shared_weight=space.empty(1, hidden) if experts.shared_gate else None,
    )


def _mlp(
    space: _Space, parts: MlpParts, hidden: int, intermediate: int, biased: bool, number: int = 0
) -> MlpWeights:
    experts = (number,) if number else ()
    return MlpWeights(
        gate_up=space.stack({parts.gate: intermediate, parts.up: intermediate}, hidden, number),
        down=space.stack({parts.down: hidden}, intermediate, number),
        gate_up_bias=space.empty(*experts, 2 * intermediate) if biased else None,
        down_bias=space.empty(*experts, hidden) if biased else None,
        num_experts=number,
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
