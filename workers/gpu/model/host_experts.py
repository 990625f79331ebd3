"""Experts whose weights lie in host memory while the rest of the model is on a GPU."""

from __future__ import annotations

from torch import Tensor

from moorage.kernels.experts import Routing, sum_experts
from moorage.workers.gpu.model.activations import Gated
from moorage.workers.gpu.model.mlp import run_mlp
from moorage.workers.gpu.model.parameters import DecoderWeights, ExpertsWeights, MlpWeights, mlp_tensors
from moorage.workers.gpu.transfer.pinning import HostMemory

MOST_HOST_TOKENS = 32
"""Steps of more tokens stream the weights of their experts to the device: each is then used by several of them."""


def sum_host_experts(normed: Tensor, routing: Routing, weights: MlpWeights, activate: Gated) -> Tensor:
    """See `sum_experts`, for rows [T, hidden] on the device and weights on the host.

    The host computes few rows; for many the weights of each expert that some row uses are copied to the device.
    """
    if len(normed) > MOST_HOST_TOKENS:
        device = normed.device
        return sum_experts(
            normed,
            routing,
            weights.num_experts,
            lambda i, rows: run_mlp(rows, weights.of(i).to(device), activate),
        )
    host = weights.device
    on_host = Routing(routing.experts.to(host), routing.weights.to(host))
    added = sum_experts(
        normed.to(host), on_host, weights.num_experts, lambda i, rows: run_mlp(rows, weights.of(i), activate)
    )
    return added.to(normed.device)


def pin_experts(weights: DecoderWeights, memory: HostMemory) -> int:
    """Pins the weights of all experts, so that copies to the device run at full speed. Returns the bytes pinned.

    It stops where the system allows no more; those weights are copied all the same.
    """
    pinned = 0
    for layer in weights.layers:
        if not isinstance(layer.feed_forward, ExpertsWeights):
            continue
        for tensor in mlp_tensors(layer.feed_forward.experts):
            if memory.register(tensor.data_ptr(), tensor.nbytes) != 0:
                memory.clear_error()
                return pinned
            pinned += tensor.nbytes
    return pinned
