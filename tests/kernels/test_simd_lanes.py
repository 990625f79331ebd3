"""Instructions of this processor are used only where kernels are compiled for it."""

from __future__ import annotations

import llvmlite.binding
import numba
import pytest

from moorage.kernels.simd_lanes import host_has


@pytest.mark.parametrize("feature", ["avx2", "avx512f", "sse2"])
def test_a_feature_is_the_hosts(feature: str) -> None:
    assert host_has(feature) == llvmlite.binding.get_host_cpu_features().get(feature, False)


@pytest.mark.parametrize(("setting", "value"), [("CPU_NAME", "generic"), ("CPU_FEATURES", "+sse2")])
def test_another_target_has_none_of_them(setting: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, setting, value)
    assert not host_has("sse2")


def test_an_unknown_feature_is_absent() -> None:
    assert not host_has("frobnicate")
