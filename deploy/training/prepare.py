"""Tokenise the corpus once: a tokenizer, the ids of all text, and the words that tasks name things with."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from deploy.training.corpus import Document
from deploy.training.tokenizer import EOS, special_id, train_tokenizer

MIN_WORD_DOCUMENTS = 8
_WORD = re.compile(r"(?<![\w.-])[a-z]{3,10}(?![\w.-])")


@dataclass(frozen=True, slots=True)
class Text:
    """Tokenised text. `starts` are the places in `ids` where a word or a line begins."""

    ids: NDArray[np.uint16]
    starts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What tasks are made of."""

    tokenizer: Tokenizer
    train: Text
    held_out: Text
    words: tuple[str, ...]


def prepare(documents: Sequence[Document], vocab_size: int, tokenizer: Tokenizer | None = None) -> Prepared:
    """Train a tokenizer on the documents that are not held out, unless one is given, and encode all of them."""
    seen = [document.text for document in documents if not document.held_out]
    tokenizer = tokenizer or train_tokenizer(seen, vocab_size)
    held_out = [document.text for document in documents if document.held_out]
    return Prepared(
        tokenizer, encode_texts(tokenizer, seen), encode_texts(tokenizer, held_out), common_words(seen)
    )


def save_prepared(prepared: Prepared, folder: Path) -> None:
    """Write `prepared` into `folder`."""
    prepared.tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("train", "held_out"):
        text: Text = getattr(prepared, name)
        np.savez(folder / f"{name}.npz", ids=text.ids, starts=text.starts)
    (folder / "words.json").write_text(json.dumps(prepared.words), encoding="utf-8")


def load_prepared(folder: Path) -> Prepared:
    """Read what `save_prepared` wrote."""
    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Prepared(tokenizer, _read(folder / "train.npz"), _read(folder / "held_out.npz"), tuple(words))


def _read(path: Path) -> Text:
    with np.load(path) as arrays:
        return Text(arrays["ids"], arrays["starts"])


def common_words(texts: Iterable[str]) -> tuple[str, ...]:
    """Lower-case words of three to ten letters that stand in many of the texts, sorted."""
    counts = Counter(word for text in texts for word in set(_WORD.findall(text)))
    return tuple(sorted(word for word, count in counts.items() if count >= MIN_WORD_DOCUMENTS))


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Text:
    """The texts one after the other, each ended by EOS."""
    eos = [special_id(tokenizer, EOS)]
    ids = [token for text in texts for token in (*tokenizer.encode(text).ids, *eos)]
    array = np.array(ids, dtype=np.uint16)
    opens = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
    for token, index in tokenizer.get_vocab().items():
        opens[index] = token[0] in "ĠĊ"
    return Text(array, np.flatnonzero(opens[array]))
