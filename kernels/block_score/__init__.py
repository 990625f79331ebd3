"""Scores of blocks by their anchors."""

from moorage.kernels.block_score.cpu import score_blocks

__all__ = ["score_blocks"]
