"""The one line that says why an actor did not start, out of what Ray 2.60 tells."""

from __future__ import annotations

from moorage.runtime.cluster.start_errors import start_error
from moorage.workers.errors import InvalidModel, StoreFull, Unavailable

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: KvActor
\tactor_id: 68a8d6545a77426a1909d44b01000000
\tpid: 7016
\tname: kv-x
\tnamespace: moorage
\tip: 192.0.2.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR
"""
RAISED = """The actor died because of an error raised in its creation task, ray::kv-x:KvActor.__init__() (pid=7016)
           ^^^^^^^^^^^^
  File "/srv/moorage/workers/kv/actor.py", line 7, in __init__
    numba.set_num_threads(num_threads)
    raise ValueError(msg)
ValueError: The number of threads must be between 1 and 2
"""


class OfRay(Exception):
    cause: Exception | None = None


def test_an_actor_that_died_is_told_by_its_reason_and_not_by_its_namespace() -> None:
    error = start_error(OfRay(DIED))
    assert isinstance(error, Unavailable)
    assert "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR" in str(
        error
    )
    assert "namespace" not in str(error)


def test_an_error_of_a_constructor_is_its_last_line() -> None:
    assert "a worker failed to start: ValueError: The number of threads must be" in str(
        start_error(OfRay(RAISED))
    )


def test_the_projects_own_errors_keep_their_class() -> None:
    text = RAISED + "moorage.workers.errors.InvalidModel: m/config.json: missing; add it\n"
    found = start_error(OfRay(text))
    assert type(found) is InvalidModel
    assert str(found) == "m/config.json: missing; add it"
    error = OfRay(RAISED)
    error.cause = StoreFull("no room", retry_after_s=2.0)
    assert start_error(error) is error.cause


def test_nothing_told_is_still_a_line() -> None:
    assert str(start_error(OfRay(""))) == "a worker failed to start: OfRay(''); its Ray log says more"
