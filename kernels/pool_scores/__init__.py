"""Scores of several heads pooled into one selection."""

from moorage.kernels.pool_scores.cpu import pool_scores, score_lse

__all__ = ["pool_scores", "score_lse"]
