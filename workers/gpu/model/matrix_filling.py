"""Fills the parts of a decoder from a GGUF file's own codes."""

from __future__ import annotations

from moorage.workers.gguf.tensors import MatrixReader
from moorage.workers.gpu.model.matrix_rows import MatrixRows
from moorage.workers.gpu.model.naming import ExpertsSlot, Fillable, Slot

ROWS_AT_ONCE = 1 << 13
"""Rows that are read at once, a multiple of the panels of a matrix."""


def fill_matrices(slot: Fillable, reader: MatrixReader) -> None:
    """Copies a tensor whose type is that of all the matrices that `slot` has."""
    if isinstance(slot, ExpertsSlot):
        _fill_experts(slot, reader)
        return
    assert isinstance(slot, Slot)
    assert slot.groups == 1
    begin = 0
    for target, order in zip(slot.targets, slot.orders or (None,) * len(slot.targets), strict=True):
        assert isinstance(target, MatrixRows)
        if order is None:
            _fill(target, reader, begin)
        else:
            target.copy_matrix(reader.picked(begin + order))
        begin += target.num_rows


def _fill_experts(slot: ExpertsSlot, reader: MatrixReader) -> None:
    (target,) = slot.targets
    for index, expert in enumerate(target):
        assert isinstance(expert, MatrixRows)
        _fill(expert, reader, index * expert.num_rows)


def _fill(target: MatrixRows, reader: MatrixReader, begin: int) -> None:
    """Copies the rows from `begin` on, some at a time, so that no tensor is held twice."""
    for row in range(0, target.num_rows, ROWS_AT_ONCE):
        end = min(row + ROWS_AT_ONCE, target.num_rows)
        target.part(row, end).copy_matrix(reader.rows(begin + row, begin + end))
