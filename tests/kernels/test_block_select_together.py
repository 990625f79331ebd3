"""Sessions that select in one call select what each would alone."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.block_select import reference, select_blocks, select_blocks_together
from moorage.kernels.half import from_storage, to_storage
from moorage.kernels.numba_flags import always_parallel

HEADS, GROUP, DIM, K = 2, 3, 64, 9
COUNTS = ([], [0], [1], [40], [0, 0], [40, 0, 7, 300], [513, 512, 64, 65, 1])


class Case:
    """Sessions of `counts` blocks."""

    def __init__(self, rng, draw, counts, quest):
        vectors = 2 if quest else 1
        self.quest, self.count = quest, len(counts)
        self.anchors = draw(sum(counts) + 3, HEADS, vectors, DIM)
        if quest:
            values = from_storage(self.anchors)
            values[:, :, 0], values[:, :, 1] = values.max(axis=2), values.min(axis=2)
            self.anchors = to_storage(values, self.anchors.dtype == np.uint16)
        self.bounds = np.cumsum([0, *counts]).astype(np.int32)
        self.pages = rng.permutation(len(self.anchors))[: sum(counts)].astype(np.int32)
        self.queries = rng.standard_normal((self.count, HEADS * GROUP, DIM)).astype(np.float32)
        self.limits = np.array([rng.integers(0, n + 1) for n in counts], np.int32)
        self.scales = rng.uniform(0.1, 1, self.count).astype(np.float32)
        self.firsts = rng.integers(0, 5, self.count).astype(np.int32)

    def own(self, i):
        return self.pages[self.bounds[i] : self.bounds[i + 1]]

    def together(self, selections, **changes):
        ids = np.full((self.count, selections, K), 77, np.int32)
        scores = np.full(ids.shape, 77, np.float32)
        arguments = {
            "quest": self.quest,
            "scales": self.scales,
            "firsts": self.firsts,
            "ids": ids,
            "scores": scores,
            "scratch": np.full(selections * len(self.pages), np.nan, np.float32),
        }
        several = {"pages": self.pages, "bounds": self.bounds, "queries": self.queries, "limits": self.limits}
        select_blocks_together(self.anchors, **(several | arguments | changes))
        return ids, scores

    def alone(self, i, selections, select, **more):
        ids = np.full((1, selections, K), 77, np.int32)
        scores = np.full(ids.shape, 77, np.float32)
        one = slice(i, i + 1)
        select(
            self.anchors, self.own(i), self.queries[one], self.limits[one],
            quest=self.quest, scale=float(self.scales[i]), ids=ids, scores=scores, **more,
        )  # fmt: skip
        return ids[0], scores[0]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("quest", [False, True])
@pytest.mark.parametrize("selections", [1, HEADS])
@pytest.mark.parametrize("counts", COUNTS)
def test_each_chooses_as_alone(rng, draw, counts, selections, quest, parallel):
    case = Case(rng, draw, counts, quest)
    if parallel:
        with always_parallel():
            ids, scores = case.together(selections)
    else:
        ids, scores = case.together(selections)
    for i in range(case.count):
        scratch = np.empty(selections * len(case.own(i)), np.float32)
        expected, best = case.alone(i, selections, select_blocks, scratch=scratch, first=int(case.firsts[i]))
        np.testing.assert_array_equal(ids[i], expected)
        np.testing.assert_allclose(scores[i], best, rtol=1e-5, atol=1e-6)
        expected, best = case.alone(i, selections, reference.select_blocks)
        np.testing.assert_array_equal(ids[i], np.where(expected < 0, -1, expected + case.firsts[i]))
        np.testing.assert_allclose(scores[i], best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limits", np.array([3, 8], np.int32)),
        ("limits", np.array([-1, 0], np.int32)),
        ("bounds", np.array([0, 9, 8], np.int32)),
        ("bounds", np.array([0, 4, 7], np.int32)),
        ("scales", np.ones(3, np.float32)),
        ("scratch", np.empty(7, np.float32)),
        ("pages", np.full(8, 99, np.int32)),
    ],
)
def test_what_does_not_fit_is_refused(rng, draw, name, value):
    case = Case(rng, draw, [4, 4], False)
    with pytest.raises(ValueError, match=r"limits|bounds|scales|scratch|pages"):
        case.together(1, **{name: value})
