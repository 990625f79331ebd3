"""Estimated waits: from what steps took, and from what is queued."""

from __future__ import annotations

import pytest

from moorage.runtime.serving.queue_status import Throughput, retry_after_s, waits_s


def test_nothing_is_estimated_before_a_prompt_was_read() -> None:
    throughput = Throughput()
    assert throughput.work_s(10, 10) is None
    throughput.record_step(0, 1, 0.5)
    assert throughput.work_s(10, 10) is None


def test_work_is_counted_by_what_tokens_of_each_kind_took() -> None:
    throughput = Throughput()
    throughput.record_step(100, 0, 1.0)
    throughput.record_step(0, 2, 0.1)
    assert throughput.work_s(1000, 40) == pytest.approx(10 + 2)
    throughput.record_step(100, 2, 1.1)  # what a prompt's tokens took is what the generated ones leave
    assert throughput.work_s(1000, 0) == pytest.approx(10)


def test_answers_that_end_early_shorten_the_estimate() -> None:
    throughput = Throughput()
    throughput.record_step(1, 0, 1.0)
    throughput.record_end(25, 100)
    assert throughput.work_s(0, 100) == pytest.approx(25)


@pytest.mark.parametrize(
    ("running", "waiting", "starts"),
    [
        ([], [5.0], [0.0]),
        ([4.0], [5.0, 1.0], [4.0, 9.0]),
        # Two share the time: the shorter ends after 4, then the first that waits runs beside the longer.
        ([2.0, 6.0], [9.0, 1.0], [4.0, 12.0]),
        ([3.0, 3.0], [], []),
    ],
)
def test_a_request_starts_when_one_that_runs_ends(
    running: list[float], waiting: list[float], starts: list[float]
) -> None:
    assert waits_s(running, waiting) == pytest.approx(starts)


def test_a_refused_request_comes_back_when_half_of_the_queue_has_started() -> None:
    assert retry_after_s([1.0, 2.0, 8.0, 9.0]) == 8.0
    assert retry_after_s([0.0, 0.1]) == 0.5
    assert retry_after_s([1e6]) == 600.0
