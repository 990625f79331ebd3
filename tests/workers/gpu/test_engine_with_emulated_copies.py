"""Tests of the engine once more, with copies that begin late and end in any order.

But for three. One compares bit by bit: what is there is attended before what is on its way, so that the order of
rounding depends on the cache. Another goes through all families, which differ in what copies never meet. The third
goes through every anchor type; here one for each way of selecting is enough.
"""

from __future__ import annotations

import pytest

from moorage.workers.spec import AnchorType, HeadSelectMode, Positions
from tests.engine_driver import Driver
from tests.tiny_models import TinyModel
from tests.workers.gpu.engine import test_engine
from tests.workers.gpu.test_overlap import emulated

LEFT_OUT = (
    "test_what_stays_in_the_cache_never_changes_a_result",
    "test_full_attention_equals_transformers_for_every_family",
    "test_a_budget_that_covers_every_block_equals_full",
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


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA])
@pytest.mark.parametrize(
    ("mode", "anchor_type"),
    [
        (HeadSelectMode.SHARED, AnchorType.QUEST),
        (HeadSelectMode.SEPARATE, AnchorType.DYNAMIC),
        (HeadSelectMode.PERHEAD, AnchorType.REPR_TOPK),
    ],
)
def test_a_budget_of_every_block_equals_full(
    llama: TinyModel, positions: Positions, mode: HeadSelectMode, anchor_type: AnchorType
) -> None:
    test_engine.test_a_budget_that_covers_every_block_equals_full(llama, positions, mode, anchor_type)
