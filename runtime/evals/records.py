"""Many facts: a document holds numbered records, and all of them are asked for.

A selection that finds one fact at a time may still lose some of many (ShadowKV's own limit). The question ends with
the beginning of the first record, so that a model without instructions goes on as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from moorage.runtime.evals.haystack import Haystack
from moorage.runtime.evals.ruler import RulerTask
from moorage.runtime.evals.ruler.problem import Problem

RECORD = "Record {number}: the code of {name} is {code}."
NUM_RECORDS = 16
RECORD_TOKENS = 28
"""Enough for one record of an answer, with every digit and name in pieces."""
_OPENING = "The text below holds {count} numbered records. Memorize all of them.\n"
_QUESTION = (
    "\nQuestion: What are all {count} records of the text above, in the order of their numbers? "
    "Answer: The {count} records are:\nRecord 1: the code of"
)


@dataclass(frozen=True, slots=True)
class Records:
    """The maker of the task: records in their order at random places of a text."""

    haystack: Haystack
    words: tuple[str, ...]
    count: int = NUM_RECORDS

    def __call__(self, rng: random.Random, units: int, length: int) -> Problem:  # noqa: ARG002
        """Units are words of the text. The answers are the codes."""
        codes = [str(code) for code in rng.sample(range(10_000, 100_000), self.count)]
        records = [
            RECORD.format(number=number, name="-".join(rng.sample(self.words, 2)), code=code)
            for number, code in enumerate(codes, 1)
        ]
        depths = sorted(rng.random() for _ in records)
        words = self.haystack.words(rng, units).split(" ")
        parts, begin = [_OPENING.format(count=self.count)], 0
        for depth, record in zip(depths, records, strict=True):
            cut = round(depth * units)
            parts.append(f"{' '.join(words[begin:cut])}\n{record}\n")
            begin = cut
        document = "".join([*parts, " ".join(words[begin:])])
        return Problem(document, _QUESTION.format(count=self.count), tuple(codes))


def records_task(
    haystack: Haystack, lengths: tuple[int, ...], samples: int, seed: int = 0, count: int = NUM_RECORDS
) -> RulerTask:
    """The task of a suite; a sample scores the share of the codes that stand in the answer."""
    maker = Records(haystack, haystack.vocabulary(), count)
    text = f"{haystack.fingerprint()}, {count} records"
    return RulerTask("records", maker, count * RECORD_TOKENS, lengths, samples, seed, text)
