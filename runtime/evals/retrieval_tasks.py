"""The tasks of retrieval by name, as evaluations of several tasks take them."""

from __future__ import annotations

from moorage.runtime.evals.haystack import Haystack
from moorage.runtime.evals.key_values import KeyValues
from moorage.runtime.evals.needle import Needle
from moorage.runtime.evals.passkey import Passkey, Style
from moorage.runtime.evals.tasks import Task

RETRIEVAL_TASKS = ("passkey", "needle", "needle-4", "kv-retrieval")


def retrieval_task(name: str, haystack: Haystack, lengths: tuple[int, ...], samples: int, seed: int) -> Task:
    """The task of one of the names above, which hides what it asks for in `haystack`."""
    match name:
        case "passkey":
            return Passkey(haystack, Style.TEXT, lengths, samples, seed)
        case "needle":
            return Needle(haystack, lengths, samples, seed)
        case "needle-4":
            return Needle(haystack, lengths, samples, seed, needles=4, name=name)
        case "kv-retrieval":
            return KeyValues(lengths, samples, seed)
    raise ValueError(name)
