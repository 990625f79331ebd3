"""Choices of memory as they are written on a command line."""

from __future__ import annotations

import pytest

from moorage.runtime.evals.variants import parse_variant
from moorage.workers.errors import InvalidRequest


def test_settings_are_parted_at_commas_before_another_key() -> None:
    found = parse_variant(
        "exact sinks:memory.rope_scaling={rope_type: linear, factor: 4},memory.n_fp16_sinks=0, memory.topk=4"
    )
    assert found.name == "exact sinks"
    assert found.overrides == (
        "memory.rope_scaling={rope_type: linear, factor: 4}",
        "memory.n_fp16_sinks=0",
        "memory.topk=4",
    )


@pytest.mark.parametrize("text", ["memory.topk=4", "wide:topk=4", ":memory.topk=4"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"NAME:section\.key=value"):
        parse_variant(text)
