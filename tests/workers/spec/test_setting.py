"""Settings are declared once, found by name in whichever part holds them, and changed by name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.spec import MemorySpec, RotarySettings, StoreSpec
from moorage.workers.spec.setting import Limits, part, replaced, setting, settings_of, values_of


@dataclass(frozen=True)
class Sail:
    reefs: int = setting(2, "Rows of reefing points.", Limits(least=0, most=4))
    cloth: str = "canvas"


@dataclass(frozen=True)
class Boat:
    name: str
    sail: Sail = part(Sail)
    draught_m: float | None = setting(None, "Depth below the water line.", of_preset=False, research=True)


def test_settings_of_a_record_and_of_its_parts_come_in_order() -> None:
    reefs, draught = settings_of(Boat)
    assert (reefs.name, reefs.kind, reefs.default, reefs.declared.limits) == ("reefs", int, 2, Limits(0, 4))
    assert (draught.name, draught.kind) == ("draught_m", float | None)
    assert (draught.declared.of_preset, draught.declared.research) == (False, True)


def test_a_value_is_found_and_changed_by_its_own_name() -> None:
    boat = Boat("Argo")
    assert values_of(boat) == {"name": "Argo", "reefs": 2, "cloth": "canvas", "draught_m": None}
    other = replaced(boat, {"reefs": 3, "draught_m": 1.5})
    assert other == Boat("Argo", Sail(3), 1.5)
    assert boat == Boat("Argo")


def test_a_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="mast"):
        replaced(Boat("Argo"), {"mast": 1})


def test_no_two_settings_have_one_name() -> None:
    kinds = (MemorySpec, RotarySettings, StoreSpec, EngineSettings)
    names = [each.name for kind in kinds for each in settings_of(kind)]
    assert len(names) == len(set(names))


def test_every_setting_says_what_it_does() -> None:
    for kind in (MemorySpec, RotarySettings, StoreSpec, EngineSettings):
        for each in settings_of(kind):
            assert each.declared.description.endswith("."), each.name
            assert (each.declared.limits.unit == "bytes") == each.name.endswith("_bytes")
