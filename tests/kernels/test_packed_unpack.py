"""Where in the list of a head the outliers of a row begin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moorage.kernels.addresses import address_of
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.packed_blocks.layout import packed_layout
from moorage.kernels.packed_blocks.unpack import Part, outliers_before
from tests.kernels.packed_blocks_case import FAMILIES


@njit(**{**SERIAL, "cache": False})
def _before_all(layout: Any, part: Any, found: Any) -> None:
    for row in range(len(found)):
        found[row] = outliers_before(layout, part, row)


@pytest.mark.parametrize("few_rows", [False, True])
def test_outliers_before_a_row_are_counted_wherever_the_list_lies(rng, few_rows):
    layout = packed_layout(FAMILIES["NUQ4"], 1, 128, 128)
    rows = np.arange(layout.block_size)
    for count in (0, 1, 5, 31, 32, 33, 64, 150, 328):
        lines = np.zeros(64 * 20, np.uint8)
        first = -address_of(lines) % 64
        for shift in (0, 4, 52, 62):
            from_rows = rng.choice(rows[rng.integers(100) :][:5] if few_rows else rows, count)
            places = np.sort(from_rows * 128 + rng.integers(0, 128, count)).astype(np.uint16)
            lines[first + shift : first + shift + 2 * count] = places.view(np.uint8)
            zero, found = 0, np.empty(len(rows), np.int64)
            part = Part(zero, zero, zero, zero, address_of(lines) + first + shift, count)
            _before_all(layout, part, found)
            np.testing.assert_array_equal(found, np.searchsorted(places, rows * 128))
