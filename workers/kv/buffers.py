"""Memory of one scorer that is used again from request to request."""

from __future__ import annotations

import numpy as np

from moorage.workers.kv.messages import Float32

_MAX_SPARE = 4
"""Buffers that wait for the next request."""


class Buffers:
    """A scratch area, and arrays that are borrowed and released."""

    def __init__(self) -> None:
        self._spare: list[Float32] = []
        self._scratch: Float32 = np.empty(0, np.float32)

    def scratch(self, size: int) -> Float32:
        """A buffer of at least `size` elements, for one call alone."""
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.float32)
        return self._scratch

    def borrow(self, *shape: int) -> Float32:
        """An array in the smallest spare buffer that fits, if there is one."""
        size = int(np.prod(shape))
        fitting = [buffer for buffer in self._spare if buffer.size >= size]
        if not fitting:
            return np.empty(size, np.float32).reshape(shape)
        best = min(fitting, key=lambda buffer: buffer.size)
        self._spare = [buffer for buffer in self._spare if buffer is not best]
        return best[:size].reshape(shape)

    def release(self, array: Float32) -> None:
        """Takes back what `borrow` gave; it must not be used again."""
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        self._spare = [*self._spare[-(_MAX_SPARE - 1) :], base.reshape(-1)]
