"""Attention that each key receives from some queries."""

from moorage.kernels.block_importance.gpu import attention_lse, token_importance

__all__ = ["attention_lse", "token_importance"]
