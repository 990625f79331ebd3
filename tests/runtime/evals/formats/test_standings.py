"""What formats come to, from samples made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log

import pytest

from moorage.runtime.cli.eval_formats_table import table
from moorage.runtime.evals.formats.choices import Stored
from moorage.runtime.evals.formats.picture import draw
from moorage.runtime.evals.formats.standings import standings
from moorage.runtime.evals.journal import Key, Record
from moorage.runtime.evals.runner import Summary
from moorage.runtime.evals.tasks import Outcome, Place, Suite

STORES = {"FP16": Stored(2048, 16), "NUQ3": Stored(512, 16)}


def summary(task: str, scores: Mapping[str, list[float]]) -> Summary:
    """One task at 2 048 tokens, whose samples have these scores under each format."""
    records = [
        Record(Key(task, label, Place(index, 2048)), Outcome(score, "", (), 2048, 1.0))
        for label, values in scores.items()
        for index, score in enumerate(values)
    ]
    return Summary(Suite(task, ()), "model", tuple(scores), (), tuple(records))


LOSSES = summary("perplexity", {"FP16": [2.0, 3.0], "NUQ3": [2.0 + log(1.02), 3.0 + log(1.04)]})
FOUND = summary("passkey", {"FP16": [1, 1, 1, 0], "NUQ3": [1, 0, 0, 1]})


def test_a_perplexity_is_compared_window_by_window() -> None:
    first, packed = standings(STORES, LOSSES, None)
    assert first.perplexity is not None
    assert packed.perplexity is not None
    assert first.perplexity.value == pytest.approx(exp(2.5))
    assert first.perplexity.change == 0
    assert packed.perplexity.change == pytest.approx((1.02 * 1.04) ** 0.5 - 1)
    assert packed.perplexity.change_interval == pytest.approx((0.02, 0.04))


def test_bytes_are_compared_with_the_first_format() -> None:
    first, packed = standings(STORES, None, FOUND)
    assert (first.kv_bytes, first.ratio) == (2048, 1)
    assert (packed.kv_bytes, packed.ratio) == (512, 4)


def test_samples_that_the_first_format_finds_are_counted_as_lost() -> None:
    first, packed = standings(STORES, None, FOUND)
    assert (first.lost, first.perplexity) == (0, None)
    (cell,) = packed.retrieved
    assert (cell.score, cell.samples, cell.lost, cell.gained) == (0.5, 4, 2, 1)
    assert packed.as_json()["lost"] == 2


def test_the_table_has_a_row_for_each_format() -> None:
    columns, cells = table(standings(STORES, LOSSES, FOUND))
    assert columns == ["format", "bytes a token", "smaller", "perplexity", "change", "passkey 2K"]
    assert cells[0] == ["FP16", "2,048", "1.00", "12.182", "+0.00 % (+0.00 to +0.00)", "75%"]
    assert cells[1] == ["NUQ3", "512", "4.00", "12.547", "+3.00 % (+2.00 to +4.00)", "50% (-2, +1)"]


def test_the_picture_has_a_panel_for_each_that_was_measured() -> None:
    pytest.importorskip("matplotlib")
    both = draw(standings(STORES, LOSSES, FOUND), "formats")
    assert both is not None
    assert both.axes[0].get_xlabel().startswith("bytes")
    assert len([axis for axis in both.axes if axis.get_visible()]) == 2
    one = draw(standings(STORES, None, FOUND), "formats")
    assert one is not None
    assert len([axis for axis in one.axes if axis.get_visible()]) == 1
    assert draw(standings(STORES, None, None), "formats") is None
