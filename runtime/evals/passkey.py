"""The pass-key task: one number hidden in a long text and asked for at its end (Mohtashami and Jaggi, 2023).

A prompt is `TEXT FACT TEXT QUESTION`, all joined by single spaces, and the model goes on with the number:

    … The pass key is 48709. Remember it. 48709 is the pass key. … What is the pass key? The pass key is

The number has five digits, drawn from the seed like the text's beginning. The space before "What" belongs to the
format: the embedded model does not know the question after a line break.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from moorage.runtime.evals.haystack import Coder, Haystack, word_start
from moorage.workers.errors import InvalidRequest

FACT = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = " What is the pass key? The pass key is"
NUM_DIGITS = 5
ANSWER_TOKENS = 8
"""Enough for a space, the digits one by one and a full stop."""


@dataclass(frozen=True, slots=True)
class PasskeySample:
    """One prompt. `depth` is the share of the text before the fact."""

    prompt_ids: tuple[int, ...]
    answer: str
    depth: float
    num_tokens: int


def make_samples(
    haystack: Haystack,
    coder: Coder,
    num_tokens: int,
    num_samples: int,
    seed: int = 0,
    *,
    depth: float | None = None,
    prefix_ids: Sequence[int] = (),
) -> list[PasskeySample]:
    """Prompts of exactly `num_tokens`; depths are spread evenly, in the middle of `num_samples` equal parts.

    `prefix_ids` come first, such as a model's BOS. The same seed gives the same prompts. Raises InvalidRequest when
    the length has no room for the fact and the question.
    """
    depths = [(index + 0.5) / num_samples if depth is None else depth for index in range(num_samples)]
    return [
        make_sample(haystack, coder, num_tokens, place, seed * 1_000_003 + index, prefix_ids=prefix_ids)
        for index, place in enumerate(depths)
    ]


def make_sample(
    haystack: Haystack,
    coder: Coder,
    num_tokens: int,
    depth: float,
    seed: int,
    *,
    prefix_ids: Sequence[int] = (),
) -> PasskeySample:
    """One prompt of exactly `num_tokens`. Raises InvalidRequest for a depth outside 0 to 1 or too short a prompt."""
    if not 0.0 <= depth <= 1.0:
        raise InvalidRequest(f"depth: {depth} is not between 0 and 1")
    rng = random.Random(seed)
    answer = str(rng.randrange(10 ** (NUM_DIGITS - 1), 10**NUM_DIGITS))
    fact, question = coder.encode(FACT.format(key=answer)), coder.encode(QUESTION)
    room = num_tokens - len(prefix_ids) - len(fact) - len(question)
    if room < 0:
        raise InvalidRequest(f"lengths: {num_tokens} tokens are too few; give at least {num_tokens - room}")
    text = haystack.tokens(coder, room, rng.randrange(2**32))
    cut = word_start(coder, text, round(depth * room))
    ids = (*prefix_ids, *text[:cut], *fact, *text[cut:], *question)
    return PasskeySample(ids, answer, depth, len(ids))


def is_correct(output_text: str, answer: str) -> bool:
    """Whether the first number of the output is the answer."""
    number = re.search(r"\d+", output_text)
    return number is not None and number[0] == answer
