"""Joins partial attention results by their log-sum-exp."""

from moorage.kernels.merge_lse.gpu import merge_lse

__all__ = ["merge_lse"]
