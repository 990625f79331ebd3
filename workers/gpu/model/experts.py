"""The feed-forward part of a layer with experts: a router, the experts of each token, and a shared one."""

from __future__ import annotations

import torch
from torch import Tensor

from moorage.kernels.experts import (
    Routing,
    grouped_linear,
    has_grouped_products,
    route,
    sum_experts,
    sum_experts_grouped,
)
from moorage.workers.gpu.model.activations import Gated
from moorage.workers.gpu.model.host_experts import sum_host_experts
from moorage.workers.gpu.model.linear import linear
from moorage.workers.gpu.model.mlp import run_mlp
from moorage.workers.gpu.model.parameters import ExpertsWeights, MlpWeights
from moorage.workers.spec import ExpertScores, ExpertsSpec


def runs_at_once(weights: MlpWeights, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one product of rows in `dtype` on `device` computes all experts, so that the host waits for nothing."""
    matrices = (weights.gate_up, weights.down)
    return (
        has_grouped_products(device, dtype)
        and weights.device.type == device.type
        and all(isinstance(matrix, Tensor) for matrix in matrices)
    )


def run_experts(normed: Tensor, weights: ExpertsWeights, spec: ExpertsSpec, activate: Gated) -> Tensor:
    """What the experts of each row add for rows [T, hidden]. Only the weights of experts that a row uses are read."""
    logits = linear(normed, weights.router, weights.router_bias)
    routing = route(logits, spec.per_token, spec.scores is ExpertScores.SOFTMAX_NORMALIZED)
    if runs_at_once(weights.experts, normed.device, normed.dtype):
        added = _all_at_once(normed, routing, weights.experts, activate)
    elif weights.experts.device.type != normed.device.type:
        added = sum_host_experts(normed, routing, weights.experts, activate)
    else:
        added = sum_experts(
            normed, routing, spec.num_experts, lambda i, rows: run_mlp(rows, weights.experts.of(i), activate)
        )
    if weights.shared is None:
        return added
    shared = run_mlp(normed, weights.shared, activate)
    if weights.shared_weight is not None:
        shared *= linear(normed, weights.shared_weight).sigmoid()
    return added.add_(shared)


def _all_at_once(normed: Tensor, routing: Routing, weights: MlpWeights, activate: Gated) -> Tensor:
    gate_up, down = weights.gate_up, weights.down
    assert isinstance(gate_up, Tensor)
    assert isinstance(down, Tensor)

    def run(rows: Tensor, experts: Tensor, ends: Tensor) -> Tensor:
        inner = grouped_linear(rows, ends, gate_up)
        if weights.gate_up_bias is not None:
            inner += weights.gate_up_bias[experts]
        out = grouped_linear(activate(inner), ends, down)
        return out if weights.down_bias is None else out.add_(weights.down_bias[experts])

    return sum_experts_grouped(normed, routing, len(gate_up), run)
