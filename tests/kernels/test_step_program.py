from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from moorage.kernels.numba_flags import always_parallel
from moorage.kernels.step_program import Gate, Program, Rows, run_program
from tests.kernels.quantized_matrices import draw_matrix, reference_weights

MOST = 5


@pytest.fixture
def drawn(rng):
    def rows(width: int) -> Rows:
        return Rows(torch.from_numpy(rng.standard_normal((MOST, width))).float(), 0, width)

    return rows


def run(program: Program, count: int = MOST) -> None:
    run_program(*program.tables(), count)


@pytest.mark.parametrize("biased", [False, True])
def test_products_one_after_the_other(rng, drawn, biased):
    program, x, middle, out = Program(), drawn(32), Rows.empty(MOST, 64), Rows.empty(MOST, 16)
    matrix, weight = draw_matrix(rng, "int4_minima", (64, 32), 32), torch.randn(16, 64)
    bias = torch.randn(64) if biased else None
    program.linear(x, matrix, middle, bias)
    program.linear(middle, weight, out)
    run(program)
    expected = x.tensor.double() @ torch.from_numpy(reference_weights(matrix)).T
    expected = (expected + (0 if bias is None else bias)) @ weight.double().T
    torch.testing.assert_close(out.tensor.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_product_that_threads_share(rng, drawn):
    matrix, x = draw_matrix(rng, "int8", (320, 32), 32), drawn(32)
    alone, shared = Rows.empty(MOST, 320), Rows.empty(MOST, 320)
    program = Program()
    program.linear(x, matrix, alone)
    with always_parallel():
        program.linear(x, matrix, shared)
    run(program)
    assert torch.equal(alone.tensor, shared.tensor)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("per_part", [False, True])
def test_norms_of_parts_of_a_row(drawn, centred, per_part):
    whole, out, eps = drawn(100), Rows.empty(MOST, 96), 1e-5
    x = whole.columns(4, 96)
    weight, bias = (torch.randn(96 if per_part else 32) for _ in range(2))
    program = Program()
    program.norm(x, weight, bias, out, eps, size=32, centred=centred)
    run(program)
    parts = whole.tensor[:, 4:].double().view(MOST, 3, 32)
    if centred:
        normed = functional.layer_norm(parts, (32,), eps=eps)
    else:
        normed = functional.rms_norm(parts, (32,), eps=eps)
    shape = (3, 32) if per_part else (1, 32)
    expected = normed * weight.view(shape) + bias.view(shape)
    torch.testing.assert_close(out.tensor.double(), expected.flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", Gate)
def test_gates(drawn, kind):
    both, out = drawn(2 * 48), Rows.empty(MOST, 48)
    both.tensor.mul_(6)
    program = Program()
    program.gate(kind, both, out, 1.702, 7.0)
    run(program)
    gate, up = both.tensor.double().chunk(2, dim=1)
    capped, limited = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    expected = {
        Gate.SILU: functional.silu(gate) * up,
        Gate.GELU_TANH: functional.gelu(gate, approximate="tanh") * up,
        Gate.CLAMPED_SWISH: capped * torch.sigmoid(1.702 * capped) * (limited + 1),
    }[kind]
    torch.testing.assert_close(out.tensor.double(), expected, rtol=1e-5, atol=1e-5)


def test_sums_and_orders_of_the_first_rows_alone(drawn):
    x, added, out = drawn(16), drawn(16), Rows.empty(MOST, 16)
    before, order = x.tensor.clone(), torch.randperm(16)
    program = Program()
    program.add(x, added, 0.5)
    program.reorder(x, order, out)
    run(program, 2)
    expected = before + 0.5 * added.tensor
    torch.testing.assert_close(x.tensor[:2], expected[:2])
    assert torch.equal(x.tensor[2:], before[2:])
    assert torch.equal(out.tensor[:2], x.tensor[:2, order])


def test_shapes_that_do_not_fit_are_refused(drawn):
    program, x = Program(), drawn(32)
    with pytest.raises(ValueError, match=r"x 32 of 32, weight \[16, 48\], out 16 do not fit"):
        program.linear(x, torch.zeros(16, 48), Rows.empty(MOST, 16))
    with pytest.raises(ValueError, match="10 output channels; expected a multiple of 16"):
        program.linear(x, torch.zeros(10, 32), Rows.empty(MOST, 10))
