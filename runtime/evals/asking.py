"""One sample asked and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Outcome
from moorage.workers.errors import InvalidRequest

Scorer = Callable[[str, Sequence[str]], float]
"""(what the model said, the right answers) -> 0 to 1."""


def ask(
    target: Target,
    prompt: Sequence[int],
    max_new_tokens: int,
    answers: Sequence[str],
    score: Scorer,
    cut_tokens: int = 0,
    session: str | None = None,
) -> Outcome:
    """What the target says, and what it is worth. Raises InvalidRequest when the target has no room for it."""
    total = len(prompt) + max_new_tokens
    if total > target.room:
        raise InvalidRequest(
            f"a sample has {len(prompt)} tokens, with its answer {total}, and the model has room for {target.room}; "
            "raise long_context.max_seq_len or ask for less"
        )
    answer = target.generate(prompt, max_new_tokens, session)
    return Outcome(
        score=score(answer.text, answers),
        output=answer.text,
        answers=tuple(answers),
        prompt_tokens=len(prompt),
        seconds=answer.seconds,
        recall=answer.recall,
        budget_tokens=answer.budget_tokens,
        cut_tokens=cut_tokens,
    )
