"""Joins partial attention results by their log-sum-exp."""

from moorage.kernels.merge_lse.torch_ops import merge_lse

__all__ = ["merge_lse"]
