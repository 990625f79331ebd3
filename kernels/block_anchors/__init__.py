"""Representative vectors of sealed blocks."""

from moorage.kernels.block_anchors.cpu import build_anchors

__all__ = ["build_anchors"]
