"""MXFP4 weights: against the format's definition, and as the two tensors of a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from moorage.kernels.quantized_linear import CodeKind, QuantizedMatrix, dequantize
from moorage.workers.gpu.model.matrix_kind import MatrixKind
from moorage.workers.gpu.model.matrix_rows import MatrixRows
from moorage.workers.gpu.model.mxfp4 import Mxfp4Slot, decode
from moorage.workers.gpu.model.quantized import empty_matrix


def of_code(code: int) -> float:
    """E2M1 by its bits: exponent 0 is subnormal."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if sign else size


def drawn(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of weights [..., out, in], groups of 32."""
    *rows, width = shape
    blocks = torch.randint(256, (*rows, width // 32, 16), dtype=torch.uint8)
    return blocks, torch.randint(100, 150, (*rows, width // 32), dtype=torch.uint8)


def test_weights_are_those_of_the_definition() -> None:
    blocks, scales = drawn(5, 96)
    scales[0] = torch.tensor([0, 127, 254])
    weights = decode(blocks, scales)
    for row in range(5):
        for column in range(96):
            group, place = divmod(column, 32)
            code = int(blocks[row, group, place // 2]) >> 4 * (place % 2) & 15
            assert weights[row, column] == of_code(code) * 2.0 ** (int(scales[row, group]) - 127)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes_first", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
def test_two_tensors_fill_the_parts_in_any_order(
    codes_first: bool, interleaved: bool, dtype: torch.dtype
) -> None:
    blocks, scales = drawn(3, 8, 64)
    gate, up = torch.empty(3, 4, 64, dtype=dtype), torch.empty(3, 4, 64, dtype=dtype)
    slot = Mxfp4Slot((gate, up), interleaved)
    for tensor in (blocks, scales) if codes_first else (scales, blocks):
        slot.fill(tensor)
    assert slot.is_finite()
    for expert in range(3):
        rows = decode(blocks[expert], scales[expert]).to(dtype)
        expected = (rows[0::2], rows[1::2]) if interleaved else (rows[:4], rows[4:])
        assert torch.equal(gate[expert], expected[0])
        assert torch.equal(up[expert], expected[1])


def test_codes_are_kept_where_the_matrix_has_their_table() -> None:
    """Of two experts, whose gate and up follow one another in one matrix."""
    blocks, scales = drawn(2, 64, 96)
    matrix = empty_matrix((2 * 64, 96), MatrixKind(CodeKind.TABLE4, 32, scale_bytes=4), "cpu")
    parts = tuple(MatrixRows(matrix, (start, 64 + start), 32, is_stack=True) for start in (0, 32))
    slot = Mxfp4Slot(parts, interleaved=True)
    slot.fill(blocks)
    slot.fill(scales)
    assert slot.is_finite()
    assert isinstance(matrix, QuantizedMatrix)
    for expert, weights in enumerate(dequantize(matrix).view(2, 64, 96)):
        rows = decode(blocks[expert], scales[expert])
        assert torch.equal(weights, torch.cat((rows[0::2], rows[1::2])))


def test_a_scale_that_is_no_number_shows() -> None:
    blocks, scales = drawn(2, 4, 32)
    scales[1, 2, 0] = 255
    target = torch.empty(2, 4, 32)
    slot = Mxfp4Slot((target,), interleaved=False)
    slot.fill(scales)
    assert slot.is_finite()
    slot.fill(blocks)
    assert not slot.is_finite()
    assert math.isnan(target[1, 2, 0])
    assert torch.isfinite(target[0]).all()
