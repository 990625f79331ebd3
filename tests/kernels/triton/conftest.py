"""Where the Triton kernels run: on the GPU if the interpreter is off, else on the CPU under it."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if os.environ["TRITON_INTERPRET"] == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("TRITON_INTERPRET=0 and no GPU")
    return torch.device("cuda")


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Types of stored keys and values."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def multiplied(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Types whose matrix products can run here: the interpreter would multiply the bits of bf16."""
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter does not multiply bf16")
    return dtype
