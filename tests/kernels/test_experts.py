from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.experts import (
    Routing,
    grouped_linear,
    has_grouped_products,
    reference,
    route,
    sum_experts,
    sum_experts_grouped,
)

SHAPES = [(1, 4, 1), (1, 8, 8), (3, 2, 2), (40, 6, 3), (200, 16, 4)]
"""Tokens, experts, experts of a token."""


def drawn(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def by_expert(x, routing, matrices):
    return sum_experts(x, routing, len(matrices), lambda expert, rows: rows @ matrices[expert].T)


def grouped(x, routing, matrices):
    def run(rows, experts, ends):
        assert torch.equal(experts.bincount(minlength=len(matrices)).cumsum(0), ends)
        return grouped_linear(rows, ends, matrices)

    return sum_experts_grouped(x, routing, len(matrices), run)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "per_token"), SHAPES)
def test_routing_equals_the_definition(rng, tokens, experts, per_token, normalized):
    logits = 30 * drawn(rng, tokens, experts)
    found = route(logits, per_token, normalized)
    chosen, weights = reference.route(logits.double().numpy(), per_token, normalized)
    assert np.array_equal(found.experts, chosen)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sum_of", [by_expert, grouped])
@pytest.mark.parametrize(("tokens", "experts", "per_token"), SHAPES)
def test_sums_equal_the_definition(rng, tokens, experts, per_token, sum_of):
    x, matrices = drawn(rng, tokens, 16), drawn(rng, experts, 16, 16)
    routing = route(drawn(rng, tokens, experts), per_token, True)
    floats = (tensor.double().numpy() for tensor in (routing.weights, matrices))
    expected = reference.sum_experts(x.double().numpy(), routing.experts.numpy(), *floats)
    np.testing.assert_allclose(sum_of(x, routing, matrices), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sum_of", [by_expert, grouped])
def test_all_tokens_may_use_the_same_experts(rng, sum_of):
    """The others have no rows, first and last ones among them."""
    x, matrices = drawn(rng, 9, 16), drawn(rng, 5, 16, 16)
    routing = Routing(torch.tensor([[3, 1]]).expand(9, 2), torch.tensor([[0.75, 0.25]]).expand(9, 2))
    expected = 0.75 * x @ matrices[3].T + 0.25 * x @ matrices[1].T
    torch.testing.assert_close(sum_of(x, routing, matrices), expected, rtol=1e-5, atol=1e-5)


def test_an_expert_without_rows_is_never_run(rng):
    routing, ran = route(drawn(rng, 7, 32), 2, True), []

    def run(expert, rows):
        ran.append((expert, len(rows)))
        return rows

    out = sum_experts(x := drawn(rng, 7, 16), routing, 32, run)
    assert [expert for expert, _ in ran] == sorted(set(routing.experts.flatten().tolist()))
    assert sum(count for _, count in ran) == 14
    torch.testing.assert_close(out, x)


@pytest.mark.parametrize("sum_of", [by_expert, grouped])
def test_no_rows(rng, sum_of):
    assert sum_of(drawn(rng, 0, 16), route(drawn(rng, 0, 4), 2, True), drawn(rng, 4, 16, 16)).shape == (0, 16)


@pytest.mark.parametrize("sum_of", [by_expert, grouped])
def test_a_row_does_not_depend_on_its_neighbours(rng, sum_of):
    x, matrices, logits = drawn(rng, 33, 16), drawn(rng, 8, 16, 16), drawn(rng, 33, 8)
    together = sum_of(x, route(logits, 3, False), matrices)
    for row in (0, 15, 32):
        alone = sum_of(x[row : row + 1], route(logits[row : row + 1], 3, False), matrices)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_sums_of_a_half_type_are_rounded_once(rng):
    """Eight equal parts of 1/8 each give the row itself, which sums in bfloat16 would miss."""
    x = drawn(rng, 5, 16).bfloat16()
    routing = Routing(torch.arange(8).expand(5, 8), torch.full((5, 8), 0.125))
    same = torch.eye(16).bfloat16().expand(8, 16, 16)
    assert torch.equal(by_expert(x, routing, same), x)
    assert torch.equal(grouped(x, routing, same), x)


def test_a_cpu_goes_from_expert_to_expert():
    assert not has_grouped_products(torch.device("cpu"), torch.bfloat16)
