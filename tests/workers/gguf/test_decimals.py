"""Numbers of single precision become the decimals that they were written as."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.workers.gguf.decimals import as_decimal


@pytest.mark.parametrize(
    "written", [1e-5, 1e-6, 500000.0, 0.0078125, 1.05, 1.55, 12.0, 0.22, 0.0, -0.1, 3.4e38]
)
def test_what_was_written(written: float) -> None:
    assert as_decimal(float(np.float32(written))) == written


def test_numbers_of_double_precision_stay() -> None:
    assert as_decimal(0.1 + 0.2) == 0.1 + 0.2
    assert as_decimal(1e300) == 1e300
