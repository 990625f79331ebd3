"""Each activation against its formula in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moorage.workers.gpu.model.activations import gated
from moorage.workers.spec import Activation


def silu(gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + (-gate).exp()) * up


def gelu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1 + inner.tanh()) * up


def clamped_swish(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=7), up.clamp(-7, 7)
    return (up + 1) * gate / (1 + (-1.702 * gate).exp())


FORMULAS = {
    Activation.SILU: silu,
    Activation.GELU_TANH: gelu_tanh,
    Activation.CLAMPED_SWISH: clamped_swish,
}


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("shape", [(0, 6), (5, 6), (2, 3, 64)])
def test_equals_its_formula(activation: Activation, shape: tuple[int, ...]) -> None:
    gate_up = 6 * torch.randn(shape)
    given = gate_up.clone()
    formula: Callable[[Tensor, Tensor], Tensor] = FORMULAS[activation]
    expected = formula(*gate_up.double().chunk(2, dim=-1))
    torch.testing.assert_close(gated(activation)(gate_up).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(gate_up, given)
