"""RULER's tasks by name, as tasks of a suite."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from moorage.runtime.evals.asking import Question, Scorer, ask, encode_long, fit
from moorage.runtime.evals.haystack import Haystack
from moorage.runtime.evals.metrics.matching import match_all, match_part
from moorage.runtime.evals.ruler.chains import Chains
from moorage.runtime.evals.ruler.documents import READERS
from moorage.runtime.evals.ruler.needles import Needles
from moorage.runtime.evals.ruler.problem import Maker, Problem
from moorage.runtime.evals.ruler.words import CommonWords, coded_words
from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Metric, Outcome, Place
from moorage.workers.errors import InvalidRequest

_NEEDLE_TOKENS, _CHAIN_TOKENS, _LIST_TOKENS, _CODED_TOKENS, _QA_TOKENS = 128, 30, 120, 50, 32
"""Tokens that a model may answer, as RULER lets it."""


@dataclass(slots=True)
class RulerTask:
    """One of the tasks, at several lengths. Answers are judged by what stands in them (string_match)."""

    name: str
    make: Maker
    max_new_tokens: int
    lengths: tuple[int, ...]
    samples: int
    seed: int
    text: str
    """Tells the haystack from another."""
    least: int = 8
    """Fewest units of haystack."""
    score: Scorer = match_all
    metric: Metric = Metric.ACCURACY
    by_depth: bool = False
    _counts: dict[int, int] = field(default_factory=dict, repr=False)
    """The latest number of units at a length: where the next sample begins to look."""

    def settings(self) -> Mapping[str, Any]:
        """The text that things are hidden in."""
        return {"text": self.text}

    def places(self) -> list[Place]:
        """`samples` of each length."""
        return [Place(index, length) for length in self.lengths for index in range(self.samples)]

    def measure(self, place: Place, target: Target) -> Outcome:
        """The share of the answers that stand in the output."""
        assert place.length is not None
        prefix, room = target.prefix(), place.length - self.max_new_tokens

        def prompt(units: int) -> list[int]:
            return [*prefix, *encode_long(target, self.problem(place, units).text)]

        guess = self._counts.get(place.length, 32)
        try:
            units = self._counts[place.length] = fit(lambda n: len(prompt(n)), room, self.least, guess)
        except InvalidRequest as error:
            raise InvalidRequest(f"{self.name}: {error}") from None
        problem = self.problem(place, units)
        asked = len(target.encode(problem.question))
        question = Question(
            prompt(units), self.max_new_tokens, problem.answers, self.score, question_tokens=asked
        )
        return ask(target, question)

    def problem(self, place: Place, units: int) -> Problem:
        """The prompt of one place with so many units of haystack."""
        assert place.length is not None
        return self.make(random.Random(f"{self.name}/{self.seed}/{place.index}"), units, place.length)


def _makers() -> dict[str, tuple[Callable[[Haystack, tuple[str, ...]], Maker], int]]:
    def niah(place: str, **options: Any) -> tuple[Callable[[Haystack, tuple[str, ...]], Maker], int]:
        return lambda haystack, words: Needles(haystack, words, place, **options), _NEEDLE_TOKENS

    return {
        "niah_single_1": niah("noise"),
        "niah_single_2": niah("essay"),
        "niah_single_3": niah("essay", values="uuids"),
        "niah_multikey_1": niah("essay", num_keys=4),
        "niah_multikey_2": niah("needle"),
        "niah_multikey_3": niah("needle", keys="uuids", values="uuids"),
        "niah_multivalue": niah("essay", num_values=4),
        "niah_multiquery": niah("essay", num_queries=4),
        "vt": (lambda _haystack, _words: Chains(), _CHAIN_TOKENS),
        "cwe": (lambda _haystack, words: CommonWords(words), _LIST_TOKENS),
        "fwe": (lambda _haystack, _words: coded_words, _CODED_TOKENS),
    }


_LEAST = {"cwe": 20, "fwe": 30, "vt": 1}
FREE_TASKS = tuple(_makers())
"""The tasks that need no download."""
QA_TASKS = tuple(READERS)
"""The tasks that need a file."""


def ruler_tasks(
    names: Sequence[str],
    haystack: Haystack,
    lengths: tuple[int, ...],
    samples: int,
    seed: int,
    qa_files: Mapping[str, Path],
) -> tuple[RulerTask, ...]:
    """The named tasks. Raises InvalidRequest for a name that there isn't, or a question task without its file."""
    makers, words = _makers(), haystack.vocabulary()
    task = partial(RulerTask, lengths=lengths, samples=samples, seed=seed, text=haystack.fingerprint())
    made = []
    for name in dict.fromkeys(names):
        if name in makers:
            maker, max_new_tokens = makers[name]
            made.append(task(name, maker(haystack, words), max_new_tokens, least=_LEAST.get(name, 8)))
        elif name in QA_TASKS and name in qa_files:
            documents = READERS[name](qa_files[name])
            made.append(task(name, documents, _QA_TOKENS, least=0, score=match_part))
        elif name in QA_TASKS:
            raise InvalidRequest(f"{name}: needs its data; give --qa-file {name}=FILE")
        else:
            known = ", ".join((*FREE_TASKS, *QA_TASKS))
            raise InvalidRequest(f"{name}: no such task of RULER; there are {known}")
    return tuple(made)
