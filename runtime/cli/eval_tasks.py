"""All of `runtime eval`: importing this registers its tasks."""

from moorage.runtime.cli import eval, eval_passkey, eval_perplexity, eval_recall, eval_sweep

__all__ = ["eval", "eval_passkey", "eval_perplexity", "eval_recall", "eval_sweep"]
