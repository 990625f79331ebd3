"""The tasks of retrieval by name, as evaluations of several tasks take them."""

from __future__ import annotations

from moorage.runtime.evals.haystack import Haystack
from moorage.runtime.evals.key_values import KeyValues
from moorage.runtime.evals.needle import Needle
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.tasks import Task

RETRIEVAL_TASKS = ("passkey", "needle", "needle-4", "kv-retrieval")


def retrieval_task(
    name: str, haystack: Haystack, lengths: tuple[int, ...], samples: int, seed: int, one_text: bool = False
) -> Task:
    """The task of one of the names above, which hides what it asks for in `haystack`.

    With `one_text` the questions after one object, and those after four needles, share their text.
    """
    match name:
        case "passkey":
            return Passkey(haystack, Style.TEXT, lengths, samples, seed)
        case "needle":
            return Needle(haystack, lengths, samples, seed)
        case "needle-4":
            return Needle(haystack, lengths, samples, seed, needles=4, name=name, one_text=one_text)
        case "kv-retrieval":
            return KeyValues(lengths, samples, seed, one_text=one_text)
    raise ValueError(name)
