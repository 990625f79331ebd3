"""Returns freed memory to the operating system after many large messages."""

from __future__ import annotations

import asyncio
import ctypes
import sys

import psutil

LOOK_EVERY_S = 5.0
_GROWTH_BYTES = 64 << 20


class HeapTrimmer:
    """Trims the heap of this process when it has grown; without that the C library keeps freed memory."""

    def __init__(self) -> None:
        self._settled_bytes = _resident_bytes()

    async def look(self) -> None:
        """Trims, in a thread, if the process holds 64 MiB more than after the last trim."""
        held = _resident_bytes()
        if held - self._settled_bytes > _GROWTH_BYTES:
            await asyncio.to_thread(_trim)
            held = _resident_bytes()
            self._settled_bytes = held
        self._settled_bytes = min(self._settled_bytes, held)


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _trim() -> None:
    """Calls glibc's malloc_trim; does nothing where the C library has no such function."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
