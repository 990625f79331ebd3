"""Telling want of memory from other errors."""

from __future__ import annotations

import torch

_SAYS = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was wanting, on the host or on a device.

    On a CPU torch has no class of its own for it: its allocator raises a plain RuntimeError.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAYS)
