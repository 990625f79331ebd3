"""Which variables reach the actors of a Ray cluster that was started elsewhere."""

from __future__ import annotations

import os

from moorage.runtime.cluster.ray_environment import asked_niceness, of_actors


def test_threads_caches_and_priority_are_passed_and_nothing_that_is_the_host_s() -> None:
    passed = {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "NUMBA_CACHE_DIR": "/c",
        "MKL_NUM_THREADS": "1",
    }
    kept_back = {"HOME": "/root", "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "AWS_SECRET_ACCESS_KEY": "x"}
    niceness = {"MOORAGE_NICENESS": str(asked_niceness())}
    assert of_actors(passed | kept_back) == passed | niceness


def test_what_computes_comes_behind_the_server() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert asked_niceness() > own or own == 19
