"""Multiple choice in the forms that models write."""

from __future__ import annotations

import pytest

from moorage.runtime.evals.metrics.choices import choice, choice_or_name, chosen_letter, letter_set


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        (" B.", "B"),
        ("(B)", "B"),
        ("[B]", "B"),
        ("**B**: the sea", "B"),
        ("`B`", "B"),
        ("B) the sea", "B"),
        ("B\nbecause of A", "B"),
        ("B The sea", "B"),
        ("The correct answer is (C)", "C"),
        ("The correct answer is **C**.", "C"),
        ("Answer: C", "C"),
        ("answer is: [D]", "D"),
        ("The correct option is: D", "D"),
        ("I choose option D, not A.", "D"),
        ("It must be D.", "D"),
        ("A dog was there, so the answer is B", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("A dog was there.", None),
        ("Because it is late", None),
        ("ABBA", None),
        ("Don't know", None),
        ("E", None),
        ("b", None),
        ("", None),
    ],
)
def test_letters_are_read(output: str, letter: str | None) -> None:
    assert chosen_letter(output) == letter


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("(B)", 1),
        ("C", 0),
        ("the red barn", 1),
        ("The red barn!", 1),
        ("the red barns", 0),
        ("A. the red barn", 0),
        ("", 0),
    ],
)
def test_letter_or_words(output: str, score: float) -> None:
    assert choice(output, ("B", "The red barn")) == score


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("C", 1),
        ("C.run", 1),
        ("`C.run`", 1),
        ("D.run", 0),
        ("The error is in C.run", 1),
        ("C.runner", 1),
        ("", 0),
    ],
)
def test_letter_or_name(output: str, score: float) -> None:
    """A name may begin with a letter that looks like a choice: C.runner is read as choice C."""
    assert choice_or_name(output, ("C", "C.run")) == score


def test_a_name_is_told_from_another_choice() -> None:
    assert choice_or_name("A.load", ("B", "A.load")) == 1
    assert choice_or_name("A.save", ("B", "A.load")) == 0


@pytest.mark.parametrize(
    ("output", "right", "score"),
    [
        ("AC", "AC", 1),
        ("CA", "AC", 1),
        ("A, C", "AC", 1),
        ("A and C", "AC", 1),
        ("A", "AC", 0.25),
        ("AB", "AC", 0),
        ("ABC", "AC", 0),
        ("The answer is C", "C", 1),
        ("B", "C", 0),
        ("", "C", 0),
    ],
)
def test_sets_of_letters(output: str, right: str, score: float) -> None:
    assert letter_set(output, (right,)) == score
