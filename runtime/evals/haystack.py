"""Long text of an exact number of tokens to hide facts in."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moorage.workers.errors import InvalidRequest

DEFAULT_DOCUMENT = Path(__file__).resolve().parents[2] / "deploy" / "documents" / "python_reference.txt"
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The filler of the pass-key task as it was published (Mohtashami and Jaggi, 2023): easy, since nothing competes."""
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst"})
_CHARACTERS_PER_TOKEN = 4
"""How much text is read for the tokens still wanted; a poor guess costs another piece, nothing else."""
_MOST_PIECE_CHARACTERS = 1 << 18
"""Text that is tokenised at once; as UTF-8 below the 4 MiB of one Tokenize call."""
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
