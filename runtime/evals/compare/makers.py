"""The tasks whose documents are put together: hidden facts, many facts, keys among keys, chains, and frequencies."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from moorage.runtime.evals import needle, passkey
from moorage.runtime.evals.asking import Scorer
from moorage.runtime.evals.compare.wordings import PASSKEY_WORDINGS, WORDINGS, Wordings
from moorage.runtime.evals.haystack import Haystack
from moorage.runtime.evals.key_values import Form, key_value_problem
from moorage.runtime.evals.metrics.matching import among_words, match_all
from moorage.runtime.evals.metrics.numbers import first_digits
from moorage.runtime.evals.records import NUM_RECORDS, RECORD_TOKENS, Records
from moorage.runtime.evals.ruler.chains import Chains
from moorage.runtime.evals.ruler.needles import Needles
from moorage.runtime.evals.ruler.problem import Maker, Problem
from moorage.runtime.evals.ruler.words import CommonWords, coded_words

MADE_TASKS = (
    "passkey", "passkey-wordings", "wordings", "needle", "multikey", "json", "records", "chains", "common",
    "frequent",
)  # fmt: skip
_NEEDLE_TOKENS, _CHAIN_TOKENS, _LIST_TOKENS, _CODED_TOKENS = 16, 30, 120, 50
"""Tokens of an answer; as RULER lets a model answer, but of one needle only as many as its number has."""
_NUM_KEYS = 4
_TOKENS_PER_RECORD = 256
"""Tokens of a document for each record: shorter ones have fewer records."""
_LEAST_RECORDS = 4


@dataclass(frozen=True, slots=True)
class TaskMaker:
    """One task at one length."""

    problem: Callable[[random.Random, int, int], Problem]
    """(random numbers, index of the sample, units of haystack) -> a problem."""
    most_new_tokens: int
    least: int
    """Fewest units."""
    score: Scorer = match_all


def makers(haystack: Haystack, length: int, count: int) -> dict[str, TaskMaker]:
    """The tasks by name. What one fact or pair says lies deeper with each of the `count` samples."""
    words = haystack.vocabulary()
    num_records = max(_LEAST_RECORDS, min(NUM_RECORDS, length // _TOKENS_PER_RECORD))

    def of(maker: Maker) -> Callable[[random.Random, int, int], Problem]:
        return lambda rng, _index, units: maker(rng, units, length)

    def pairs(rng: random.Random, index: int, units: int) -> Problem:
        return key_value_problem(rng, Form.HEX, (index + 0.5) / count, units)

    def worded(wordings: Wordings) -> Callable[[random.Random, int, int], Problem]:
        def make(rng: random.Random, index: int, units: int) -> Problem:
            fact, question = wordings[index % len(wordings)]
            key = _number(rng, passkey.NUM_DIGITS)
            document = _hidden(haystack, rng, (index + 0.5) / count, units, fact.format(key=key))
            return Problem(document, question, (key,))

        return make

    def needles(rng: random.Random, index: int, units: int) -> Problem:
        key, value = "-".join(rng.sample(words, 2)), _number(rng, needle.NUM_DIGITS)
        fact = needle.FACT.format(key=key, value=value)
        document = _hidden(haystack, rng, (index + 0.5) / count, units, fact)
        return Problem(document, needle.QUESTION.format(key=key), (value,))

    published = ((passkey.FACT, passkey.QUESTION),)
    multikey = Needles(haystack, words, "essay", num_keys=_NUM_KEYS)
    records = Records(haystack, words, num_records)
    made = (
        TaskMaker(worded(published), passkey.ANSWER_TOKENS, 8, passkey.is_correct_of_one),
        TaskMaker(worded(PASSKEY_WORDINGS), passkey.ANSWER_TOKENS, 8, first_digits),
        TaskMaker(worded(WORDINGS), passkey.ANSWER_TOKENS, 8, first_digits),
        TaskMaker(needles, needle.ANSWER_TOKENS, 8, first_digits),
        TaskMaker(of(multikey), _NEEDLE_TOKENS, 8),
        TaskMaker(pairs, Form.HEX.answer_tokens, 2, among_words),
        TaskMaker(of(records), num_records * RECORD_TOKENS, 8),
        TaskMaker(of(Chains(haystack)), _CHAIN_TOKENS, 8),
        TaskMaker(of(CommonWords(words)), _LIST_TOKENS, 20),
        TaskMaker(of(coded_words), _CODED_TOKENS, 30),
    )
    return dict(zip(MADE_TASKS, made, strict=True))


def _number(rng: random.Random, digits: int) -> str:
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def _hidden(haystack: Haystack, rng: random.Random, depth: float, units: int, fact: str) -> str:
    """`units` words of the text with the fact at its depth."""
    words = haystack.words(rng, units).split(" ")
    cut = round(depth * units)
    return f"{' '.join(words[:cut])}{fact} {' '.join(words[cut:])}"
