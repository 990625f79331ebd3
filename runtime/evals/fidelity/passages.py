"""What is scored: text that goes on, text that repeats what stood far back, and answers about hidden facts.

Each passage is a prompt that is prefilled exactly, tokens that are then given one at a time under selection, and
tokens that are scored. The question of a retrieval task is under selection too, as in a served conversation.
"""

from __future__ import annotations

import glob
import os
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.runtime.evals.haystack import Coder, Haystack, Material, hide, text_haystack
from moorage.runtime.evals.needle import FACT, NUM_DIGITS, QUESTION
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

TASKS = ("copy", "continue", "retrieve")
CUE_TOKENS, COPIED_TOKENS, CONTINUED_TOKENS = 12, 24, 64
NUM_FACTS = 4
_CHARACTERS_PER_TOKEN = 8
"""Characters of text that are tokenised for each token wanted; English has about four."""
_SHUFFLE_SEED = 7
_MOST_MORE_TOKENS = 192
"""What follows a document in any task: a question and its answer, or a continuation."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One document and the tokens that are scored after it."""

    task: str
    length: int
    """Tokens of the document."""
    index: int
    prompt: list[int]
    """Tokens that are prefilled."""
    given: list[int]
    """Tokens that pass through decode steps before the first scored token; at least one."""
    wanted: list[int]
    """Tokens that are scored."""
    source: range | None = None
    """Where in the prompt the tokens stand that are copied."""

    @property
    def fed(self) -> list[int]:
        """What decode steps are given."""
        return [*self.given, *self.wanted[:-1]]


@dataclass(frozen=True, slots=True)
class Text:
    """Pieces of text in reading order, and what stands between them."""

    name: str
    pieces: tuple[str, ...]
    separator: str

    def tokens(self, coder: Coder, count: int) -> list[int]:
        """The first `count` token ids. Raises InvalidRequest when the text has fewer."""
        ids = coder.encode(self.separator.join(self.pieces)[: _CHARACTERS_PER_TOKEN * count])
        if len(ids) < count:
            raise InvalidRequest(
                f"the text {self.name} has {counted(len(ids), 'token')}, and {count} are needed; name a longer "
                "text with --text, or lower --lengths or --passages"
            )
        return ids[:count]


def library_text() -> Text:
    """The docstrings of Python's own library, in shuffled order: English about many subjects, on every machine."""
    pieces: list[str] = []
    for path in sorted(glob.glob(os.path.join(sysconfig.get_paths()["stdlib"], "*.py"))):
        source = Path(path).read_text(encoding="utf-8", errors="ignore")
        pieces += [" ".join(found.split()) for found in re.findall(r'"""(.*?)"""', source, re.S)]
    random.Random(_SHUFFLE_SEED).shuffle(pieces)
    return Text("of Python's docstrings", tuple(pieces), " ")


def text_of(path: Path) -> Text:
    """The text of a file, or of a folder's .txt, .md and .rst files."""
    haystack = text_haystack(path)
    return Text(str(path), haystack.paragraphs, haystack.separator)


def most_tokens(length: int) -> int:
    """Room for any passage over a document of `length` tokens."""
    return length + _MOST_MORE_TOKENS


def passages(
    text: Text, coder: Coder, prefix: Sequence[int], length: int, tasks: Sequence[str], count: int
) -> Iterator[Passage]:
    """`count` passages of each task over documents of `length` tokens, those over the same document one by one."""
    ids = text.tokens(coder, length * count + CONTINUED_TOKENS)
    for index in range(count):
        document = [*prefix, *ids[index * length : (index + 1) * length]][:length]
        for task in tasks:
            if task == "copy":
                yield _copy(document, coder, length, index, count)
            elif task == "continue":
                end = index * length + len(document) - len(prefix)
                wanted = ids[end : end + CONTINUED_TOKENS]
                yield Passage(task, length, index, document[:-1], document[-1:], wanted)
            else:
                yield _retrieve(text, coder, prefix, length, index, count)


def _copy(document: list[int], coder: Coder, length: int, index: int, count: int) -> Passage:
    """The end repeats a cue from the first half of the document; what followed the cue there is scored."""
    at = int(length * (0.08 + 0.5 * index / count))
    cue = document[at : at + CUE_TOKENS]
    wanted = document[at + CUE_TOKENS : at + CUE_TOKENS + COPIED_TOKENS]
    prompt = [*document, *coder.encode("\n\n"), *cue]
    source = range(at, at + CUE_TOKENS + COPIED_TOKENS)
    return Passage("copy", length, index, prompt[:-1], prompt[-1:], wanted, source)


def _retrieve(
    text: Text, coder: Coder, prefix: Sequence[int], length: int, index: int, count: int
) -> Passage:
    """One of several facts is asked for; it lies at the passage's own depth, the others anywhere."""
    rng = random.Random(f"{length}/{index}")
    haystack = Haystack(text.pieces, text.separator)
    words = haystack.vocabulary()
    keys = ["-".join(rng.sample(words, 2)) for _ in range(NUM_FACTS)]
    values = rng.sample(range(10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS), NUM_FACTS)
    depths = [(index + 0.5) / count, *(rng.random() for _ in keys[1:])]
    facts = [
        (depth, FACT.format(key=key, value=value))
        for depth, key, value in zip(depths, keys, values, strict=True)
    ]
    prompt = hide(Material(haystack, coder, prefix), length, facts, rng.randrange(2**32))
    given = coder.encode(QUESTION.format(key=keys[0]))
    return Passage("retrieve", length, index, prompt, given, coder.encode(f": {values[0]}."))
