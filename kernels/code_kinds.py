"""The codes of quantised weights; free of torch, so that sizes are known without it."""

from __future__ import annotations

from enum import StrEnum, auto

PANEL = 16
"""Rows that lie interleaved. The last panel is padded with rows of zeros."""


class CodeKind(StrEnum):
    """What a code stands for; the value of a weight is scale * meaning + minimum."""

    INT4 = auto()
    """With minima: 0 to 15. Without: -8 to 7, stored plus 8 (Q4_0)."""
    TABLE4 = auto()
    """One of 16 numbers of the matrix's table (IQ4_NL, MXFP4)."""
    INT8 = auto()
    """-128 to 127."""
    FLOAT8 = auto()
    """The bits of an 8-bit float, E4M3 without infinities (FP8 checkpoints)."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 4 if self in (CodeKind.INT4, CodeKind.TABLE4) else 8
