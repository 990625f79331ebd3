"""Numbers: signs, decimals, thousands, leading zeros, lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from moorage.runtime.evals.metrics import numbers

Metric = Callable[[str, Sequence[str]], float]


@pytest.mark.parametrize(
    "metric",
    [
        numbers.first_digits,
        numbers.first_number,
        numbers.last_integer,
        numbers.final_number,
        numbers.leading_share,
        numbers.share_of_numbers,
    ],
)
def test_perfect_wrong_and_empty(metric: Metric) -> None:
    assert metric("It is 42.", ["42"]) == 1
    assert metric("It is 43.", ["42"]) == 0
    assert metric("It is unknown.", ["42"]) == 0
    assert metric("", ["42"]) == 0


@pytest.mark.parametrize(
    ("metric", "output", "answers", "score"),
    [
        (numbers.first_digits, " 00123 then 7", ["00123"], 1),
        (numbers.first_digits, " 123", ["00123"], 0),
        (numbers.first_digits, "key12345", ["12345"], 1),
        (numbers.first_digits, "1 2", ["2", "1"], 1),
        (numbers.first_number, "3", ["3.0"], 1),
        (numbers.first_number, "3.50.", ["3.5"], 1),
        (numbers.first_number, "about -7, or 7", ["7"], 0),
        (numbers.first_number, "about -7, or 7", ["-7"], 1),
        (numbers.first_number, "1,200 in all", ["1200"], 1),
        (numbers.first_number, "[1, 200]", ["1"], 1),
        (numbers.first_number, "page-7", ["7"], 1),
        (numbers.last_integer, "func_3(5) returns -12.", ["-12"], 1),
        (numbers.last_integer, "It is 12, not 3", ["12"], 0),
        (numbers.final_number, "5 + 6 = 11. The answer is $1,011.", ["1011"], 1),
        (numbers.final_number, "So 5 + 6 = 11 eggs.\n\nQuestion: 12?", ["11"], 1),
        (numbers.final_number, "The answer is unknown", ["11"], 0),
        (numbers.leading_share, "[1, 4, 8]", ["1", "4", "8"], 1),
        (numbers.leading_share, "1 4 9 8", ["1", "4", "8", "8"], 0.5),
        (numbers.leading_share, "[-3, 5]", ["-3", "5", "6"], 2 / 3),
        (numbers.leading_share, "4, 1", ["1", "4"], 0),
        (numbers.leading_share, "1", [], 0),
        (numbers.share_of_numbers, "Paragraph 3 or 4", ["3"], 0.5),
        (numbers.share_of_numbers, "3", ["4", "3"], 1),
    ],
)
def test_known_values(metric: Metric, output: str, answers: list[str], score: float) -> None:
    assert metric(output, answers) == pytest.approx(score)
