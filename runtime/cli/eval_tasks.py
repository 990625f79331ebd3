"""All of `runtime eval`: importing this registers its tasks, in the order of its help."""

from importlib import import_module

MODULES = (
    "eval_passkey",
    "eval_retrieval",
    "eval_perplexity",
    "eval_extrapolation",
    "eval_recall",
    "eval_fidelity",
    "eval_fidelity_report",
    "eval_compare",
    "eval_formats",
    "eval_sweep",
    "eval_files",
    "eval_harness",
    "eval_report",
)

for _module in MODULES:
    import_module(f"moorage.runtime.cli.{_module}")
