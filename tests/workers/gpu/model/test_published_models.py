"""Published configurations, scaled down in width, on an engine: equal to transformers, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.published_models import PUBLISHED
from tests.workers.gpu.model.parity import largest_difference, refusal, rows

REFUSED = {
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "Qwen3NextForCausalLM is not supported",
    "ai21labs/AI21-Jamba-1.5-Mini": "JambaForCausalLM is not supported",
    "deepseek-ai/DeepSeek-V3": "DeepseekV3ForCausalLM is not supported",
    "ibm-granite/granite-4.0-h-tiny": "GraniteMoeHybridForCausalLM is not supported",
    "mosaicml/mpt-7b": "MPTForCausalLM is not supported",
    "openbmb/MiniCPM3-4B": "MiniCPM3ForCausalLM is not supported",
}
"""A piece of the line that says why."""
SERVED = [name for name in PUBLISHED if name not in REFUSED]


@pytest.mark.parametrize("name", SERVED)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    assert largest_difference(name, tmp_path) < 1e-4


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published_it_is_served_or_refused_in_one_line(name: str) -> None:
    reason = refusal(name)
    if name in SERVED:
        assert reason is None
    else:
        assert reason is not None
        assert REFUSED[name] in reason
        assert "\n" not in reason


def test_the_table_of_families_has_every_model() -> None:
    assert [*rows()] == [*PUBLISHED]
