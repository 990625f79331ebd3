"""The table of `runtime demo`: what one or several requests took, a column each."""

from __future__ import annotations

from collections.abc import Mapping

from moorage.runtime.cli.output import format_gb, print_table
from moorage.runtime.serving.usage import Usage


def print_figures(usages: Mapping[str, Usage]) -> None:
    """One column for each request, by its name."""
    columns = {name: _figures(usage) for name, usage in usages.items()}
    figures = next(iter(columns.values()))
    print_table(
        ("figure", *columns),
        [(figure, *(column[figure] for column in columns.values())) for figure in figures],
        right=tuple(columns),
    )


def _figures(usage: Usage) -> dict[str, str]:
    kept = f" ({usage.cached_tokens:,} kept)" if usage.cached_tokens else ""
    return {
        "prompt tokens": f"{usage.prompt_tokens:,}{kept}",
        "time to first token": _shown(usage.time_to_first_token_s, "{:.1f} s"),
        "prefill": _shown(usage.prefill_tokens_per_s, "{:,.0f} tokens/s"),
        "decode": _shown(usage.decode_tokens_per_s, "{:.1f} tokens/s"),
        "DRAM held": f"{format_gb(usage.dram_bytes)} GB",
        "tokens attended at most": f"{usage.budget_tokens:,}" if usage.budget_tokens else "all",
        "recall of the attention mass": _shown(usage.recall, "{:.3f}"),
    }


def _shown(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)
