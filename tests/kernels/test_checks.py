from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.checks import FLOAT32, STORAGE, check_array, check_ids, check_multiple, check_range


def test_what_fits_passes():
    check_array("x", np.zeros((2, 3), np.float32), FLOAT32, (2, None))
    check_array("x", np.zeros(0, np.uint16), STORAGE, (0,))
    check_ids("x", np.array([0, 4], np.int32), 5)
    check_ids("x", np.array([], np.int32), 0)
    check_range("x", 3, 3, 3)
    check_multiple("x", 6, 3)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (np.zeros((2, 3), np.float64), (2, 3)),
        (np.zeros((2, 3), np.float32), (3, 3)),
        (np.zeros((2, 3), np.float32), (2,)),
        (np.zeros((3, 2), np.float32).T, (2, 3)),
    ],
)
def test_wrong_arrays_are_named(array, shape):
    with pytest.raises(ValueError, match=r"^scores: "):
        check_array("scores", array, FLOAT32, shape)


@pytest.mark.parametrize("ids", [[-1, 0], [0, 5], [2**31 - 1]])
def test_ids_outside_are_named(ids):
    with pytest.raises(ValueError, match=r"^pages: "):
        check_ids("pages", np.array(ids, np.int32), 5)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"^start: 4; expected 0 to 3"):
        check_range("start", 4, 0, 3)
    with pytest.raises(ValueError, match=r"^heads: 5; expected a positive multiple of 2"):
        check_multiple("heads", 5, 2)
    with pytest.raises(ValueError, match=r"^heads: 0;"):
        check_multiple("heads", 0, 2)
