"""Blocks copied into slots."""

from moorage.kernels.block_gather.cpu import gather_blocks

__all__ = ["gather_blocks"]
