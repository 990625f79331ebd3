"""What one session attends: retention, selection and positions together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moorage.workers.spec.positions import PositionSpec
from moorage.workers.spec.selection import RetentionSpec, SelectionSpec
from moorage.workers.spec.setting import Limits, part, replaced, setting, values_of

MOST_DRAFTED = 15
"""Tokens of one draft, so that these and the token before them are one compiled step."""


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """The settings of one session, resolved from a preset, the configuration and the request."""

    preset: str
    retention: RetentionSpec = part(RetentionSpec)
    selection: SelectionSpec = part(SelectionSpec)
    positions: PositionSpec = part(PositionSpec)
    verify: int = setting(
        0,
        "Tokens that a session drafts by its selection before one exact pass over all keys verifies them: the answer "
        "is that of full attention. Where the last tokens have occurred before, twice as many that followed them "
        "then are the draft. 0 is off. Needs an exact prefill.",
        Limits(least=0, most=MOST_DRAFTED),
    )
    recall_every: int = setting(
        32,
        "Decode steps between two samples of recall, the share of exact attention mass that was attended; 0 never "
        "samples.",
        Limits(least=0),
        of_preset=False,
    )
    inspect: bool = False
    """Whether steps report the attention mass on each block; a request asks for it."""

    @property
    def most_drafted(self) -> int:
        """Tokens of a draft that is looked up, at most: twice as many as where each takes a step."""
        return min(2 * self.verify, MOST_DRAFTED)

    def budget_tokens(self, block_size: int) -> int:
        """Most tokens attended per layer and decode step by selection; 0 stands for all."""
        selected = self.selection.selected_tokens(block_size)
        return 0 if selected is None else self.retention.sinks + self.retention.window + selected

    def replace(self, **values: Any) -> MemorySpec:
        """This choice with some settings changed, each by its own name, whichever part holds it.

        Raises TypeError for a name that no part has.
        """
        return replaced(self, values)

    def settings(self) -> dict[str, Any]:
        """The value of every setting by its name."""
        return values_of(self)
