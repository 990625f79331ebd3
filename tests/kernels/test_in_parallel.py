from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import numba, numpy as np
from numba import njit
from moorage.kernels.in_parallel import in_parallel, take
from moorage.kernels.numba_flags import SERIAL, parallel_limits

@njit(**SERIAL)
def square(counter, shared, out, runs):
    take(runs)
    i = take(counter)
    while i < len(out):
        if shared[0] < 0:
            raise ValueError("no square")
        out[i] = shared[0] * i * i
        i = take(counter)

@njit(**SERIAL)
def squares(threads, shared, out, runs):
    return in_parallel(square, threads, (np.zeros(1, np.int64), shared, out, runs))

_, threads = parallel_limits()
out, runs = np.zeros(1000, np.int64), np.zeros(1, np.int64)
print(squares(threads, (2, 5), out, runs), (out == 2 * np.arange(1000) ** 2).all(), runs[0])
print(squares(threads, (-2, 5), out, runs))
print(sum(squares.stats.cache_hits.values()))
"""


def test_every_thread_runs_and_all_work_is_done_once(tmp_path):
    """Also by a process that compiles nothing, and a thread that raises is noticed."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "3"}
    for hits in (0, 1):
        run = subprocess.run(
            [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.split("\n") == ["True True 3", "False", str(hits), ""]
