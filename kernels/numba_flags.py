"""The one set of compiler options and the threading layer of every Numba kernel.

Importing this module sets the layer, so each kernel imports it first. `omp` may be entered by several Python
threads at once; Numba's fallback aborts the process then. Idle OpenMP threads sleep: spinning ones would take the
cores that KV actors and workers share. A user's NUMBA_THREADING_LAYER and OMP_WAIT_POLICY win.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba

FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
"""Sums may be reordered; NaN and infinity keep their meaning, since masks and empty parts are infinities."""

SERIAL: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": FASTMATH}
INLINE: dict[str, Any] = {**SERIAL, "forceinline": True}
"""For small functions that take arrays: as a call, an array is a dozen arguments."""

PARALLEL_MIN_BYTES = 4 << 20
"""Memory traffic below which waking the other threads (some 60 us) costs more than it saves."""

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "NUMBA_THREADING_LAYER" not in os.environ:
    numba.config.THREADING_LAYER = "omp"


_min_bytes = PARALLEL_MIN_BYTES
_started = False


def num_workers(num_bytes: int) -> int:
    """Threads worth waking for work that reads or writes `num_bytes`; 1 stands for the serial path."""
    _start_threads()
    return 1 if num_bytes < _min_bytes else int(numba.get_num_threads())


def parallel_limit() -> int:
    """Bytes from which on work is dealt to threads, for kernels that count bytes and threads themselves."""
    _start_threads()
    return _min_bytes


def _start_threads() -> None:
    global _started
    if not _started:
        # A kernel that is loaded from the disk cache before the threads run has nothing behind its calls of parallel
        # ones, and ends the process when it makes one.
        numba.get_num_threads()
        _started = True


@contextmanager
def always_parallel() -> Iterator[None]:
    """Kernels take their parallel path for any amount of work meanwhile, so that a warm-up compiles it."""
    global _min_bytes
    _min_bytes = 0
    try:
        yield
    finally:
        _min_bytes = PARALLEL_MIN_BYTES


def in_both_ways(use: Callable[[], None]) -> None:
    """Runs `use` on one thread, and in parallel: what starts threads is a kernel, too."""
    use()
    with always_parallel():
        use()
