from __future__ import annotations

import torch

from moorage.workers.gpu.model.linear import embedding, linear
from moorage.workers.gpu.model.quantized import StackedMatrix, dequantize, quantize


def test_a_quantised_matrix_multiplies_as_its_weights_do():
    x, weight, bias = torch.randn(2, 3, 64), torch.randn(40, 64), torch.randn(40)
    matrix = quantize(weight, 4, 32)
    expected = torch.nn.functional.linear(x, dequantize(matrix), bias)
    torch.testing.assert_close(linear(x, matrix, bias), expected, rtol=1e-4, atol=1e-4)


def test_parts_of_different_types_stand_below_one_another():
    x, weight = torch.randn(3, 64), torch.randn(56, 64)
    parts = quantize(weight[:16], 4, 32), quantize(weight[16:40], 8, 32), weight[40:]
    stacked = StackedMatrix(parts)
    assert stacked.shape == (56, 64)
    expected = torch.cat([linear(x, part) for part in parts], dim=1)
    assert torch.equal(linear(x, stacked), expected)


def test_embeddings_are_rows_of_a_quantised_matrix():
    matrix, ids = quantize(torch.randn(50, 64), 8, 32), torch.tensor([3, 49, 3])
    assert torch.equal(embedding(ids, matrix, torch.float32), dequantize(matrix)[ids])
    assert embedding(ids, dequantize(matrix), torch.bfloat16).dtype == torch.bfloat16
