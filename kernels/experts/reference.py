"""Mixtures of experts from their definition, token by token, in fp64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def route(logits: Float64, per_token: int, normalized: bool) -> tuple[Int64, Float64]:
    """See the package."""
    experts = np.empty((len(logits), per_token), np.int64)
    weights = np.empty((len(logits), per_token))
    for token, row in enumerate(logits):
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        experts[token] = np.argsort(-row, kind="stable")[:per_token]
        weights[token] = probabilities[experts[token]]
        if normalized:
            weights[token] /= weights[token].sum()
    return experts, weights


def sum_experts(x: Float64, experts: Int64, weights: Float64, matrices: Float64) -> Float64:
    """The weighted sums of experts that multiply a row by a matrix each: matrices [E, D, D]."""
    out = np.zeros_like(x)
    for token, row in enumerate(x):
        for expert, weight in zip(experts[token], weights[token], strict=True):
            out[token] += weight * (matrices[expert] @ row)
    return out
