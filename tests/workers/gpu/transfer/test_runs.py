from __future__ import annotations

import numpy as np
import pytest

from moorage.workers.gpu.transfer.runs import runs_of


def ints(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("sources", "targets", "expected"),
    [
        (ints(), ints(), []),
        (ints(7), ints(3), [(7, 3, 1)]),
        (ints(1, 2, 3), ints(5, 6, 7), [(1, 5, 3)]),
        (ints(1, 2, 3), ints(5, 7, 8), [(1, 5, 1), (2, 7, 2)]),
        (ints(1, 3, 4), ints(5, 6, 7), [(1, 5, 1), (3, 6, 2)]),
        (ints(4, 3, 2), ints(0, 1, 2), [(4, 0, 1), (3, 1, 1), (2, 2, 1)]),
    ],
)
def test_known_runs(sources, targets, expected):
    assert runs_of(sources, targets) == expected


def test_runs_cover_every_pair_once(rng):
    sources, targets = (np.sort(rng.permutation(60)[:40]).astype(np.int32) for _ in range(2))
    pairs = [(s + i, t + i) for s, t, count in runs_of(sources, targets) for i in range(count)]
    assert pairs == list(zip(sources.tolist(), targets.tolist(), strict=True))
