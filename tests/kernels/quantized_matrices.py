"""Random quantised matrices of every kind, and what the reference makes of them."""

from __future__ import annotations

import numpy as np
import torch

from moorage.kernels.quantized_linear import QuantizedMatrix, pack, reference, unpack

KINDS = ("int4", "int4_minima", "table4", "int8", "int8_minima", "float8")


def draw_matrix(
    rng: np.random.Generator, kind: str, shape: tuple[int, int], group_size: int, scale_dtype=torch.float16
) -> QuantizedMatrix:
    """A matrix of `kind` whose codes are uniform and whose scales and minima are normal."""
    num_rows, width = shape
    groups = (num_rows, width // group_size)
    scales = torch.from_numpy(rng.standard_normal(groups).astype(np.float32) * 0.02)
    minima = None
    if kind.endswith("minima"):
        minima = torch.from_numpy(rng.standard_normal(groups).astype(np.float32) * 0.1)
    table, bits = None, 4
    if kind == "table4":
        table = torch.from_numpy(rng.standard_normal(16).astype(np.float32) * 4)
    if kind.startswith("int8"):
        bits, codes = 8, torch.from_numpy(rng.integers(-128, 128, shape).astype(np.int8))
    elif kind == "float8":
        bits, codes = 8, torch.from_numpy(rng.standard_normal(shape)).to(torch.float8_e4m3fn)
    else:
        codes = torch.from_numpy(rng.integers(0, 16, shape).astype(np.uint8))
    return pack(codes, scales, minima, bits=bits, table=table, scale_dtype=scale_dtype)


def reference_weights(matrix: QuantizedMatrix) -> np.ndarray:
    """The weights of `matrix` by the reference, in fp64."""
    codes, scales, minima = unpack(matrix)
    meaning = None
    if matrix.table is not None:
        meaning = matrix.table.tolist()
    elif codes.dtype == torch.float8_e4m3fn:
        meaning = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().tolist()
        codes = codes.view(torch.uint8)
    elif codes.dtype == torch.uint8 and minima is None:
        meaning = [code - 8.0 for code in range(16)]
    lows = None if minima is None else minima.double().numpy()
    return reference.dequantize(codes.numpy().astype(np.int64), scales.double().numpy(), lows, meaning)
