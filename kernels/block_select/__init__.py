"""Choice of the best blocks by their anchors."""

from moorage.kernels.block_select.cpu import Coded, select_blocks

__all__ = ["Coded", "select_blocks"]
