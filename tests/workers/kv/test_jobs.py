"""Work in threads of its own, and how its outcome is told."""

from __future__ import annotations

import threading

import pytest

from moorage.workers.errors import Internal, InvalidRequest
from moorage.workers.kv.jobs import Jobs, Outcome


def outcome(jobs: Jobs, number: int) -> Outcome:
    while not (found := jobs.outcome(number)).done:
        threading.Event().wait(0.001)
    return found


def test_a_job_runs_beside_others_and_tells_its_result_once() -> None:
    jobs, go_on = Jobs(), threading.Event()
    slow, quick = jobs.start(go_on.wait, 20), jobs.start(sum, (1, 2))
    assert outcome(jobs, quick) == (True, 3, None)
    assert not jobs.outcome(slow).done
    go_on.set()
    assert outcome(jobs, slow).result is True
    with pytest.raises(KeyError):
        jobs.outcome(slow)


def test_an_error_is_told_and_one_that_nobody_foresaw_as_internal() -> None:
    def refuse() -> None:
        raise InvalidRequest("no such file; give another")

    jobs = Jobs()
    told = outcome(jobs, jobs.start(refuse)).error
    assert (type(told), str(told)) == (InvalidRequest, "no such file; give another")
    assert isinstance(outcome(jobs, jobs.start(int, "x")).error, Internal)
