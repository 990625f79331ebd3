"""Threads that help with short compiled work, some 20 us and more, without the interpreter.

A team's helpers look for work for a moment after each piece of work, so that the next one, a few microseconds later,
is begun at once. Then they let others have the core, and soon sleep until there is work again. Who has work does all
of it but for the units that helpers took: nobody waits for a helper that has not begun.

    @njit(**SERIAL)
    def _double_row(row: Any, x: Any) -> None:
        x[row] *= 2

    @njit(**SERIAL)
    def double_rows(team: Any, x: Any) -> None:
        run_units(team, len(x), *unit_call(_double_row, (x,)))

    double_rows(team_for(x.nbytes), x)
"""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from moorage.kernels import atomics
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL, parallel_limit
from moorage.kernels.simd_lanes import host_has
from moorage.kernels.unit_call import call_unit, unit_call

__all__ = [
    "ALONE",
    "TEAM_MIN_BYTES",
    "UNITS_PER_THREAD",
    "num_threads",
    "run_units",
    "team_for",
    "team_limit",
    "team_of",
    "unit_call",
    "units_for",
]

ALONE = 0
"""The team of a thread that has no helpers."""
UNITS_PER_THREAD = 4
"""Units for each thread where work can be divided at will, since a thread may begin late."""
TEAM_MIN_BYTES = 128 << 10
"""Memory traffic, some 10 us of one thread, from which on units are worth more than handing them over, half a us."""
_SPINS = 1000
"""Looks for work with nothing but a pause between them: some 20 us."""
_YIELDS = 600
"""Looks after that, before each of which other threads may have the core: some 300 us where there are none."""

_LINE = 64
"""Bytes between what different threads write."""
_TICKET, _FINISHED, _BUSY, _CODE, _DATA, _COUNT, _SLEEPING, _WAKE = (
    0, _LINE, 2 * _LINE, 2 * _LINE + 8, 2 * _LINE + 16, 2 * _LINE + 24, 3 * _LINE, 3 * _LINE + 8
)  # fmt: skip
_HELPERS = 5 * _LINE
_BYTES = 6 * _LINE
"""A team's memory, by offset in bytes. _TICKET: number of the work, times 2**32, and units that nobody has taken.
_FINISHED: units that are done. _BUSY: 1 while someone has work. _CODE, _DATA, _COUNT: of the work, which may be read
while the ticket has units, and hold if a unit can be taken after that. _SLEEPING: helpers that sleep, or are about
to, and have not been woken. _WAKE: a semaphore of the C library. _HELPERS: their number, which stays."""
_LEFT = (1 << 32) - 1

_sem_init = types.ExternalFunction("sem_init", types.int32(types.int64, types.int32, types.uint32))
_sem_post = types.ExternalFunction("sem_post", types.int32(types.int64))
_sem_wait = types.ExternalFunction("sem_wait", types.int32(types.int64))
_yield = types.ExternalFunction("sched_yield", types.int32())


@njit(**SERIAL)
def run_units(team: Any, count: Any, code: Any, data: Any) -> None:
    """Runs units [0, count) of `unit_call`, some of them by helpers of the team; returns when all are done.

    Where another thread has work for the team, this one runs all units itself.
    """
    if team == ALONE or count < 2 or not atomics.replace(team + _BUSY, 0, 1):
        for unit in range(count):
            call_unit(code, unit, data)
        return
    atomics.store(team + _CODE, code)
    atomics.store(team + _DATA, data)
    atomics.store(team + _COUNT, count)
    atomics.store(team + _FINISHED, 0)
    number = atomics.load(team + _TICKET) >> 32
    atomics.store(team + _TICKET, ((number + 1) << 32) | count)
    _wake(team, count - 1)
    while _run_one(team):
        pass
    looks = 0
    while atomics.load(team + _FINISHED) < count:
        looks = _look_again(looks)
    atomics.store(team + _BUSY, 0)


@njit(**SERIAL)
def _run_one(team: Any) -> Any:
    """Takes one unit and runs it; whether there was one."""
    while True:
        ticket = atomics.load(team + _TICKET)
        left = ticket & _LEFT
        if left == 0:
            return False
        code, data = atomics.load(team + _CODE), atomics.load(team + _DATA)
        unit = atomics.load(team + _COUNT) - left
        if atomics.replace(team + _TICKET, ticket, ticket - 1):
            call_unit(code, unit, data)
            atomics.add(team + _FINISHED, 1)
            return True


@njit(**SERIAL)
def _wake(team: Any, most: Any) -> None:
    if atomics.load(team + _SLEEPING) == 0:
        return
    sleeping = atomics.swap(team + _SLEEPING, 0)
    if sleeping > most:
        atomics.add(team + _SLEEPING, sleeping - most)
    for _ in range(min(sleeping, most)):
        _sem_post(team + _WAKE)


@njit(**SERIAL)
def _look_again(looks: Any) -> Any:
    """Waits a moment before the next look; the number of looks so far."""
    if looks < _SPINS:
        _pause()
    else:
        _yield()
    return looks + 1


@njit(**SERIAL)
def _help(team: Any) -> None:
    """What a helper does as long as the process lives."""
    looks = 0
    while True:
        if _run_one(team):
            looks = 0
        elif looks < _SPINS + _YIELDS:
            looks = _look_again(looks)
        else:
            atomics.add(team + _SLEEPING, 1)
            _sem_wait(team + _WAKE)
            looks = 0


@njit(**SERIAL)
def _prepare(team: Any, helpers: Any) -> None:
    _sem_init(team + _WAKE, 0, 0)
    atomics.store(team + _HELPERS, helpers)


@njit(**SERIAL)
def num_threads(team: Any) -> Any:
    """Threads of a team, the caller's included."""
    return np.int64(1) if team == ALONE else 1 + atomics.load(team + _HELPERS)


@intrinsic
def _pause(_typing: Any) -> Any:
    """Tells the processor that this thread waits for another one."""

    def build(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        if host_has("sse2"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), build


def team_for(num_bytes: int) -> int:
    """The team, for `run_units`, of work that reads or writes `num_bytes`: Numba's number of threads, or ALONE."""
    return ALONE if num_bytes < team_limit() else team_of(numba.get_num_threads())


def team_limit() -> int:
    """Bytes from which on work is for a team, for kernels that count bytes themselves."""
    return min(TEAM_MIN_BYTES, parallel_limit())


def units_for(team: int, most: int) -> int:
    """Units of work for a team that can be divided into at most so many; 1 for a thread alone."""
    return min(most, int(num_threads(team)) * UNITS_PER_THREAD) if team != ALONE else 1


def team_of(threads: int) -> int:
    """The team of the calling thread and `threads` - 1 helpers, which all callers in this process share."""
    return _team(threads).address if threads > 1 else ALONE


class _Team:
    """Helpers and the memory through which they are told of work."""

    def __init__(self, helpers: int) -> None:
        self._memory: NDArray[np.uint8] = np.zeros(_BYTES + _LINE, np.uint8)
        self.address = -(-int(self._memory.ctypes.data) // _LINE) * _LINE
        _prepare(self.address, helpers)
        for _ in range(helpers):
            threading.Thread(target=self._help, name="kernel-helper", daemon=True).start()

    def _help(self) -> None:
        _help(self.address)


@cache
def _team(threads: int) -> _Team:
    return _Team(threads - 1)


os.register_at_fork(after_in_child=_team.cache_clear)  # Threads do not come along.
