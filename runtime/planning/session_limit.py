"""Most tokens of one session, and the warning when that is more than the session's positions reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.planning.trained_length import Reach, claimed_length, reach, trained_length
from moorage.workers.spec import ModelSpec

if TYPE_CHECKING:
    from moorage.runtime.config.schema import ClusterConfig

EXTENDED_TOKENS = 131072
"""Default of a session whose positions reach further than the model promises."""


@dataclass(frozen=True, slots=True)
class SessionLimit:
    """What `long_context.max_seq_len` comes to for a model."""

    max_seq_len: int
    trained_tokens: int
    """Tokens that the checkpoint was made for."""
    reach: Reach
    """How far the positions of the cluster's own preset hold."""
    notes: tuple[str, ...] = ()
    """What the model's directory disagrees with itself on."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines for people: notes on the model, and whether sessions may outgrow their positions."""
        if not self.reach.beyond(self.max_seq_len):
            return self.notes
        tokens = self.reach.tokens
        return (
            *self.notes,
            f"long_context.max_seq_len: {self.max_seq_len:,} tokens are more than the {tokens:,} that positions "
            f"reach ({self.reach.reason}); answers beyond are not reliable; use {tokens}, or extend it by "
            "memory.positions or memory.rope_scaling",
        )


def session_limit(config: ClusterConfig, model: ModelSpec) -> SessionLimit:
    """The configured length, or by default as far as positions reach.

    Where they reach beyond what the model itself promises, the default is at most EXTENDED_TOKENS, or that length
    where it is longer. Raises InvalidRequest for positions that don't fit the model.
    """
    memory = resolve_memory(config, model=model)
    found, trained = reach(memory, model), trained_length(model)
    longest = max(EXTENDED_TOKENS, claimed_length(model))
    default = longest if found.tokens is None else min(found.tokens, longest)
    given = config.long_context.max_seq_len
    return SessionLimit(given or default, trained, found, model.notes)
