"""The best of what several shards selected."""

from moorage.kernels.merge_top.cpu import merge_top

__all__ = ["merge_top"]
