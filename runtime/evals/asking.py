"""Prompts that fit a length, and questions put to a target and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moorage.runtime.evals.haystack import Coder
from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Outcome
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

Scorer = Callable[[str, Sequence[str]], float]
"""(what the model said, the right answers) -> 0 to 1."""
_MOST_PIECE_CHARACTERS = 1 << 19
"""Text that is tokenised at once; as UTF-8 below the 4 MiB of one Tokenize call."""
_MOST_TRIES = 12


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt with its right answers."""

    prompt: Sequence[int]
    max_new_tokens: int
    answers: Sequence[str]
    score: Scorer
    cut_tokens: int = 0
    """Tokens of the sample that the prompt leaves out."""
    question_tokens: int = 0
    """Last tokens of the prompt, which ask. In this process they pass through decode steps, so that the question is
    under selection as the answer is; a server prefills them with the document."""
    session: str | None = None
    """Name under which the target keeps the prompt's KV for the next question; None keeps nothing."""


def ask(target: Target, question: Question) -> Outcome:
    """The target's answer and its score. Raises InvalidRequest when the target has no room for it."""
    num_tokens = len(question.prompt)
    total = num_tokens + question.max_new_tokens
    if total > target.room:
        raise InvalidRequest(
            f"a sample has {counted(num_tokens, 'token')}, with its answer {total}, and the model has "
            f"room for {target.room}; raise long_context.max_seq_len or ask for less"
        )
    answer = target.generate(
        question.prompt, question.max_new_tokens, question.session, question.question_tokens
    )
    return Outcome(
        score=question.score(answer.text, question.answers),
        output=answer.text,
        answers=tuple(question.answers),
        prompt_tokens=num_tokens,
        seconds=answer.seconds,
        recall=answer.recall,
        budget_tokens=answer.budget_tokens,
        cut_tokens=question.cut_tokens,
        cut_answer=answer.cut,
    )


def encode_long(coder: Coder, text: str) -> list[int]:
    """Token ids of a text of any length, in pieces that end before a space."""
    ids: list[int] = []
    begin = 0
    while begin < len(text):
        end = begin + _MOST_PIECE_CHARACTERS
        if end < len(text):
            space = text.rfind(" ", begin + 1, end)
            end = space if space > 0 else end
        ids += coder.encode(text[begin:end])
        begin = end
    return ids


def fit(size_of: Callable[[int], int], room: int, least: int, guess: int) -> int:
    """About the most units whose prompt has at most `room` tokens, `least` or more.

    Raises InvalidRequest when `least` are too many.
    """
    base = size_of(least)
    if base > room:
        raise InvalidRequest(
            f"lengths: too short by {counted(base - room, 'token')} for this task; give a longer one"
        )
    fits, count, too_many = least, max(guess, least + 1), None
    for _ in range(_MOST_TRIES):
        size = size_of(count)
        if size <= room:
            fits = max(fits, count)
        else:
            too_many = count
        tokens_each = max((size - base) / (count - least), 1e-3)
        count = least + int((room - base) / tokens_each)
        if too_many is not None:
            count = min(count, too_many - 1)
        if count <= fits:
            break
    return fits
