"""Units of compiled work are run once each, by whoever is there, and helpers sleep when there is none."""

from __future__ import annotations

import os
import threading
import time
import warnings

import numba
import numpy as np
import pytest
from numba import njit

from moorage.kernels import atomics, thread_team
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.thread_team import ALONE, TEAM_MIN_BYTES, run_units, team_for, team_of, unit_call

LONG = 2_000_000_000
"""Looks after which a unit gives up waiting for another one."""


@njit(**SERIAL)
def _count(unit, counts, by):
    for _ in range(500):
        counts[unit] += by


@njit(**SERIAL)
def count_each(team, counts, by):
    run_units(team, len(counts), *unit_call(_count, (counts, by)))


@njit(**SERIAL)
def _meet(unit, here):
    """Unit 0 and unit 1 wait for each other: they end only if two threads run them."""
    address, looks = here.ctypes.data, 0
    atomics.add(address + 64 * unit, 1)
    while atomics.load(address + 64 * (1 - unit)) == 0 and looks < LONG:
        looks += 1
    here[8 * unit + 1] = looks < LONG


@njit(**SERIAL)
def meet(team, here):
    run_units(team, 2, *unit_call(_meet, (here,)))


@njit(**SERIAL)
def _hold(unit, gate):  # noqa: ARG001
    """Ends when gate[1] is set, after it has said in gate[0] that it has begun."""
    address = gate.ctypes.data
    atomics.add(address, 1)
    while atomics.load(address + 8) == 0:
        pass


@njit(**SERIAL)
def hold(team, gate):
    run_units(team, 2, *unit_call(_hold, (gate,)))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 200])
def test_each_unit_is_run_once(threads, count):
    counts = np.zeros(count, np.int64)
    for _ in range(50):
        count_each(team_of(threads), counts, 3)
    np.testing.assert_array_equal(counts, 50 * 500 * 3)


def test_a_helper_runs_units_meanwhile():
    here = np.zeros(16, np.int64)
    meet(team_of(2), here)
    assert here[1] == here[9] == 1


def test_a_helper_that_slept_is_woken():
    team = team_of(2)
    _wait_until(lambda: _num_sleeping(team) == 1)
    test_a_helper_runs_units_meanwhile()


def test_helpers_sleep_soon_without_work():
    team = team_of(5)
    count_each(team, np.zeros(100, np.int64), 1)
    _wait_until(lambda: _num_sleeping(team) == 4)


def test_one_team_serves_several_threads():
    """While one thread has work for the helpers, another one runs its units itself."""
    team, gate, counts = team_of(2), np.zeros(2, np.int64), np.zeros(50, np.int64)
    holder = threading.Thread(target=hold, args=(team, gate))
    holder.start()
    _wait_until(lambda: atomics_load(gate.ctypes.data) > 0)
    count_each(team, counts, 1)
    np.testing.assert_array_equal(counts, 500)
    gate[1] = 1
    holder.join()
    test_each_unit_is_run_once(2, 200)


def test_work_of_several_threads_at_once():
    counts = [np.zeros(40, np.int64) for _ in range(4)]

    def many(mine):
        for _ in range(300):
            count_each(team_of(2), mine, 1)

    threads = [threading.Thread(target=many, args=(mine,)) for mine in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in counts:
        np.testing.assert_array_equal(mine, 300 * 500)


def test_little_work_is_for_one_thread():
    assert team_for(TEAM_MIN_BYTES - 1) == ALONE
    assert team_for(TEAM_MIN_BYTES) == team_of(numba.get_num_threads())


def test_a_child_process_has_helpers_of_its_own():
    team_of(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        here = np.zeros(16, np.int64)
        meet(team_of(2), here)
        os._exit(int(here[1] + here[9]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


@njit(**SERIAL)
def atomics_load(address):
    return atomics.load(address)


def _num_sleeping(team):
    return atomics_load(team + thread_team._SLEEPING)


def _wait_until(holds):
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)
