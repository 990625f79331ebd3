"""One number of threads for every library that is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from moorage.runtime.bench.measure import installed


def use_threads(count: int) -> None:
    """Numba, torch and faiss compute with `count` threads from now on, or with as many as there are."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(count)
    if installed("faiss-cpu"):
        import faiss

        faiss.omp_set_num_threads(count)


class Pieces:
    """Work on even pieces of arrays in `threads` threads; numpy's own loops let go of the interpreter's lock."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def run(self, work: Callable[..., object], *arrays: NDArray[Any]) -> None:
        """Calls `work` once for each piece of all arrays, split along their first axis."""
        if self._threads == 1:
            work(*arrays)
            return
        parts = zip(*(np.array_split(array, self._threads) for array in arrays), strict=True)
        for done in [self._pool.submit(work, *part) for part in parts]:
            done.result()


def stream_read(pieces: Pieces, arrays: Sequence[NDArray[Any]]) -> None:
    """Reads every byte of `arrays` once, by sums of whole words: what memory delivers to this many threads."""
    for array in arrays:
        pieces.run(np.add.reduce, array.reshape(-1).view(np.uint64))
