"""Likeness of free text to references: exact match, F1 of words, ROUGE. The best reference counts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from moorage.workers.errors import InvalidRequest

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WIDE_PUNCTUATION = re.compile(r"[\W_]+")


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and doubled spaces, as SQuAD compares answers."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(output: str, answers: Sequence[str]) -> float:
    """1 when the normalised output is a normalised answer."""
    said = normalise(output)
    return float(any(said == normalise(answer) for answer in answers))


def contains(output: str, answers: Sequence[str]) -> float:
    """1 when a normalised answer stands in the normalised output."""
    said = f" {normalise(output)} "
    return float(any(f" {normalise(answer)} " in said for answer in answers if normalise(answer)))


def f1(output: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, as SQuAD, LongBench and SCROLLS measure questions."""
    return _best(
        lambda said, right: _overlap(normalise(said).split(), normalise(right).split()), output, answers
    )


def f1_characters(output: str, answers: Sequence[str]) -> float:
    """The same by characters, for text without spaces, as InfiniteBench measures Chinese questions."""
    return _best(lambda said, right: _overlap(_characters(said), _characters(right)), output, answers)


def rouge_l(output: str, answers: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words."""
    return _best(lambda said, right: _rouge(said, right, ("rougeL",)), output, answers)


def rouge_l_sum(output: str, answers: Sequence[str]) -> float:
    """ROUGE-L with the union over sentences, one to a line, as InfiniteBench measures summaries."""
    return _best(lambda said, right: _rouge(said, right, ("rougeLsum",)), output, answers)


def rouge_l_characters(output: str, answers: Sequence[str]) -> float:
    """ROUGE-L by characters, for text without spaces."""
    return _best(lambda said, right: _rouge(said, right, ("rougeL",), by_character=True), output, answers)


def rouge_mean(output: str, answers: Sequence[str]) -> float:
    """Geometric mean of ROUGE-1, ROUGE-2 and ROUGE-L, with stems, as SCROLLS measures summaries."""
    return _best(
        lambda said, right: _rouge(said, right, ("rouge1", "rouge2", "rougeL"), stems=True), output, answers
    )


def _best(likeness: Callable[[str, str], float], output: str, answers: Sequence[str]) -> float:
    return max((likeness(output, answer) for answer in answers), default=0.0)


def _overlap(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


def _characters(text: str) -> list[str]:
    return list(_WIDE_PUNCTUATION.sub("", text.lower()))


class _CharacterTokenizer:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return _characters(text)


@cache
def _scorer(kinds: tuple[str, ...], stems: bool, by_character: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InvalidRequest("ROUGE needs rouge-score; pip install 'moorage[eval]'") from None
    tokenizer = _CharacterTokenizer() if by_character else None
    return RougeScorer(list(kinds), use_stemmer=stems, tokenizer=tokenizer)


def _rouge(
    said: str, right: str, kinds: tuple[str, ...], *, stems: bool = False, by_character: bool = False
) -> float:
    scores = _scorer(kinds, stems, by_character).score(right, said)
    product = 1.0
    for kind in kinds:
        product *= scores[kind].fmeasure
    return float(product ** (1 / len(kinds)))
