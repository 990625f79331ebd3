"""Long text of an exact number of tokens to hide facts in."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moorage.runtime.packaged import DEPLOY
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

DEFAULT_DOCUMENT = DEPLOY / "documents" / "python_reference.txt"
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The filler of the pass-key task as it was published (Mohtashami and Jaggi, 2023): easy, since nothing competes."""
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst"})
_CHARACTERS_PER_TOKEN = 4
"""How much text is read for the tokens still wanted; a poor guess costs another piece, nothing else."""
_MOST_PIECE_CHARACTERS = 1 << 18
"""Text that is tokenised at once; as UTF-8 below the 4 MiB of one Tokenize call."""
_FEWEST_WORDS = 100
"""Needed to name needles by pairs of them."""
_MOST_SHIFT_TOKENS = 64
"""How far a cut may move to reach the start of a word; text without spaces has none."""


class Coder(Protocol):
    """What prompts are built with: text to token ids, without special tokens, and back."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`."""


@dataclass(frozen=True, slots=True)
class Haystack:
    """Paragraphs in reading order, and what stands between them."""

    paragraphs: tuple[str, ...]
    separator: str = "\n\n"

    def tokens(self, coder: Coder, num_tokens: int, seed: int) -> list[int]:
        """`num_tokens` token ids: from a paragraph that `seed` draws to the end, then in shuffled rounds."""
        paragraphs = self._endless(random.Random(seed))
        ids: list[int] = []
        while len(ids) < num_tokens:
            wanted = (num_tokens - len(ids)) * _CHARACTERS_PER_TOKEN
            ids += coder.encode(self._piece(paragraphs, min(wanted, _MOST_PIECE_CHARACTERS)))
        return ids[:num_tokens]

    def words(self, rng: random.Random, count: int) -> str:
        """`count` words from a paragraph that `rng` draws on, from the beginning again where the text ends."""
        start = rng.randrange(len(self.paragraphs))
        words = " ".join((*self.paragraphs[start:], *self.paragraphs[:start])).split()
        rounds = -(-count // len(words))
        return " ".join((words * rounds)[:count])

    def vocabulary(self) -> tuple[str, ...]:
        """Its words of four to twelve small letters, each once. Raises InvalidRequest when there are too few."""
        found = {word for text in self.paragraphs for word in re.findall(r"\b[a-z]{4,12}\b", text)}
        if len(found) < _FEWEST_WORDS:
            raise InvalidRequest(
                f"the text has {len(found)} different words; name one with {_FEWEST_WORDS} or more"
            )
        return tuple(sorted(found))

    def fingerprint(self) -> str:
        """Tells this text from another."""
        text = self.separator.join(self.paragraphs)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def _piece(self, paragraphs: Iterator[str], num_characters: int) -> str:
        parts: list[str] = []
        while num_characters > 0:
            parts += (next(paragraphs), self.separator)
            num_characters -= len(parts[-2]) + len(self.separator)
        return "".join(parts)

    def _endless(self, rng: random.Random) -> Iterator[str]:
        yield from self.paragraphs[rng.randrange(len(self.paragraphs)) :]
        while True:
            yield from rng.sample(self.paragraphs, len(self.paragraphs))


def text_haystack(path: Path = DEFAULT_DOCUMENT) -> Haystack:
    """The paragraphs of a text file, or of every .txt, .md and .rst file below a folder in the order of their names.

    Raises InvalidRequest when there is no text there.
    """
    paragraphs: list[str] = []
    for file in text_files(path):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest(f"{file}: not UTF-8 text; convert it or name another file") from None
        paragraphs += [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
    if not paragraphs:
        raise InvalidRequest(
            f"{path}: no text in it; name a text file or a folder of .txt, .md or .rst files"
        )
    return Haystack(tuple(paragraphs))


def garbage_haystack() -> Haystack:
    """One sentence group, repeated."""
    return Haystack((GARBAGE,), separator=" ")


@dataclass(frozen=True, slots=True)
class Material:
    """What prompts are made of."""

    haystack: Haystack
    coder: Coder
    prefix_ids: Sequence[int] = ()
    """First tokens of every prompt, such as a model's BOS."""


def hide(
    material: Material,
    num_tokens: int,
    facts: Sequence[tuple[float, str]],
    seed: int,
    opening: Sequence[int] = (),
    question: Sequence[int] = (),
) -> list[int]:
    """The prefix, `opening`, text with every (depth, fact) at its share of the text, `question`: `num_tokens` in all.

    Raises InvalidRequest when that is too few.
    """
    coder, begun = material.coder, [*material.prefix_ids, *opening]
    needles = [(depth, coder.encode(fact)) for depth, fact in sorted(facts, key=lambda item: item[0])]
    room = num_tokens - len(begun) - len(question) - sum(len(ids) for _, ids in needles)
    if room < 0:
        raise InvalidRequest(
            f"lengths: a prompt of {counted(num_tokens, 'token')} is too short; give at least {num_tokens - room}"
        )
    text = material.haystack.tokens(coder, room, seed)
    prompt, begin = begun, 0
    for depth, ids in needles:
        cut = max(begin, word_start(coder, text, round(depth * room)))
        prompt += [*text[begin:cut], *ids]
        begin = cut
    return [*prompt, *text[begin:], *question]


def word_start(coder: Coder, ids: Sequence[int], cut: int) -> int:
    """The first place from `cut` on where `ids` can be parted without splitting a word; `cut` when none is near.

    A token's own text may lack its leading space, so it is read as what it adds to the tokens before it.
    """
    for place in range(cut, min(cut + _MOST_SHIFT_TOKENS, len(ids))):
        before = ids[max(0, place - 4) : place]
        added = coder.decode([*before, ids[place]])[len(coder.decode(before)) :]
        if not before or added[:1].isspace():
            return place
    return min(cut, len(ids))


def text_files(path: Path) -> list[Path]:
    """A file itself, or every .txt, .md and .rst file below a folder by name. Raises InvalidRequest for neither."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidRequest(f"{path}: no such file or folder; name a text to hide the facts in")
    return sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
