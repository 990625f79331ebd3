"""A dense feed-forward part, or one expert."""

from __future__ import annotations

from torch import Tensor

from moorage.workers.gpu.model.activations import Gated
from moorage.workers.gpu.model.linear import linear
from moorage.workers.gpu.model.parameters import MlpWeights


def run_mlp(normed: Tensor, weights: MlpWeights, activate: Gated) -> Tensor:
    """What a dense feed-forward part adds for rows [T, hidden]."""
    inner = activate(linear(normed, weights.gate_up, weights.gate_up_bias))
    return linear(inner, weights.down, weights.down_bias)
