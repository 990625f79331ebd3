"""How a program is written: its arrays, and one method for each operation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moorage.kernels.quantized_linear import PANEL, QuantizedMatrix
from moorage.kernels.quantized_linear.cpu import record_of
from moorage.kernels.quantized_linear.products import Field
from moorage.kernels.thread_team import team_for, units_for

FIELDS = 12
"""Numbers of an operation, its kind included."""


class Op(IntEnum):
    """What an operation does; the numbers after it are those of the method of `Program`."""

    LINEAR = 0
    NORM = 1
    ADD = 2
    GATE = 3
    REORDER = 4


class Gate(IntEnum):
    """Activations of a gate, as `Activation` defines them."""

    SILU = 0
    GELU_TANH = 1
    CLAMPED_SWISH = 2


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns [first, first + width) of a float32 tensor [most rows, stride] that operations read or write."""

    tensor: Tensor
    first: int = 0
    width: int = 0

    @classmethod
    def empty(cls, most: int, width: int) -> Rows:
        """A tensor of its own."""
        return cls(torch.zeros(most, width), 0, width)

    def columns(self, first: int, width: int) -> Rows:
        """Some of the columns."""
        return Rows(self.tensor, self.first + first, width)

    @property
    def address(self) -> int:
        """Where the first row begins."""
        return self.tensor.data_ptr() + 4 * self.first

    @property
    def stride(self) -> int:
        """Elements between two rows."""
        return self.tensor.shape[1]


@dataclass(slots=True)
class Program:
    """Operations in their order. It holds every array whose address stands in them."""

    ops: list[list[int]] = field(default_factory=list)
    numbers: list[tuple[float, float]] = field(default_factory=list)
    held: list[object] = field(default_factory=list)

    def linear(
        self, x: Rows, weight: Tensor | QuantizedMatrix, out: Rows, bias: Tensor | None = None
    ) -> None:
        """out = x times the transposed `weight` + bias (float32). Rows of `out` are a multiple of PANEL."""
        if x.first or x.stride != x.width or (x.width, out.width) != (weight.shape[1], weight.shape[0]):
            raise ValueError(
                f"x {x.width} of {x.stride}, weight {list(weight.shape)}, out {out.width} do not fit"
            )
        if out.width % PANEL:
            raise ValueError(f"{out.width} output channels; expected a multiple of {PANEL}")
        record = record_of(weight)
        sums = torch.zeros(x.tensor.shape[0], max(1, int(record[Field.GROUPS])))
        record[Field.X], record[Field.SUMS] = x.address, sums.data_ptr()
        record[Field.OUT], record[Field.OUT_STRIDE] = out.address, out.stride
        team = team_for(weight.nbytes)
        self._add(
            Op.LINEAR,
            record.ctypes.data,
            out.width // PANEL,
            team,
            units_for(team, out.width // PANEL),
            0 if bias is None else bias.data_ptr(),
        )
        self.held += [record, sums, weight, bias, x, out]

    def norm(
        self, x: Rows, weight: Tensor, bias: Tensor | None, out: Rows, eps: float, *, size: int, centred: bool
    ) -> None:
        """Each `size` channels of x divided by their root mean square or, centred, by their deviation.

        `weight` float32 is of `size` channels, for all alike, or of all channels; `bias` likewise.
        """
        count = x.width // size
        step = size if weight.numel() == x.width else 0
        self._add(
            Op.NORM,
            x.address,
            x.stride,
            count,
            size,
            weight.data_ptr(),
            step,
            0 if bias is None else bias.data_ptr(),
            out.address,
            out.stride,
            int(centred),
            number=eps,
        )
        self.held += [x, weight, bias, out]

    def add(self, x: Rows, added: Rows, scale: float) -> None:
        """x += scale * added."""
        self._add(Op.ADD, x.address, x.stride, x.width, added.address, added.stride, number=scale)
        self.held += [x, added]

    def gate(self, kind: Gate, gate_up: Rows, out: Rows, slope: float = 0.0, limit: float = 0.0) -> None:
        """out = activation(first half) * second half. `slope` and `limit` are of CLAMPED_SWISH."""
        self._add(
            Op.GATE, gate_up.address, gate_up.stride, out.width, out.address, out.stride, kind,
            number=slope, second=limit,
        )  # fmt: skip
        self.held += [gate_up, out]

    def reorder(self, x: Rows, order: Tensor, out: Rows) -> None:
        """out[:, i] = x[:, order[i]]; `order` is int64."""
        self._add(Op.REORDER, x.address, x.stride, out.width, order.data_ptr(), out.address, out.stride)
        self.held += [x, order, out]

    def tables(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What `run_program` takes: [operations, FIELDS] and [operations, 2]."""
        return np.array(self.ops, np.int64).reshape(-1, FIELDS), np.array(self.numbers, np.float32).reshape(
            -1, 2
        )

    def _add(self, op: Op, *values: int, number: float = 0.0, second: float = 0.0) -> None:
        self.ops.append([op, *values, *[0] * (FIELDS - 1 - len(values))])
        self.numbers.append((number, second))
