from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.kernels.numba_flags import always_parallel
from moorage.kernels.quantized_linear import (
    CodeKind,
    QuantizedMatrix,
    dequantize,
    dequantize_rows,
    gpu,
    pack,
    quantized_linear,
    unpack,
)
from moorage.kernels.quantized_linear.cpu import few_rows_linear
from tests.kernels.quantized_matrices import KINDS, draw_matrix, reference_weights

SHAPES = [((1, 16), 16), ((16, 32), 32), ((40, 96), 32), ((33, 256), 64), ((50, 40), 40)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "group_size"), SHAPES)
def test_weights_are_scale_times_code_plus_minimum(rng, kind, shape, group_size):
    matrix = draw_matrix(rng, kind, shape, group_size)
    assert matrix.shape == shape
    assert matrix.group_size == group_size
    np.testing.assert_allclose(dequantize(matrix).numpy(), reference_weights(matrix), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_packed_is_unpacked(rng, kind):
    matrix = draw_matrix(rng, kind, (37, 64), 32)
    codes, scales, minima = unpack(matrix)
    again = pack(codes, scales, minima, bits=matrix.kind.bits, table=matrix.table)
    for ours, theirs in zip(matrix.tensors(), again.tensors(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_may_be_transposed(rng, kind):
    matrix = draw_matrix(rng, kind, (32, 64), 32)
    codes, scales, minima = unpack(matrix)
    turned = codes.view(torch.uint8).T.contiguous().T.view(codes.dtype)
    again = pack(turned, scales, minima, bits=matrix.kind.bits, table=matrix.table)
    assert torch.equal(again.codes, matrix.codes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 40])
@pytest.mark.parametrize(("shape", "group_size"), SHAPES)
def test_product_equals_the_reference(rng, kind, tokens, shape, group_size):
    matrix = draw_matrix(rng, kind, shape, group_size)
    x = torch.from_numpy(rng.standard_normal((tokens, shape[1])).astype(np.float32))
    expected = x.double().numpy() @ reference_weights(matrix).T
    np.testing.assert_allclose(quantized_linear(x, matrix).numpy(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_product_in_plain_torch_equals_the_reference(rng, kind):
    matrix = draw_matrix(rng, kind, (33, 96), 32)
    x = torch.from_numpy(rng.standard_normal((5, 96)).astype(np.float32))
    expected = x.double().numpy() @ reference_weights(matrix).T
    np.testing.assert_allclose(gpu.quantized_linear(x, matrix).numpy(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(rng, kind):
    matrix = draw_matrix(rng, kind, (48, 128), 32)
    x = torch.from_numpy(rng.standard_normal((7, 128)).astype(np.float32))
    together = quantized_linear(x, matrix)
    for row in range(7):
        assert torch.equal(quantized_linear(x[row : row + 1], matrix)[0], together[row])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [3, 40])
def test_work_that_is_shared_gives_the_same(rng, kind, tokens):
    matrix = draw_matrix(rng, kind, (150, 64), 32)
    x = torch.from_numpy(rng.standard_normal((tokens, 64)).astype(np.float32))
    alone = quantized_linear(x, matrix)
    with always_parallel():
        assert torch.equal(quantized_linear(x, matrix), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 16), (4, 48), (37, 64), (96, 576)])
@pytest.mark.parametrize("tokens", [0, 1, 2, 7])
def test_few_rows_with_float_weights(rng, dtype, shape, tokens):
    weight = torch.from_numpy(rng.standard_normal(shape)).to(dtype)
    x = torch.from_numpy(rng.standard_normal((tokens, shape[1])).astype(np.float32))
    found = few_rows_linear(x, weight)
    np.testing.assert_allclose(
        found.numpy(), x.double().numpy() @ weight.double().numpy().T, rtol=1e-5, atol=1e-4
    )
    for row in range(tokens):
        assert torch.equal(few_rows_linear(x[row : row + 1], weight)[0], found[row])


def test_float_weights_of_an_odd_width_are_refused():
    with pytest.raises(ValueError, match=r"weight \[4, 40\]; expected contiguous rows of a multiple of 16"):
        few_rows_linear(torch.zeros(1, 40), torch.zeros(4, 40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [3, 40])
def test_product_in_bfloat16(rng, kind, tokens):
    matrix = draw_matrix(rng, kind, (48, 128), 32)
    x = torch.from_numpy(rng.standard_normal((tokens, 128))).bfloat16()
    expected = x.double().numpy() @ reference_weights(matrix).T
    found = quantized_linear(x, matrix)
    assert found.dtype == torch.bfloat16
    assert np.abs(found.double().numpy() - expected).max() < 0.02 * np.abs(expected).max()


def test_scales_in_float32(rng):
    matrix = draw_matrix(rng, "int4_minima", (32, 64), 32, scale_dtype=torch.float32)
    x = torch.from_numpy(rng.standard_normal((2, 64)).astype(np.float32))
    expected = x.double().numpy() @ reference_weights(matrix).T
    np.testing.assert_allclose(quantized_linear(x, matrix).numpy(), expected, rtol=2e-5, atol=2e-5)


def test_single_rows(rng):
    matrix = draw_matrix(rng, "int4_minima", (50, 64), 32)
    ids = torch.tensor([49, 0, 16, 49, 15])
    assert torch.equal(dequantize_rows(matrix, ids, torch.float32), dequantize(matrix)[ids])
    assert dequantize_rows(matrix, ids[:0], torch.float32).shape == (0, 64)


def test_views_of_rows_are_filled_apart(rng):
    whole = QuantizedMatrix.empty((50, 64), 32, CodeKind.INT8)
    parts = draw_matrix(rng, "int8", (32, 64), 32), draw_matrix(rng, "int8", (18, 64), 32)
    whole.rows(0, 32).copy_(parts[0])
    whole.rows(32, 50).copy_(parts[1])
    assert torch.equal(dequantize(whole), torch.cat([dequantize(part) for part in parts]))


def test_rows_that_split_a_panel_are_refused():
    whole = QuantizedMatrix.empty((50, 64), 32, CodeKind.INT8)
    with pytest.raises(ValueError, match="not whole panels of 16"):
        whole.rows(8, 32)


def test_groups_that_split_a_row_are_refused():
    with pytest.raises(ValueError, match=r"shape \[16, 40\], groups of 32"):
        QuantizedMatrix.empty((16, 40), 32, CodeKind.INT8)


def test_a_matrix_of_another_shape_is_not_copied(rng):
    whole = QuantizedMatrix.empty((32, 64), 32, CodeKind.INT8)
    with pytest.raises(ValueError, match=r"\[16, 64\] of int8 does not fit \[32, 64\]"):
        whole.copy_(draw_matrix(rng, "int8", (16, 64), 32))


def test_bytes_are_those_of_padded_panels():
    matrix = QuantizedMatrix.empty((50, 64), 32, CodeKind.INT4, has_minima=True)
    assert matrix.nbytes == 64 * 64 // 2 + 2 * 64 * 2 * 2
