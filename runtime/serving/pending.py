"""What the worker must do with sessions beside the segments of a step: recorded at once, done with the next step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from moorage.workers.spec import (
    ContinueSession,
    ForkSession,
    OpenSession,
    RestoreSession,
    Segment,
    StepPlan,
)


@dataclass(slots=True)
class Pending:
    """Sessions to fork, drop, leave idle and restore. All of it stays due until a step that has it succeeds."""

    drops: list[int] = field(default_factory=list)
    idles: list[int] = field(default_factory=list)
    forks: list[ForkSession] = field(default_factory=list)
    restores: list[RestoreSession] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.drops or self.idles or self.forks or self.restores)

    def plan(
        self,
        step_id: int,
        opens: tuple[OpenSession | ContinueSession, ...],
        segments: tuple[Segment, ...],
    ) -> StepPlan:
        """The plan of a step with all that is due."""
        drops, idles, forks = tuple(self.drops), tuple(self.idles), tuple(self.forks)
        return StepPlan(step_id, drops, opens, segments, idles, forks, tuple(self.restores))

    def done(self, plan: StepPlan) -> None:
        """The step of `plan` succeeded. What was added after it was planned stays due."""
        del self.drops[: len(plan.drops)], self.idles[: len(plan.idles)]
        del self.forks[: len(plan.forks)], self.restores[: len(plan.restores)]

    def opens(self, session_id: int) -> bool:
        """Whether a fork or a restored session is not yet open."""
        due = {fork.new_id for fork in self.forks} | {one.session_id for one in self.restores}
        return session_id in due

    def drop_all(self, session_ids: Iterable[int]) -> None:
        """Nothing but drops is due: of these sessions, and of those that were due before."""
        self.drops = [*dict.fromkeys((*self.drops, *session_ids))]
        self.idles, self.forks, self.restores = [], [], []
