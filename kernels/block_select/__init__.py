"""Selection of the best blocks by their anchors."""

from moorage.kernels.block_select.cpu import Coded, select_blocks
from moorage.kernels.block_select.together import SeveralCoded, select_blocks_together

__all__ = ["Coded", "SeveralCoded", "select_blocks", "select_blocks_together"]
