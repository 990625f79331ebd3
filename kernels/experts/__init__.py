"""Mixtures of experts: which experts a token uses, and the weighted sum of what they compute.

Every row is computed by its own experts, whatever rows are beside it: no expert has a capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ExpertRows = Callable[[int, Tensor], Tensor]
"""(expert, rows [n, D]) -> what this expert computes of them [n, D]."""
GroupedRows = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The same for rows [n, D] in the order of their experts: (rows, expert of each int64 [n], end of each expert's rows
int32 [E]) -> [n, D]."""


class Routing(NamedTuple):
    """The experts of each token, best first."""

    experts: Tensor
    """int64 [T, K]."""
    weights: Tensor
    """float32 [T, K]."""


def route(logits: Tensor, per_token: int, normalized: bool) -> Routing:
    """The `per_token` experts of largest logits [T, E], weighted by the softmax of all E logits.

    `normalized` divides the weights of a token by their sum; this is the softmax of the chosen logits alone.
    """
    logits = logits.float()
    best, experts = logits.topk(per_token, dim=-1)
    if normalized:
        return Routing(experts, best.softmax(dim=-1))
    return Routing(experts, (best - logits.logsumexp(dim=-1, keepdim=True)).exp())


def sum_experts(x: Tensor, routing: Routing, num_experts: int, run: ExpertRows) -> Tensor:
    """Sums weight * run(expert, row) over the experts of each row of x [T, D]. Returns [T, D] in the type of x.

    `run` is called once for each expert that some row uses, in the order of their numbers, with all rows that use
    it. The host waits for the routing. The sum is in fp32.
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if len(x) == 1:
        for expert, weight in sorted(
            zip(routing.experts[0].tolist(), routing.weights[0].tolist(), strict=True)
        ):
            out.add_(run(expert, x), alpha=weight)
        return out.to(x.dtype)
    order, rows, experts = _by_expert(routing)
    counts = torch.bincount(experts, minlength=num_experts).tolist()
    weights = routing.weights.flatten()[order].unsqueeze(-1)
    begin = 0
    for expert, count in enumerate(counts):
        if count:
            taken = slice(begin, begin + count)
            out.index_add_(0, rows[taken], run(expert, x[rows[taken]]) * weights[taken])
            begin += count
    return out.to(x.dtype)


def sum_experts_grouped(x: Tensor, routing: Routing, num_experts: int, run: GroupedRows) -> Tensor:
    """The same by one call of `run` for all experts; the host waits for nothing, so that CUDA graphs can hold it."""
    order, rows, experts = _by_expert(routing)
    ends = torch.searchsorted(experts, torch.arange(num_experts, device=x.device), right=True)
    computed = run(x[rows], experts, ends.to(torch.int32))
    by_token = torch.empty_like(computed)
    by_token[order] = computed
    weights = routing.weights.unsqueeze(-1)
    return (by_token.view(*routing.experts.shape, x.shape[1]) * weights).sum(dim=1).to(x.dtype)


def grouped_linear(rows: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """rows[i] @ weight[expert of i].T for rows [n, in] in the order of their experts; weight [E, out, in].

    `ends` is the end of each expert's rows, int32 [E]. Rows of 16-byte multiples alone.
    """
    return torch.nn.functional.grouped_mm(rows, weight.mT, offs=ends)


def has_grouped_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `grouped_linear` is one launch there, without the host; elsewhere torch goes from expert to expert."""
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )


def _by_expert(routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a row and an expert in the order of the experts: place among all pairs, row, and expert of each."""
    experts, order = routing.experts.flatten().sort(stable=True)
    return order, order // routing.experts.shape[1], experts


__all__ = [
    "ExpertRows",
    "GroupedRows",
    "Routing",
    "grouped_linear",
    "has_grouped_products",
    "route",
    "sum_experts",
    "sum_experts_grouped",
]
