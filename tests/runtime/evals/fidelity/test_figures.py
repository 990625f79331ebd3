"""Cells of a comparison from results made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moorage.runtime.evals.fidelity.figures import cells, predictions, rank_correlation, retrieval_heads
from moorage.runtime.evals.fidelity.measure import Said


def said(choice: str, passage: int, kl: list[float], mass: Any = None, source: Any = None) -> Said:
    """Two layers, one measured token, two heads."""
    right = np.array([True, False])
    shares = np.array(mass if mass is not None else [[[1, 1]], [[1, 1]]], np.float32)
    found = None if source is None else np.array(source, np.float32)
    index_bytes = None if choice == "full" else 10.0
    return Said(
        "copy",
        512,
        passage,
        choice,
        None,
        index_bytes,
        np.array(kl),
        right,
        ~right,
        right,
        np.array([1.5, 0.25]),
        shares,
        found,
        99.0,
    )


RESULTS = [
    said("full", 0, [0.0, 0.0], source=[[[0.0, 0.3]], [[0.05, 0.0]]]),
    said("full", 1, [0.0, 0.0], source=[[[0.0, 0.1]], [[0.05, 0.15]]]),
    said("wide", 0, [0.2, 0.4], [[[0.9, 0.8]], [[0.9, 0.9]]]),
    said("wide", 1, [0.1, 0.1], [[[0.9, 0.6]], [[0.9, 0.9]]]),
    said("narrow", 0, [3.0, 1.0], [[[0.9, 0.1]], [[0.9, 0.9]]]),
]


def test_retrieval_heads_attend_what_is_copied_in_the_mean_over_passages() -> None:
    assert np.array_equal(retrieval_heads(RESULTS), [[False, True], [False, False]])
    assert retrieval_heads(RESULTS[2:]) is None


def test_cells_are_means_over_passages_in_the_order_of_kl() -> None:
    full, wide, narrow = cells([RESULTS[4], *RESULTS[:4]])
    assert [cell.choice for cell in (full, wide, narrow)] == ["full", "wide", "narrow"]
    assert (full.kl, wide.kl, narrow.kl) == pytest.approx((0, 0.2, 2))
    # Half of the interval of two values 0.3 and 0.1: 12.706 times their deviation 0.1414 over the root of two.
    assert wide.kl_by_passage == pytest.approx([0.3, 0.1])
    assert wide.kl_interval == pytest.approx(12.706 * 0.1)
    assert narrow.kl_interval is None
    assert (wide.passages, wide.agreement, wide.hits, wide.full_hits) == (2, 0.5, 0.5, 0.5)
    assert wide.mass == pytest.approx(6.8 / 8)
    assert wide.retrieval_mass == pytest.approx(0.7)
    assert np.allclose(wide.mass_by_head, [[0.9, 0.7], [0.9, 0.9]])
    assert wide.low_mass == pytest.approx(np.percentile([0.9, 0.8, 0.9, 0.9, 0.9, 0.6, 0.9, 0.9], 5))


def test_a_cell_says_how_near_a_tie_was_where_the_likeliest_token_changed() -> None:
    (cell,) = cells([RESULTS[2]])
    assert cell.flip_margin == 0.25
    assert cell.lost_hits == [(0, 0, 1.5)]
    always = dataclasses.replace(RESULTS[2], agrees=np.array([True, True]), hits=np.array([True, True]))
    (cell,) = cells([always])
    assert cell.flip_margin is None
    assert cell.lost_hits == []


def test_rank_correlation_sees_order_alone() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [0, -1, -2, -9]) == pytest.approx(-1)
    # Ranks 0, 1.5, 1.5, 3 beside 0, 1, 2, 3.
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([1, 1], [1, 2]) is None
    assert rank_correlation([1], [2]) is None


def test_full_attention_is_no_prediction() -> None:
    assert predictions(cells(RESULTS))["retrieval_mass"] == pytest.approx(-1)
    assert predictions(cells(RESULTS[:4]))["retrieval_mass"] is None
