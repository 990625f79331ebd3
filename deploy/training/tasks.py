"""Synthetic retrieval tasks for training, as token ids with the weight that the loss gives each of them.

Their wordings, names and haystacks are other than those of the evaluation (`runtime/evals`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random

from deploy.training.facts import Facts, chain_facts, keyed_facts, several_values, single_fact
from deploy.training.phrases import Phrases
from deploy.training.prepare import Prepared, Text
from deploy.training.records import Records, records
from deploy.training.tokenizer import BOS, BOT, EOS, USER, special_id

ANSWER_WEIGHT = 8.0
FILLER_WEIGHT = 0.5
_MIN_TOKENS = 40
"""No task fits into less."""
_TRIES = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids and the loss weight of predicting each of them."""

    ids: list[int]
    weights: list[float]

    def add(self, ids: list[int], weight: float) -> None:
        """Append tokens of one weight."""
        self.ids.extend(ids)
        self.weights.extend([weight] * len(ids))


class Maker:
    """Draws rows of tokens: plain text, repetitions, and questions about facts, `asking` times as many of them.

    With `forward`, the key of a fact stands before its value.
    """

    def __init__(self, prepared: Prepared, rng: Random, asking: int = 1, forward: bool = False) -> None:
        self._tokenizer = prepared.tokenizer
        self._text = prepared.train
        self._rng = rng
        self._asking = asking
        self._phrases = Phrases(rng, prepared.words)
        self._special = {token: [special_id(prepared.tokenizer, token)] for token in (BOS, EOS, USER, BOT)}
        framed = partial(keyed_facts, asking=asking, framed=True)
        self._kinds: Mapping[str, Callable[[int], Sample | None]] = {
            "text": self.text,
            "repeat": self.repeat,
            "single": lambda room: self._asked(single_fact, room),
            "keyed": lambda room: self._asked(partial(keyed_facts, asking=asking, forward=forward), room),
            "framed": lambda room: self._asked(framed, room),
            "alike": lambda room: self._asked(partial(framed, alike=True), room),
            "values": lambda room: self._asked(several_values, room),
            "chain": lambda room: self._asked(chain_facts, room),
            "records": self._records,
        }

    def row(self, num_tokens: int, mix: Mapping[str, float]) -> Sample:
        """`num_tokens` tokens of whole samples, each kind drawn by its share in `mix`; text fills the end."""
        row = Sample([], [])
        while (room := num_tokens - len(row.ids)) > 0:
            kind = self._rng.choices(tuple(mix), tuple(mix.values()))[0] if room >= _MIN_TOKENS else "text"
            wanted = room if self._rng.random() < 0.6 else self._rng.randint(min(_MIN_TOKENS, room), room)
            sample = self.sample(kind, wanted) or self.text(wanted)
            assert len(sample.ids) <= wanted
            row.ids.extend(sample.ids)
            row.weights.extend(sample.weights)
        return row

    def sample(self, kind: str, room: int) -> Sample | None:
        """One sample of a kind in at most `room` tokens; None when none fits."""
        return self._kinds[kind](room)

    def text(self, room: int) -> Sample:
        """A piece of the corpus."""
        sample = self._opened()
        sample.add(_piece(self._text, self._rng, room - len(sample.ids)), 1.0)
        return Sample(sample.ids[:room], sample.weights[:room])

    def repeat(self, room: int) -> Sample:
        """Tokens, random or of the corpus, once or twice again: what induction is learnt from.

        Where only few different tokens are drawn, several of them together say what follows.
        """
        rng = self._rng
        times = rng.choice((2, 2, 3))
        size = max(2, (room - 1) // times)
        if rng.random() < 0.5:
            alphabet = range(len(self._special), self._tokenizer.get_vocab_size())
            few = rng.sample(alphabet, rng.choice((4, 8, 16, 32))) if rng.random() < 0.5 else alphabet
            piece = rng.choices(few, k=size)
        else:
            piece = _piece(self._text, rng, size)
        sample = self._opened()
        sample.add(piece, FILLER_WEIGHT)
        for _ in range(times - 1):
            sample.add(piece, 2.0)
        return Sample(sample.ids[:room], sample.weights[:room])

    def _asked(self, make: Callable[[Phrases, Random, int], Facts], room: int) -> Sample | None:
        """Facts in a haystack and questions about them; None when they do not fit into `room` tokens."""
        for _ in range(_TRIES):
            facts = make(self._phrases, self._rng, room)
            sample = self._in_haystack(facts, room)
            if sample is not None:
                return sample
        return None

    def _in_haystack(self, facts: Facts, room: int) -> Sample | None:
        rng = self._rng
        chat = rng.random() < 0.35
        opening = self._opened(user=chat)
        opening.add(self._encode(facts.preamble), FILLER_WEIGHT)
        needles = [self._encode(statement) for statement in facts.statements]
        closing = self._closing(facts, chat)
        left = room - len(opening.ids) - sum(map(len, needles)) - len(closing.ids)
        if left < 0:
            return None
        self._scatter(opening, needles, left, facts.in_order)
        opening.ids.extend(closing.ids)
        opening.weights.extend(closing.weights)
        return opening

    def _scatter(self, sample: Sample, needles: list[list[int]], left: int, in_order: bool) -> None:
        """Append `left` tokens of filler with the needles between them, near word starts."""
        rng = self._rng
        size = left if rng.random() < 0.85 else rng.randint(0, left)
        filler, opens = self._filler(size)
        cuts = [rng.randint(0, size) for _ in needles]
        if not in_order:
            rng.shuffle(needles)
        cuts = sorted(opens[bisect_left(opens, cut)] if opens and cut <= opens[-1] else cut for cut in cuts)
        begin = 0
        for cut, needle in zip(cuts, needles, strict=True):
            sample.add(filler[begin:cut], FILLER_WEIGHT)
            sample.add(needle, FILLER_WEIGHT)
            begin = cut
        sample.add(filler[begin:], FILLER_WEIGHT)

    def _filler(self, size: int) -> tuple[list[int], list[int]]:
        """`size` tokens that hide facts, and where words or sentences begin in them."""
        rng = self._rng
        if rng.random() < 0.55:
            start = rng.randrange(len(self._text.starts))
            first = int(self._text.starts[start])
            piece = self._text.ids[first : first + size].tolist()
            if len(piece) == size:
                opens = self._text.starts[start : start + size]
                return piece, (opens[opens < first + size] - first).tolist()
        sentences = self._encode(" " + self._phrases.garbage())
        rounds = size // len(sentences) + 1
        return (sentences * rounds)[:size], [place * len(sentences) for place in range(rounds)]

    def _closing(self, facts: Facts, chat: bool) -> Sample:
        """The questions, each followed by its answer."""
        closing = Sample([], [])
        for number, question in enumerate(facts.questions):
            if chat and number:
                closing.add(self._special[USER], FILLER_WEIGHT)
            space = self._rng.choice((" ", "\n", "\n\n")) if not (chat and number) else ""
            closing.add(self._encode(space + question.text), FILLER_WEIGHT)
            if chat:
                closing.add(self._special[BOT], FILLER_WEIGHT)
                lead = question.lead if self._rng.random() < 0.5 else ""
                closing.add(self._encode(lead), FILLER_WEIGHT)
                answer = question.answer if lead else question.answer.lstrip()
                closing.add(self._encode(answer) + self._special[EOS], ANSWER_WEIGHT)
            else:
                closing.add(self._encode(self._joined(question.lead)), FILLER_WEIGHT)
                closing.add(self._encode(question.answer), ANSWER_WEIGHT)
                end = self._rng.random() < 0.5 and number == len(facts.questions) - 1
                closing.add(self._special[EOS] if end else [], 1.0)
        return closing

    def _joined(self, lead: str) -> str:
        """What stands between a question and its answer outside a chat."""
        lead = lead or self._rng.choice(("Answer:", "A:", "It is", "The answer is", "It is:"))
        return self._rng.choice((" ", " ", "\n")) + lead

    def _records(self, room: int) -> Sample | None:
        """A list of records and questions about some of them, as many records as fit."""
        for _ in range(_TRIES):
            made = records(self._phrases, self._rng, room, lambda text: len(self._encode(text)), self._asking)
            if made is not None and len((sample := self._listed(made)).ids) <= room:
                return sample
        return None

    def _listed(self, made: Records) -> Sample:
        chat = self._rng.random() < 0.25
        sample = self._opened(user=chat)
        sample.add(self._encode(made.text), FILLER_WEIGHT)
        for number, question in enumerate(made.questions):
            if chat:
                sample.add(self._special[USER] if number else [], FILLER_WEIGHT)
                sample.add(self._encode(question.text.rstrip()) + self._special[BOT], FILLER_WEIGHT)
                sample.add(self._encode(question.value) + self._special[EOS], ANSWER_WEIGHT)
            else:
                sample.add(self._encode(question.text) + self._encode(question.lead), FILLER_WEIGHT)
                sample.add(self._encode(question.answer), ANSWER_WEIGHT)
        return sample

    def _opened(self, *, user: bool = False) -> Sample:
        sample = Sample([], [])
        if user or self._rng.random() < 0.9:
            sample.add(self._special[BOS], 0.0)
        if user:
            sample.add(self._special[USER], FILLER_WEIGHT)
        return sample

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)


def _piece(text: Text, rng: Random, size: int) -> list[int]:
    """`size` tokens of `text` from a random word on."""
    last = int(text.starts.searchsorted(max(1, len(text.ids) - size)))
    first = int(text.starts[rng.randrange(max(1, last))])
    return list(map(int, text.ids[first : first + size]))
