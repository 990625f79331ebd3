"""Answers that stand somewhere in the output."""

from __future__ import annotations

import pytest

from moorage.runtime.evals.metrics import matching
from moorage.runtime.evals.metrics.matching import classification, edit_similarity, verdict


@pytest.mark.parametrize(
    ("output", "every", "some"),
    [
        ("123, 456 and 789", 1, 1),
        ("456", 1 / 3, 1),
        ("none of them", 0, 0),
        ("", 0, 0),
    ],
)
def test_all_and_part(output: str, every: float, some: float) -> None:
    answers = ["123", "456", "789"]
    assert matching.match_all(output, answers) == pytest.approx(every)
    assert matching.match_part(output, answers) == some


def test_case_does_not_matter_to_needles() -> None:
    assert matching.match_all("VAR abcde", ["ABCDE"]) == 1
    assert matching.match_part("vienna", ["Vienna"]) == 1
    assert matching.match_all("anything", []) == 0


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ('"1f3a"}', 1),
        (" 1f3a.", 1),
        ('{"key": "1f3a"}', 1),
        ("1f3ab", 0),
        ("x1f3a", 0),
        ("", 0),
    ],
)
def test_keyed_values_are_whole_words(output: str, score: float) -> None:
    assert matching.among_words(output, ["1f3a"]) == score


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("Mrs. Smith", 1),
        ("MRS SMITH:", 1),
        ("It is mrs. smith's turn", 1),
        ("Smith", 0),
        ("MRS. SMITHSON", 0),
        ("", 0),
    ],
)
def test_names_in_any_case(output: str, score: float) -> None:
    assert matching.named(output, ["MRS. SMITH"]) == score
    assert matching.named(output, ["..."]) == 0


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("Type: City", 1),
        ("City or Country", 0.5),
        ("Country", 0),
        ("Large City", 0.5),
        ("", 0),
    ],
)
def test_classes(output: str, score: float) -> None:
    assert classification(["City", "Country", "Large City"])(output, ["City"]) == score


def test_a_class_inside_the_right_one_does_not_count() -> None:
    metric = classification(["City", "Large City", "Large", "Country"])
    assert metric("Large City", ["Large City"]) == 1
    assert metric("Large City or Country", ["Large City"]) == 0.5
    assert metric("Country", ["City", "Country"]) == 1


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("return x + 1", 1),
        ("\n\nreturn x + 1\nprint(x)", 1),
        ("# add one\n```python\nreturn x + 1", 1),
        ("return x + 2", 11 / 12),
        ("", 0),
        ("# nothing", 0),
    ],
)
def test_code_is_compared_by_edits(output: str, score: float) -> None:
    assert edit_similarity(output, ["return x + 1"]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("True [fact: False]", 1),
        ("true. [Fact: false]", 1),
        ("True [fact: True]", 0.5),
        ("False [fact: True]", 0),
        ("True", 0.5),
        ("maybe [fact: False]", 0.5),
        ("", 0),
    ],
)
def test_verdicts(output: str, score: float) -> None:
    assert verdict(output, ["True [fact: False]"]) == score
