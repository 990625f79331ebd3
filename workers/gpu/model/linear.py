"""Products with the matrices of a decoder, float or quantised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moorage.kernels.quantized_linear import QuantizedMatrix, dequantize_rows, quantized_linear
from moorage.kernels.quantized_linear.cpu import few_rows_linear
from moorage.workers.gpu.model.quantized import Matrix, ReorderedMatrix, StackedMatrix


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times the transposed `weight` [out, in], plus `bias` [out]: [..., out] in the type of x.

    On a CPU few rows of float32 are multiplied with weights of 16 bits as they are.
    """
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        return functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, Tensor):
        out = few_rows_linear(rows, weight)
    elif isinstance(weight, StackedMatrix):
        out = torch.cat([linear(rows, part) for part in weight.parts], dim=-1)
    elif isinstance(weight, ReorderedMatrix):
        out = quantized_linear(rows[:, weight.order], weight.matrix)
    else:
        out = quantized_linear(rows, weight)
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], out.shape[-1])


def embedding(ids: Tensor, weight: Tensor | QuantizedMatrix, dtype: torch.dtype) -> Tensor:
    """The rows `ids` int64 [T] of `weight` [vocab, hidden], in `dtype`."""
    if isinstance(weight, Tensor):
        return functional.embedding(ids, weight).to(dtype)
    return dequantize_rows(weight, ids, dtype)
