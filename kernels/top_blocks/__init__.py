"""The largest scores of each row."""

from moorage.kernels.top_blocks.cpu import top_blocks

__all__ = ["top_blocks"]
