"""What all Numba kernels owe: a disk cache that serves the next process, and entry from several threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from moorage.kernels.block_score import score_blocks
from moorage.kernels.numba_flags import PARALLEL_MIN_BYTES, num_workers

PROGRAM = """
import numpy as np
from moorage.kernels.block_score import cpu
anchors = np.zeros((3, 2, 2, 32), np.uint16)
queries, out = np.zeros((1, 4, 32), np.float32), np.zeros((1, 4, 3), np.float32)
cpu.score_blocks(anchors, np.arange(3, dtype=np.int32), queries, True, out)
stats = cpu.score.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_the_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in runs] == [["0", "1"], ["1", "0"]]


def test_two_threads_may_run_parallel_kernels_at_once(rng):
    anchors = rng.integers(0, 2**14, (2000, 8, 2, 128)).astype(np.uint16)
    pages = np.arange(2000, dtype=np.int32)
    queries = rng.standard_normal((1, 8, 128)).astype(np.float32)
    assert anchors.nbytes > PARALLEL_MIN_BYTES
    outs = [np.empty((1, 8, 2000), np.float32) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda out: score_blocks(anchors, pages, queries, False, out), outs))
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])


def test_little_work_stays_serial():
    assert num_workers(PARALLEL_MIN_BYTES - 1) == 1
    assert num_workers(PARALLEL_MIN_BYTES) == numba.get_num_threads()


NESTED = """
import numpy as np
from moorage.kernels.block_select import select_blocks
from moorage.kernels.numba_flags import always_parallel

def select():
    anchors = np.zeros((40, 1, 1, 64), np.uint16)
    queries, limits = np.zeros((1, 1, 64), np.float32), np.full(1, 40, np.int32)
    ids, scores = np.zeros((1, 1, 4), np.int32), np.zeros((1, 1, 4), np.float32)
    arguments = {"quest": False, "scale": 1.0, "ids": ids, "scores": scores, "scratch": np.zeros(40, np.float32)}
    select_blocks(anchors, np.arange(40, dtype=np.int32), queries, limits, **arguments)
    print(ids.tolist())

select()
with always_parallel():
    select()
"""


def test_a_kernel_from_the_cache_may_turn_parallel_later(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", NESTED], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.split("\n")[:2] == ["[[[0, 1, 2, 3]]]"] * 2
