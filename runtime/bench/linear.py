"""`bench linear`: one row of activations times weights of 4 to 32 bits, as a token that is generated meets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moorage.kernels.quantized_linear import QuantizedMatrix, quantized_linear
from moorage.kernels.quantized_linear.cpu import few_rows_linear
from moorage.runtime.bench.measure import interleave
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import Pieces, stream_read, use_threads
from moorage.workers.gpu.model.quantized import quantize

SHAPES = ((3072, 576), (28672, 4096))
"""[out, in] of gate and up of SmolLM2-135M and of Llama-3-8B."""
COLD_BYTES = 64 << 20
"""Matrices are taken in turn, so many that together they exceed most caches."""
GROUP = 32


def run_linear(threads: Sequence[int], rounds: int) -> Iterator[Row]:
    """Each type of weights beside memory's own speed, and those of torch beside torch."""
    for shape in SHAPES:
        for count in threads:
            use_threads(count)
            yield from _measure(shape, count, rounds)


def _measure(shape: tuple[int, int], threads: int, rounds: int) -> Iterator[Row]:
    torch.manual_seed(0)
    weight, x, pieces = torch.randn(shape), torch.randn(1, shape[1]), Pieces(threads)
    kinds: dict[str, Tensor | QuantizedMatrix] = {
        "int4": quantize(weight, 4, GROUP),
        "int8": quantize(weight, 8, GROUP),
        "bfloat16": weight.bfloat16(),
        "float32": weight,
    }
    for name, matrix in kinds.items():
        copies = [_copy(matrix) for _ in range(max(1, COLD_BYTES // matrix.nbytes))]
        turns, same_bytes = cycle(copies), np.ones(matrix.nbytes // 8, np.uint64)
        runs = {"own": partial(_own, x, turns), "read": partial(stream_read, pieces, [same_bytes])}
        if isinstance(matrix, Tensor):
            runs["torch"] = partial(_torch, x.to(matrix.dtype), turns)
        taken = interleave(runs, rounds)
        ratios = {"torch": taken["torch"] / taken["own"]} if "torch" in taken else {}
        yield Row(
            f"linear-{shape[0]}x{shape[1]}-{name}",
            taken["own"],
            None,
            threads,
            matrix.nbytes,
            taken["read"] / taken["own"],
            ratios,
        )


def _own(x: Tensor, matrices: Iterator[Tensor | QuantizedMatrix]) -> None:
    matrix = next(matrices)
    if isinstance(matrix, Tensor):
        few_rows_linear(x, matrix)
    else:
        quantized_linear(x, matrix)


def _torch(x: Tensor, matrices: Iterator[Tensor | QuantizedMatrix]) -> None:
    matrix = next(matrices)
    assert isinstance(matrix, Tensor)
    functional.linear(x, matrix)


def _copy(matrix: Tensor | QuantizedMatrix) -> Tensor | QuantizedMatrix:
    if isinstance(matrix, Tensor):
        return matrix.clone()
    codes, scales = matrix.codes.clone(), matrix.scales.clone()
    minima = None if matrix.minima is None else matrix.minima.clone()
    return QuantizedMatrix(codes, scales, minima, matrix.table, matrix.num_rows)
