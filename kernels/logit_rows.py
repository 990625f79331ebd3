"""What a draw needs to know of whole rows of logits on the host, each in one pass of compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import FLOAT32, check_array
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.simd_lanes import LANES
from moorage.kernels.simd_softmax import row_peak, row_weights
from moorage.kernels.thread_team import run_units, team_for, unit_call

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_PIECE = 2048
"""Logits whose weights are held at once; a multiple of LANES."""
_LOG2_E, _ONE = np.float32(1.4426950408889634), np.float32(1)


def summarise_rows(logits: Float32) -> tuple[Int64, Float32, Float32]:
    """(place of the largest logit, the first of equal ones; this logit; log-sum-exp) of each row of `logits` [n, V].

    The log-sum-exp of a row that holds infinity or NaN is not finite. A row's results do not depend on the others.
    """
    check_array("logits", logits, FLOAT32, (None, None))
    count, width = logits.shape
    if not width:
        raise ValueError("rows without logits")
    places, most, mass = np.empty(count, np.int64), np.empty(count, np.float32), np.empty(count, np.float32)
    _summarise_rows(team_for(logits.nbytes), logits, places, most, mass)
    return places, most, mass


@njit(**SERIAL)
def _summarise_rows(team: Any, logits: Any, places: Any, most: Any, mass: Any) -> None:
    run_units(team, len(logits), *unit_call(_summarise, (logits, places, most, mass)))


@njit(**SERIAL)
def _summarise(row: Any, logits: Any, places: Any, most: Any, mass: Any) -> None:
    values, width = logits[row], logits.shape[1]
    whole, begin, peak = width // _PIECE * _PIECE, np.int64(0), np.float32(-np.inf)
    for at in range(0, whole, _PIECE):
        highest = row_peak(values.ctypes.data + 4 * at, _PIECE // LANES)
        if highest > peak:
            begin, peak = np.int64(at), highest
    for at in range(whole, width):
        if values[at] > peak:
            begin, peak = np.int64(at), values[at]
    places[row], most[row] = _first(values, begin, peak), peak
    below, total = np.empty(_PIECE, np.float32), np.float64(0)
    room = below.ctypes.data
    for at in range(0, width, _PIECE):
        source, number = values[at : at + _PIECE], min(_PIECE, width - at)
        for t in range(number):
            below[t] = source[t] - peak  # before it is scaled: large logits lose their differences
        below[number:] = -np.inf
        total += row_weights(_ONE, room, _PIECE // LANES, _LOG2_E, np.float32(0), room)
    mass[row] = peak + np.log(total)


@njit(**SERIAL)
def _first(values: Any, begin: Any, wanted: Any) -> Any:
    """The first place from `begin` on that holds `wanted`; `begin` where none does."""
    for at in range(begin, len(values)):
        if values[at] == wanted:
            return at
    return begin
