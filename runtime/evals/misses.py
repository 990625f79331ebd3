"""What a missed pass key is due to: the same prompt is asked of oracles, best such that attend all keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moorage.runtime.evals.journal import Record
from moorage.runtime.evals.passkey import Passkey
from moorage.runtime.evals.targets import Targets


@dataclass(frozen=True, slots=True)
class Oracle:
    """Another way to answer the same prompt: one choice of other targets."""

    label: str
    targets: Targets


@dataclass(frozen=True, slots=True)
class Miss:
    """A missed sample, and which oracles answer the same prompt correctly."""

    record: Record
    found_by: dict[str, bool]

    def as_json(self) -> dict[str, Any]:
        """The miss by name, without the prompt."""
        place, outcome = self.record.key.place, self.record.outcome
        return {
            "preset": self.record.key.preset,
            "length": place.length,
            "depth": place.depth,
            "answer": outcome.answers[0],
            "output": outcome.output,
            "found_by": self.found_by,
        }


def explain_misses(task: Passkey, records: Sequence[Record], oracles: Sequence[Oracle]) -> list[Miss]:
    """Asks every oracle each missed prompt.

    An oracle that attends all keys and finds the answer shows that the selection of blocks missed it (budget or
    anchor); a larger budget as second oracle parts the two. One that does not find it either speaks for the model,
    though weakly far beyond the trained length, where attending everything is harder than attending the right blocks.
    """
    misses = [Miss(record, {}) for record in records if not record.outcome.score]
    for oracle in oracles:
        for miss in misses:
            place = miss.record.key.place
            target = oracle.targets.at(oracle.targets.labels[0], place.length)
            miss.found_by[oracle.label] = bool(task.measure(place, target).score)
    return misses
