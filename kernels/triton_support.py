"""What the Triton kernels share: whether Triton is there, and how their small inputs reach the device.

Files named `triton.py` are imported only when tensors lie on a GPU, or by tests under Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ALIGNMENT = 16
"""Bytes; Triton reads whole vectors from pointers that are multiples of it."""
SPLIT_WAVES = 2
"""Programs of a split kernel for each multiprocessor, so that a slow one leaves no processor idle."""


@cache
def has_triton() -> bool:
    """Whether Triton is installed; without it a GPU runs the plain torch form."""
    return find_spec("triton") is not None


def power_of_2(count: int, least: int = 1) -> int:
    """The smallest power of two that is at least `count` and `least`."""
    return max(least, 1 << max(0, count - 1).bit_length())


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; on the CPU, where the interpreter runs programs one by one, a few."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may ask for on a GPU; on the CPU, under the interpreter, that of Hopper."""
    if device.type != "cuda":
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def upload(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """The arrays on the device, by one copy from pinned memory that does not wait."""
    arrays = [np.ascontiguousarray(array) for array in arrays]
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    packed = torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=device.type == "cuda")
    host = packed.numpy()
    for array, start in zip(arrays, starts, strict=True):
        host[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    there = packed.to(device, non_blocking=True)
    return [
        there[start : start + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for array, start in zip(arrays, starts, strict=True)
    ]
