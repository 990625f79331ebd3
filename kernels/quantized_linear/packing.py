"""Between rows of codes and the interleaved panels of a QuantizedMatrix; plain torch operations on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from moorage.kernels.code_kinds import PANEL, CodeKind
from moorage.kernels.quantized_linear.matrix import INT4_ZERO, WORD_CODES, QuantizedMatrix


def pack(
    codes: Tensor,
    scales: Tensor,
    minima: Tensor | None = None,
    *,
    bits: int,
    table: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
) -> QuantizedMatrix:
    """The matrix of `codes` [out, in] with `scales` and `minima` [out, groups].

    With 4 bits codes are 0 to 15: indices of `table`, or numbers to which -INT4_ZERO is added where there are no
    minima. With 8 bits they are -128 to 127, or of type float8_e4m3fn.
    """
    kind = {4: CodeKind.INT4 if table is None else CodeKind.TABLE4, 8: CodeKind.INT8}[bits]
    if codes.dtype == torch.float8_e4m3fn:
        kind, codes = CodeKind.FLOAT8, codes.view(torch.uint8)
    num_rows, width = codes.shape
    matrix = QuantizedMatrix.empty(
        (num_rows, width),
        width // scales.shape[1],
        kind,
        has_minima=minima is not None,
        scale_dtype=scale_dtype,
        table=table,
        device=codes.device,
    )
    if kind.bits == 4:
        pairs = codes.to(torch.uint8).reshape(num_rows, width // 2, 2)
        codes = (pairs[..., 0] | pairs[..., 1] << 4).contiguous().view(torch.int32)
    matrix.codes.copy_(_interleaved(codes))
    matrix.scales.copy_(_interleaved(scales))
    if minima is not None and matrix.minima is not None:
        matrix.minima.copy_(_interleaved(minima))
    return matrix


def unpack(matrix: QuantizedMatrix) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes [out, in] as `pack` takes them, scales and minima [out, groups]."""
    codes = matrix.codes
    if matrix.kind.bits == 4:
        shifts = 4 * torch.arange(WORD_CODES, dtype=torch.int32, device=codes.device)
        codes = (codes.unsqueeze(2) >> shifts.unsqueeze(1)).bitwise_and_(15).to(torch.uint8).flatten(1, 2)
    if matrix.kind is CodeKind.FLOAT8:
        codes = codes.view(torch.float8_e4m3fn)
    minima = None if matrix.minima is None else _rows(matrix.minima, matrix.num_rows)
    return _rows(codes, matrix.num_rows), _rows(matrix.scales, matrix.num_rows), minima


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights [out, in]; computed in float32, then rounded to `dtype`."""
    codes, scales, minima = unpack(matrix)
    if matrix.table is not None:
        values = matrix.table[codes.long()]
    else:
        values = codes.float()
        if matrix.kind is CodeKind.INT4 and minima is None:
            values -= INT4_ZERO
    groups = values.view(*scales.shape, matrix.group_size)
    groups *= scales.float().unsqueeze(-1)
    if minima is not None:
        groups += minima.float().unsqueeze(-1)
    return values.to(dtype)


def dequantize_rows(matrix: QuantizedMatrix, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows `ids` int64 [n] of the weights, [n, in]."""
    panels, lanes = ids // PANEL, ids % PANEL
    picked = QuantizedMatrix(
        _picked(matrix.codes, panels, lanes),
        _picked(matrix.scales, panels, lanes),
        None if matrix.minima is None else _picked(matrix.minima, panels, lanes),
        matrix.table,
        len(ids),
    )
    return dequantize(picked, dtype)


def _interleaved(rows: Tensor) -> Tensor:
    """[out, n] as [panels, n, PANEL], padded with 0."""
    padding = -rows.shape[0] % PANEL
    if padding:
        rows = torch.cat([rows, rows.new_zeros(padding, rows.shape[1])])
    return rows.view(-1, PANEL, rows.shape[1]).transpose(1, 2)


def _rows(panels: Tensor, num_rows: int) -> Tensor:
    """[panels, n, PANEL] as [out, n]."""
    rows = panels.transpose(1, 2).reshape(-1, panels.shape[1])
    return rows[:num_rows].contiguous()


def _picked(tensor: Tensor, panels: Tensor, lanes: Tensor) -> Tensor:
    """Rows by panel and lane, interleaved anew."""
    return _interleaved(tensor[panels, :, lanes]).contiguous()
