"""Selection of the best blocks by their anchors."""

from moorage.kernels.block_select.cpu import select_blocks
from moorage.kernels.block_select.together import select_blocks_together

__all__ = ["select_blocks", "select_blocks_together"]
