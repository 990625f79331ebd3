"""Every test of the engine once more, with copies that begin late and end in any order.

But for the one that compares bit by bit: what is there is attended before what is on its way, so that the order of
rounding depends on the cache.
"""

from __future__ import annotations

import pytest

from tests.engine_driver import Driver
from tests.workers.gpu.engine import test_engine
from tests.workers.gpu.test_overlap import emulated

BY_BITS = "test_what_stays_in_the_cache_never_changes_a_result"
globals().update(
    {
        name: value
        for name, value in vars(test_engine).items()
        if name == "llama" or (name.startswith("test_") and name != BY_BITS)
    }
)


@pytest.fixture(autouse=True)
def _emulated_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "default_copies", staticmethod(emulated))
