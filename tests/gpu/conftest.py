"""Tests that only a CUDA device can run; `make gpu` runs them before it measures anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder's tests without a device, and under Triton's interpreter, which takes CPU tensors alone."""
    reason = None
    if not torch.cuda.is_available():
        reason = "there is no CUDA device"
    elif os.environ.get("TRITON_INTERPRET") == "1":
        reason = "Triton's kernels are interpreted; set TRITON_INTERPRET=0"
    for item in items:
        if reason is not None and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda")
