"""Answers that are numbers: whole ones by their digits, decimals by value, lists by their first wrong place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_INTEGER = re.compile(r"(?:(?<!\w)-)?\d+")
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_ANSWER_IS = re.compile(r"(?i:answer is)\s*:?\s*\$?")


def first_digits(output: str, answers: Sequence[str]) -> float:
    """1 when the first run of digits is an answer, leading zeros included."""
    found = _DIGITS.search(output)
    return float(found is not None and found[0] in answers)


def first_number(output: str, answers: Sequence[str]) -> float:
    """1 when the first number equals an answer: 3 is 3.0, 1,200 is 1200, signs count."""
    return _equals(_NUMBER.search(output), answers)


def last_integer(output: str, answers: Sequence[str]) -> float:
    """1 when the last whole number equals an answer, as a returned value stands at the end."""
    found = _INTEGER.findall(output)
    return float(bool(found) and any(int(found[-1]) == int(answer) for answer in answers))


def final_number(output: str, answers: Sequence[str]) -> float:
    """1 when the number after "The answer is", or else the last of the first paragraph, equals an answer."""
    stated = _ANSWER_IS.search(output)
    if stated is not None:
        return _equals(_NUMBER.search(output, stated.end()), answers)
    numbers = list(_NUMBER.finditer(output.strip().split("\n\n")[0]))
    return _equals(numbers[-1] if numbers else None, answers)


def leading_share(output: str, answers: Sequence[str]) -> float:
    """Share of the listed whole numbers that come in order before the first wrong one (intermediate results)."""
    right = [int(answer) for answer in answers]
    said = [int(text) for text in _INTEGER.findall(output)]
    same = 0
    for expected, found in zip(right, said, strict=False):
        if expected != found:
            break
        same += 1
    return same / len(right) if right else 0.0


def share_of_numbers(output: str, answers: Sequence[str]) -> float:
    """Share of all numbers said that are the answer, as LongBench measures counts and paragraphs."""
    said = _DIGITS.findall(output)
    return (
        max((sum(text == answer for text in said) / len(said) for answer in answers), default=0.0)
        if said
        else 0.0
    )


def _equals(found: re.Match[str] | None, answers: Sequence[str]) -> float:
    if found is None:
        return 0.0
    value = float(found[0].replace(",", ""))
    return float(any(math.isclose(value, float(answer.replace(",", "")), rel_tol=1e-9) for answer in answers))
