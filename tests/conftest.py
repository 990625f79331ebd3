"""What every test starts from: settled threads, no network, seeded randomness, poisoned memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any

# torch, Numba and Triton read these once, on import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
# Idle OpenMP threads would otherwise spin on the cores of the other test process.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Triton's kernels run on CPU tensors; TRITON_INTERPRET=0 runs them on a GPU where the tests find one.
os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

# A slow machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that differ from test to test and never from run to run."""
    return np.random.default_rng(_seed_of(request))


@pytest.fixture(autouse=True)
def _seeded_torch(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(_seed_of(request))


@pytest.fixture
def poisoned() -> Callable[..., np.ndarray[Any, Any]]:
    """`poisoned(shape, dtype)`: an output array whose unwritten elements show: NaN, or the least integer."""
    return _poisoned


@pytest.fixture(autouse=True)
def _poisoned_torch_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` and its like give NaN, so that reading memory before writing it fails a test.

    numpy's are left alone: Numba knows `np.empty` by identity and could not compile a replacement.
    """
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, _filling_with_nan(getattr(owner, name)))


def _filling_with_nan(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned_allocate(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return poisoned_allocate


def _poisoned(shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    dtype = np.dtype(dtype)
    if dtype == np.uint16:
        return np.full(shape, np.float16(np.nan).view(np.uint16), dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else np.iinfo(dtype).min, dtype)


def _seed_of(request: pytest.FixtureRequest) -> int:
    return zlib.crc32(request.node.nodeid.encode())
