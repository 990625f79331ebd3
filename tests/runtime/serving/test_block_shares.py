"""Reports of steps become the mean share of each block."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.runtime.serving.block_shares import BlockMasses


def test_the_mean_is_over_all_reports_also_where_blocks_came_later() -> None:
    masses = BlockMasses()
    for report in ([0.75, 0.25], [], [0.5, 0.25, 0.25]):
        masses.add(np.array(report, "<f4").tobytes())
    found = masses.shares(16)
    assert found is not None
    assert (found.block_size, found.shares) == (16, pytest.approx((0.625, 0.25, 0.125)))


def test_without_a_report_there_is_none() -> None:
    masses = BlockMasses()
    masses.add(b"")
    assert masses.shares(16) is None
