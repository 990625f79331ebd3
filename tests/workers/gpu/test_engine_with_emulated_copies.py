"""Every test of the engine once more, with copies that begin late and end in any order.

But for two. One compares bit by bit: what is there is attended before what is on its way, so that the order of
rounding depends on the cache. The other goes through all families, which differ in what copies never meet.
"""

from __future__ import annotations

import pytest

from tests.engine_driver import Driver
from tests.workers.gpu.engine import test_engine
from tests.workers.gpu.test_overlap import emulated

LEFT_OUT = (
    "test_what_stays_in_the_cache_never_changes_a_result",
    "test_full_attention_equals_transformers_for_every_family",
)
globals().update(
    {
        name: value
        for name, value in vars(test_engine).items()
        if name == "llama" or (name.startswith("test_") and name not in LEFT_OUT)
    }
)


@pytest.fixture(autouse=True)
def _emulated_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "default_copies", staticmethod(emulated))
