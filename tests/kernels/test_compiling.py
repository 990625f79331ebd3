"""What compiled code calls is compiled with its callers; what Python calls is as with Numba's own decorator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL

OPTIONS = {**SERIAL, "cache": False}


@njit(**OPTIONS)
def root_of(x: float) -> float:
    if x < 0:
        raise ValueError("a negative number")
    return x**0.5


@njit(**OPTIONS)
def sum_roots(numbers: np.ndarray) -> float:
    total = 0.0
    for x in numbers:
        total += root_of(x)
    return total


@njit(**OPTIONS)
def mean_root(numbers: np.ndarray) -> float:
    return sum_roots(numbers) / len(numbers)


def test_calls_of_calls_are_computed() -> None:
    assert mean_root(np.array([1.0, 4.0, 16.0])) == pytest.approx(7 / 3)


def test_only_what_python_calls_has_machine_code() -> None:
    mean_root(np.ones(2, np.float32))
    kinds = (numba.float32,)
    assert kinds not in root_of.overloads
    assert root_of(np.float32(9)) == 3
    assert kinds in root_of.overloads
    assert mean_root(np.full(2, 9, np.float32)) == 3


def test_an_error_of_a_part_reaches_python() -> None:
    with pytest.raises(ValueError, match="a negative number"):
        mean_root(np.array([1.0, -1.0]))


def test_functions_of_numbas_own_decorator_may_call_parts() -> None:
    @numba.njit
    def twice(x: float) -> float:
        return 2 * root_of(x)

    assert twice(4.0) == 4.0


MODULE = """
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL

@njit(**SERIAL)
def square(x):
    if x < 0:
        raise ValueError("a negative number")
    return x * x

@njit(**SERIAL)
def sum_squares(first, last):
    total = 0
    for x in range(first, last):
        total += square(x)
    return total
"""
PROGRAM = """
from squares import square, sum_squares
print(sum_squares(0, 4))
try:
    sum_squares(-1, 4)
except ValueError as error:
    print(error)
print(sum(sum_squares.stats.cache_hits.values()), sum(sum_squares.stats.cache_misses.values()), square.signatures)
"""


def test_the_disk_cache_holds_a_function_with_all_that_it_calls(tmp_path: Path) -> None:
    (tmp_path / "squares.py").write_text(MODULE)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    assert [run.stdout.splitlines() for run in runs] == [
        ["14", "a negative number", "0 1 []"],
        ["14", "a negative number", "1 0 []"],
    ]
    assert [file.name.split("-")[0] for file in tmp_path.rglob("*.nbi")] == ["squares.sum_squares"]
