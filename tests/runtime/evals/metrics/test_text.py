"""Likeness of text: perfect, wrong, empty, partial, several references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from moorage.runtime.evals.metrics import text

Metric = Callable[[str, Sequence[str]], float]
ALL = (
    text.exact_match,
    text.contains,
    text.f1,
    text.f1_characters,
    text.rouge_l,
    text.rouge_l_sum,
    text.rouge_l_characters,
    text.rouge_mean,
)


@pytest.mark.parametrize("metric", ALL)
def test_perfect_wrong_empty_and_several(metric: Metric) -> None:
    right = "cats chase mice at night"
    assert metric(right, [right]) == pytest.approx(1)
    assert metric("12 34", [right]) == 0
    assert metric("", [right]) == 0
    assert metric(right, []) == 0
    assert metric(right, ["56 78", right]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("metric", "output", "answers", "score"),
    [
        (text.exact_match, " The Eiffel Tower!", ["eiffel tower"], 1),
        (text.exact_match, "Eiffel Tower, Paris", ["eiffel tower"], 0),
        (text.exact_match, "", [""], 1),
        (text.contains, "It was the Eiffel Tower, I think.", ["Eiffel tower"], 1),
        (text.contains, "It was the Eiffel Towers.", ["Eiffel tower"], 0),
        (text.contains, "anything", ["the"], 0),
        # 1 of 2 words said is right, 1 of 3 right words is said: 2 * 1/2 * 1/3 / (1/2 + 1/3)
        (text.f1, "blue house", ["big red house"], 0.4),
        (text.f1, "blue house", ["big red house", "a blue house"], 1),
        (text.f1, "house house", ["house"], 2 / 3),
        (text.f1, "the", ["a"], 1),
        (text.f1_characters, "长江。", ["长城"], 0.5),
        (text.f1_characters, "", ["长城"], 0),
        # The longest common subsequence of 4 and 3 words has 2: precision 1/2, recall 2/3.
        (text.rouge_l, "one two three four", ["one four five"], 4 / 7),
        (text.rouge_l_characters, "长江大桥", ["长桥"], 2 / 3),
        (text.rouge_l_sum, "one two.\nthree four.", ["three four.\none two."], 1),
        (text.rouge_l, "one two.\nthree four.", ["three four.\none two."], 0.5),
        # ROUGE-1 is 1, ROUGE-2 1/2, ROUGE-L 2/3; stems make runs a run.
        (text.rouge_mean, "he runs fast", ["fast he run"], (1 * 0.5 * 2 / 3) ** (1 / 3)),
    ],
)
def test_known_values(metric: Metric, output: str, answers: list[str], score: float) -> None:
    assert metric(output, answers) == pytest.approx(score)
