"""Inputs that every kernel test draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moorage.kernels.half import Storage, to_storage

Draw = Callable[..., Storage]


@pytest.fixture(params=[np.uint16, np.float32], ids=["fp16", "fp32"])
def storage(request: pytest.FixtureRequest) -> np.dtype:
    """Both storage types."""
    return np.dtype(request.param)


@pytest.fixture
def draw(rng: np.random.Generator, storage: np.dtype) -> Draw:
    """Stored normal numbers of the storage type: draw(*shape)."""

    def stored(*shape: int) -> Storage:
        return to_storage(rng.standard_normal(shape).astype(np.float32), storage == np.uint16)

    return stored
