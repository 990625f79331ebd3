"""Inputs that every kernel test draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from moorage.kernels.half import Storage, to_storage

HEAD_SIZES = (16, 32, 64, 96, 128, 256)
GROUPS = (1, 2, 3, 4, 5, 6, 7, 8)

Draw = Callable[..., Storage]


@pytest.fixture(params=[np.uint16, np.float32], ids=["fp16", "fp32"])
def storage(request: pytest.FixtureRequest) -> np.dtype:
    """Both storage types."""
    return np.dtype(request.param)


@pytest.fixture
def draw(storage: np.dtype) -> Draw:
    """Stored normal numbers: draw(rng, *shape)."""

    def stored(rng: np.random.Generator, *shape: int) -> Storage:
        return to_storage(rng.standard_normal(shape).astype(np.float32), storage == np.uint16)

    return stored


@pytest.fixture
def poisoned(storage: np.dtype) -> Draw:
    """Stored NaN: poisoned(*shape)."""

    def stored(*shape: int) -> Storage:
        return to_storage(np.full(shape, np.nan, np.float32), storage == np.uint16)

    return stored
