"""Work beside that of a process, in threads of its own: started, and asked for until it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from moorage.workers.errors import Internal, MoorageError


class Outcome(NamedTuple):
    """What is known of a job."""

    done: bool
    result: Any = None
    error: MoorageError | None = None


@dataclass(slots=True)
class Job:
    """One call in a thread."""

    thread: threading.Thread
    outcome: Outcome = Outcome(False)


class Jobs:
    """Calls that run in threads. The outcome of each is told once."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._count = 0

    def start(self, function: Callable[..., Any], *arguments: object) -> int:
        """Starts a call; the number that is returned names it."""
        self._count += 1
        number = self._count
        self._jobs[number] = Job(threading.Thread(target=self._run, args=(number, function, arguments)))
        self._jobs[number].thread.start()
        return number

    def outcome(self, number: int) -> Outcome:
        """Whether a job is done, and what came of it."""
        job = self._jobs[number]
        if job.outcome.done:
            job.thread.join()
            del self._jobs[number]
        return job.outcome

    def _run(self, number: int, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
        job = self._jobs[number]
        try:
            job.outcome = Outcome(True, function(*arguments))
        except MoorageError as error:
            job.outcome = Outcome(True, error=error)
        except Exception as error:  # noqa: BLE001  a job must not end unnoticed
            job.outcome = Outcome(True, error=Internal(f"{type(error).__name__}: {error}"))
