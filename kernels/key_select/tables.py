"""The look-up tables of queries that meet one-bit codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.hadamard import turn_heads
from moorage.kernels.key_select.lanes import ENTRIES, LARGEST, TABLE_BYTES
from moorage.kernels.numba_flags import SERIAL

_HALF = np.float32(0.5)


@njit(**SERIAL)
def make_tables(queries: Any, tables: Any, terms: Any) -> None:
    """tables [G, D / 8, 2, TABLE_BYTES] and terms [G, 2], as `VALUES_WIDE` takes them, of queries [G, D].

    An entry stands for the sum of four channels of the transformed query with the signs that four bits say, in 127
    equal steps between the lowest and the highest sum there is.
    """
    turned = queries.copy()
    turn_heads(turned)
    sums = np.empty(ENTRIES, np.float32)
    for g in range(len(turned)):
        highest = np.float32(0)
        for d in range(0, turned.shape[1], 4):
            total = abs(turned[g, d]) + abs(turned[g, d + 1]) + abs(turned[g, d + 2]) + abs(turned[g, d + 3])
            highest = max(highest, total)
        step = 2 * highest / np.float32(LARGEST) if highest > 0 else np.float32(1)
        flat, share = tables[g].reshape(-1), 1 / step
        for d in range(0, turned.shape[1], 4):
            sums[0] = -turned[g, d] - turned[g, d + 1] - turned[g, d + 2] - turned[g, d + 3]
            for bit in range(4):
                for entry in range(1 << bit):
                    sums[entry + (1 << bit)] = sums[entry] + 2 * turned[g, d + bit]
            place = d // 4 * TABLE_BYTES
            for entry in range(ENTRIES):
                value = np.uint8((sums[entry] + highest) * share + _HALF)
                for copy in range(TABLE_BYTES // ENTRIES):
                    flat[place + copy * ENTRIES + entry] = value
        terms[g, 0], terms[g, 1] = step, -highest * np.float32(turned.shape[1] // 4)
