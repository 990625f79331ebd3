from __future__ import annotations

import dataclasses

import pytest
import torch

from moorage.kernels.quantized_linear import triton
from tests.kernels.quantized_matrices import KINDS, draw_matrix, reference_weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "group_size"), [((16, 32), 32), ((50, 96), 16), ((33, 40), 40)])
@pytest.mark.parametrize("tokens", [0, 1, 5, 20])
def test_product_equals_the_reference(rng, device, multiplied, kind, shape, group_size, tokens):
    matrix = draw_matrix(rng, kind, shape, group_size)
    x = torch.from_numpy(rng.standard_normal((tokens, shape[1]))).to(multiplied).to(device)
    expected = torch.from_numpy(x.double().cpu().numpy() @ reference_weights(matrix).T)
    found = triton.quantized_linear(x, on(matrix, device))
    assert found.dtype == multiplied
    allowed = torch.finfo(multiplied).eps * 8 * float(expected.abs().max() if tokens else 1)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=allowed)


def on(matrix, device):
    """The matrix on a device."""
    names = ("codes", "scales", "minima", "table")
    tensors = {name: getattr(matrix, name) for name in names}
    return dataclasses.replace(
        matrix, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None}
    )
