"""A small corpus of made-up text, tokenised as the real one is."""

from __future__ import annotations

from random import Random

import pytest

from deploy.training.corpus import Document
from deploy.training.prepare import Prepared, prepare

SYLLABLES = ("ba", "co", "du", "fi", "ge", "ha", "lo", "mi", "nu", "po", "ra", "se", "ti", "vo")


@pytest.fixture(scope="session")
def prepared() -> Prepared:
    """12 documents of some 800 words each, two of them held out; a vocabulary of 420 tokens."""
    rng = Random(5)
    words = sorted({"".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) for _ in range(150)})
    documents = []
    for number in range(12):
        sentences = [" ".join(rng.choices(words, k=8)).capitalize() + "." for _ in range(100)]
        documents.append(Document("made-up", f"page {number}", "\n".join(sentences), number % 6 == 5))
    return prepare(documents, 420)
