"""What choices are compared on: a document that is prefilled, a question under selection, and what follows it.

The text is another part of the same text for each sample, so that no two samples of a task share their filler.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from moorage.runtime.evals.asking import Scorer, encode_long, fit
from moorage.runtime.evals.compare.makers import makers
from moorage.runtime.evals.fidelity.passages import Passage, Text, passages
from moorage.runtime.evals.haystack import Haystack
from moorage.runtime.evals.local_coder import LocalCoder
from moorage.workers.errors import InvalidRequest

TEXT_TASKS = ("copy", "continue", "generate")
"""Tasks without right answers: text that repeats what stood far back, text that goes on, the model's own text."""
_GUESSED_UNITS = 32


@dataclass(frozen=True, slots=True)
class Sample:
    """One document, what is asked about it, and the tokens or answers that are wanted."""

    task: str
    length: int
    index: int
    prompt: list[int]
    """Tokens that are prefilled."""
    given: list[int]
    """The question: passes through decode steps before the first scored token; at least one."""
    wanted: list[int] | None
    """The text's own tokens; None takes what full attention generates."""
    most_new_tokens: int
    answers: tuple[str, ...] = ()
    score: Scorer | None = None
    endless: bool = False
    """Whether the end of the sequence is never drawn."""

    @property
    def most_tokens(self) -> int:
        """Room that it needs."""
        return len(self.prompt) + len(self.given) + self.most_new_tokens


@dataclass(frozen=True, slots=True)
class SampleMaker:
    """Makes the samples of every task from one text."""

    text: Text
    coder: LocalCoder
    count: int
    """Samples of each task and length."""
    seed: int
    generated: int
    """Tokens of the task `generate`."""

    def samples(self, length: int, tasks: Sequence[str]) -> Iterator[Sample]:
        """`count` of each task over documents of about `length` tokens, those over the same document together."""
        own = [task for task in tasks if task in TEXT_TASKS]
        if own:
            read = passages(
                self.text, self.coder, self.coder.prefix(), length, ("copy", "continue"), self.count
            )
            for passage in read:
                yield from self._of_text(passage, own)
        for task in tasks:
            if task not in TEXT_TASKS:
                yield from self._made(task, length)

    def _of_text(self, passage: Passage, tasks: Sequence[str]) -> Iterator[Sample]:
        place = (passage.length, passage.index, passage.prompt, passage.given)
        if passage.task in tasks:
            yield Sample(passage.task, *place, passage.wanted, len(passage.wanted))
        if passage.task == "continue" and "generate" in tasks:
            yield Sample("generate", *place, None, self.generated, endless=True)

    def _made(self, task: str, length: int) -> Iterator[Sample]:
        make = makers(Haystack(self.text.pieces, self.text.separator), length, self.count)[task]
        guess = _GUESSED_UNITS
        for index in range(self.count):

            def document(units: int, index: int = index) -> list[int]:
                made = make.problem(self._rng(task, length, index), index, units)
                return [*self.coder.prefix(), *encode_long(self.coder, made.document)]

            guess = self._fit(task, document, length, make.least, guess)
            problem = make.problem(self._rng(task, length, index), index, guess)
            given = self.coder.encode(problem.question)
            yield Sample(
                task,
                length,
                index,
                document(guess),
                given,
                None,
                make.most_new_tokens,
                problem.answers,
                make.score,
            )

    def _fit(
        self, task: str, document: Callable[[int], list[int]], length: int, least: int, guess: int
    ) -> int:
        try:
            return fit(lambda units: len(document(units)), length, least, guess)
        except InvalidRequest as error:
            raise InvalidRequest(f"{task}: {error}") from None

    def _rng(self, task: str, length: int, index: int) -> random.Random:
        return random.Random(f"{task}/{self.seed}/{length}/{index}")
