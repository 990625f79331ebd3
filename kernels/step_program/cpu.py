"""Runs a program. Every row is computed by itself, in the same order of sums whatever rows are beside it."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.addresses import matrix_at
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.quantized_linear.cpu import run_panels, sum_groups
from moorage.kernels.quantized_linear.products import FIELDS as RECORD_FIELDS
from moorage.kernels.quantized_linear.products import Field
from moorage.kernels.step_program.program import Gate, Op
from moorage.kernels.vector_math import exp32

_LINEAR, _NORM, _ADD, _GATE, _REORDER = (int(op) for op in Op)
_SILU, _GELU_TANH = int(Gate.SILU), int(Gate.GELU_TANH)
_NUM_X, _X, _SUMS, _OUT, _STRIDE, _WIDTH, _GROUPS = (
    int(f) for f in (Field.NUM_X, Field.X, Field.SUMS, Field.OUT, Field.OUT_STRIDE, Field.WIDTH, Field.GROUPS)
)
_F32, _I64 = np.zeros(1, np.float32), np.zeros(1, np.int64)
_GELU_SCALE, _GELU_CUBE = np.float32(0.7978845608028654), np.float32(0.044715)


@njit(**SERIAL)
def run_program(ops: Any, numbers: Any, rows: Any) -> None:
    """Runs the operations of `Program.tables` for the first `rows` rows."""
    for i in range(len(ops)):
        kind = ops[i, 0]
        if kind == _LINEAR:
            _linear(ops[i], rows)
        elif kind == _NORM:
            _norm(ops[i], numbers[i, 0], rows)
        elif kind == _ADD:
            _add(ops[i], numbers[i, 0], rows)
        elif kind == _GATE:
            _gate(ops[i], numbers[i], rows)
        else:
            _reorder(ops[i], rows)


@njit(**SERIAL)
def _linear(op: Any, rows: Any) -> None:
    record, panels, team, units, bias = op[1], op[2], op[3], op[4], op[5]
    fields = matrix_at(record, 1, RECORD_FIELDS, _I64)[0]
    fields[_NUM_X] = rows
    if fields[_GROUPS] > 0:
        x = matrix_at(fields[_X], rows, fields[_WIDTH], _F32)
        sum_groups(x, matrix_at(fields[_SUMS], rows, fields[_GROUPS], _F32))
    run_panels(team, units, record, panels)
    if bias != 0:
        out = matrix_at(fields[_OUT], rows, fields[_STRIDE], _F32)
        added = matrix_at(bias, 1, panels * 16, _F32)[0]
        for t in range(rows):
            for c in range(panels * 16):
                out[t, c] += added[c]


@njit(**SERIAL)
def _norm(op: Any, eps: Any, rows: Any) -> None:
    count, size, step, centred = op[3], op[4], op[6], op[10] != 0
    x, out = matrix_at(op[1], rows, op[2], _F32), matrix_at(op[8], rows, op[9], _F32)
    weight = matrix_at(op[5], 1, size + step * (count - 1), _F32)[0]
    for t in range(rows):
        for part in range(count):
            first, place = part * size, part * step
            middle, total = np.float32(0), np.float32(0)
            if centred:
                for c in range(first, first + size):
                    middle += x[t, c]
                middle /= np.float32(size)
            for c in range(first, first + size):
                total += (x[t, c] - middle) * (x[t, c] - middle)
            scale = np.float32(1) / np.sqrt(total / np.float32(size) + eps)
            for c in range(size):
                out[t, first + c] = (x[t, first + c] - middle) * scale * weight[place + c]
            if op[7] != 0:
                bias = matrix_at(op[7], 1, size + step * (count - 1), _F32)[0]
                for c in range(size):
                    out[t, first + c] += bias[place + c]


@njit(**SERIAL)
def _add(op: Any, scale: Any, rows: Any) -> None:
    x, added = matrix_at(op[1], rows, op[2], _F32), matrix_at(op[4], rows, op[5], _F32)
    for t in range(rows):
        for c in range(op[3]):
            x[t, c] += scale * added[t, c]


@njit(**SERIAL)
def _gate(op: Any, numbers: Any, rows: Any) -> None:
    width, kind = op[3], op[6]
    both, out = matrix_at(op[1], rows, op[2], _F32), matrix_at(op[4], rows, op[5], _F32)
    for t in range(rows):
        gate, up, into = both[t, :width], both[t, width : 2 * width], out[t]
        if kind == _SILU:
            for c in range(width):
                into[c] = gate[c] * _sigmoid(gate[c]) * up[c]
        elif kind == _GELU_TANH:
            for c in range(width):
                inner = _GELU_SCALE * (gate[c] + _GELU_CUBE * gate[c] * gate[c] * gate[c])
                into[c] = gate[c] * _sigmoid(inner + inner) * up[c]  # (1 + tanh(u)) / 2 = sigmoid(2 u)
        else:
            slope, limit = numbers[0], numbers[1]
            for c in range(width):
                capped, other = min(gate[c], limit), max(min(up[c], limit), -limit)
                into[c] = capped * _sigmoid(slope * capped) * (other + np.float32(1))


@njit(**SERIAL)
def _reorder(op: Any, rows: Any) -> None:
    x, out = matrix_at(op[1], rows, op[2], _F32), matrix_at(op[5], rows, op[6], _F32)
    order = matrix_at(op[4], 1, op[3], _I64)[0]
    for t in range(rows):
        for c in range(op[3]):
            out[t, c] = x[t, order[c]]


@njit(**INLINE)
def _sigmoid(x: Any) -> Any:
    return np.float32(1) / (np.float32(1) + exp32(-x))
