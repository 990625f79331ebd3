"""What a quantised matrix takes in memory; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.kernels.code_kinds import PANEL, CodeKind

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MatrixKind:
    """What a quantised matrix takes in memory."""

    code: CodeKind
    group_size: int
    """Channels of a row that share a scale."""
    scale_bytes: int = 2
    """2 for float16, 4 for float32."""
    has_minima: bool = False
    has_order: bool = False
    """Whether columns stand in another order than input channels do."""

    def num_bytes(self, shape: Shape) -> int:
        """Bytes of a matrix [out, in], or of those of all experts [experts, out, in], without its table."""
        number, rows, width = (1, *shape)[-3:]
        rows = -(-number * rows // PANEL) * PANEL
        scales = width // self.group_size * self.scale_bytes * (2 if self.has_minima else 1)
        order = 8 * number * width if self.has_order else 0
        return rows * (width * self.code.bits // 8 + scales) + order


def integers(bits: int) -> CodeKind:
    """Codes of 4 or 8 bits that are numbers."""
    return {4: CodeKind.INT4, 8: CodeKind.INT8}[bits]
