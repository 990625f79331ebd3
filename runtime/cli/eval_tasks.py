"""All of `runtime eval`: importing this registers its tasks."""

from moorage.runtime.cli import (
    eval,
    eval_extrapolation,
    eval_files,
    eval_harness,
    eval_passkey,
    eval_perplexity,
    eval_recall,
    eval_report,
    eval_retrieval,
    eval_sweep,
)

__all__ = [
    "eval",
    "eval_extrapolation",
    "eval_files",
    "eval_harness",
    "eval_passkey",
    "eval_perplexity",
    "eval_recall",
    "eval_report",
    "eval_retrieval",
    "eval_sweep",
]
