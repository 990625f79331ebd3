"""The sessions of one step as attention and selection take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moorage.workers.errors import MoorageError, ResourceExhausted
from moorage.workers.gpu.engine.out_of_memory import is_out_of_memory
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.positions.rotary import BlockRanges
from moorage.workers.spec import MemorySpec, SelectionSpec

Int32 = NDArray[np.int32]
Failures = dict[int, MoorageError]
"""Session id -> why it alone failed in this step."""


class SessionGuard:
    """Runs what may fail for one session alone, so that the others go on."""

    def __init__(self, failed: Failures, free_memory: Callable[[], bool] | None = None) -> None:
        """`free_memory` frees device memory, or says that there is none to free; None leaves it to the caller."""
        self.failed = failed
        self._free_memory = free_memory

    def run(self, session: WorkerSession, action: Callable[[], None]) -> bool:
        """Runs `action` for a session that has not failed; whether it was run to its end.

        Where the device has no memory left, `action` runs once more after some was freed.
        """
        if session.session_id in self.failed:
            return False
        try:
            self._run(session, action)
        except MoorageError as error:
            self.failed[session.session_id] = error
            return False
        return True

    def _run(self, session: WorkerSession, action: Callable[[], None]) -> None:
        try:
            action()
            return
        except (MemoryError, RuntimeError) as error:
            if self._free_memory is None or not is_out_of_memory(error):
                raise
        try:
            if self._free_memory() and session.repeatable:
                action()
                return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        raise no_memory(session.session_id)


def no_memory(session_id: int) -> ResourceExhausted:
    """The error of a session whose step the device has no memory for."""
    return ResourceExhausted(
        f"session {session_id}: the device has no memory left for its step; lower server.max_running, "
        "long_context.chunk_size or gpu_workers.device_memory"
    )


@dataclass(slots=True)
class DecodeStep:
    """The next token of one session, as selection sees it: the same in all layers."""

    session: WorkerSession
    ranges: BlockRanges
    limits: Int32
    """[1]: the first window block, as a selection takes it."""
    row: int = 0
    """Its row in the batch's queries."""
    exact: bool = False
    """Whether it attends all keys, whatever the session selects. Such steps of one session are at successive
    positions."""

    @classmethod
    def of(cls, session: WorkerSession, block_size: int) -> DecodeStep:
        """The step of a session's next token."""
        return cls.at(session, session.num_tokens, block_size)

    @classmethod
    def at(cls, session: WorkerSession, position: int, block_size: int, exact: bool = False) -> DecodeStep:
        """The step of the token at `position`."""
        ranges = BlockRanges.at(position, session.memory, block_size)
        return cls(session, ranges, np.array([ranges.near_block], np.int32), exact=exact)

    @property
    def memory(self) -> MemorySpec:
        """The session's axes."""
        return self.session.memory

    @property
    def selection(self) -> SelectionSpec:
        """How the session selects blocks."""
        return self.session.memory.selection


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Sessions that generate a token in a step, or verify some."""

    steps: tuple[DecodeStep, ...]
    """The steps in the order of the batch's queries."""
    guard: SessionGuard

    @classmethod
    def of(cls, steps: Sequence[DecodeStep], guard: SessionGuard) -> DecodeBatch:
        """The batch of some steps, which learn their rows."""
        for row, step in enumerate(steps):
            step.row = row
        return cls(tuple(steps), guard)

    def live(self) -> list[DecodeStep]:
        """The steps whose sessions have not failed."""
        return [step for step in self.steps if step.session.session_id not in self.guard.failed]


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Sessions of which a step prefills a chunk."""

    sessions: tuple[WorkerSession, ...]
    bounds: tuple[int, ...]
    """[N + 1]: rows [bounds[i], bounds[i + 1]) of the batch's queries belong to session i."""
    guard: SessionGuard
