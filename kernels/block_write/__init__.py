"""Token rows written into pages."""

from moorage.kernels.block_write.cpu import write_rows

__all__ = ["write_rows"]
