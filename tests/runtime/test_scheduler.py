"""The scheduler as a pure state machine: budgets, fairness, reservation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.runtime.scheduler import Job, Limits, Room, Scheduler
from moorage.workers.errors import ResourceExhausted


def scheduler(**changes: int) -> Scheduler:
    values = {
        "pages": 100,
        "slots": 1000,
        "max_step_tokens": 64,
        "decode_prefill_tokens": 16,
        "max_running": 8,
        "max_waiting": 16,
    } | changes
    room = Room((values.pop("pages"),), values.pop("slots"))
    return Scheduler(Limits(room=room, **values))


def job(job_id: int, prompt_tokens: int, pages: int = 1, quantum: int = 1) -> Job:
    return Job(job_id, prompt_tokens, Room((pages,), 1), quantum)


def run_prefill(sched: Scheduler) -> dict[int, int]:
    """One step; returns prompt tokens by job."""
    step = sched.next_step()
    sched.prefilled(step.prefills)
    return {chunk.job_id: chunk.count for chunk in step.prefills}


def test_a_prompt_is_cut_into_chunks_of_the_token_budget() -> None:
    sched = scheduler()
    sched.add(job(1, 150))
    assert [run_prefill(sched) for _ in range(3)] == [{1: 64}, {1: 64}, {1: 22}]
    assert sched.next_step().decodes == (1,)


def test_decodes_come_first_and_limit_the_prompt_tokens_beside_them() -> None:
    sched = scheduler()
    sched.add(job(1, 5))
    run_prefill(sched)
    sched.add(job(2, 150))
    step = sched.next_step()
    assert step.decodes == (1,)
    assert [(c.job_id, c.count) for c in step.prefills] == [(2, 16)]


def test_two_prompts_share_a_step_and_a_short_one_passes_its_rest_on() -> None:
    sched = scheduler()
    sched.add(job(1, 1000))
    sched.add(job(2, 10))
    assert run_prefill(sched) == {1: 54, 2: 10}


def test_a_prompt_with_a_large_quantum_is_not_starved_by_others() -> None:
    sched = scheduler(max_step_tokens=24)
    sched.add(job(1, 1000, quantum=16))
    sched.add(job(2, 1000))
    moved = [run_prefill(sched) for _ in range(4)]
    assert sum(step.get(1, 0) for step in moved) >= 32
    assert sum(step.get(2, 0) for step in moved) >= 24


def test_chunks_end_at_the_quantum_or_at_the_end_of_the_prompt() -> None:
    sched = scheduler(max_step_tokens=50)
    sched.add(job(1, 100, quantum=16))
    assert [run_prefill(sched)[1] for _ in range(3)] == [48, 48, 4]


def test_a_continued_prompt_first_goes_to_the_next_boundary() -> None:
    sched = scheduler(max_step_tokens=10)
    continued = job(1, 100, quantum=16)
    continued.prefilled_tokens = 5
    sched.add(continued)
    assert run_prefill(sched) == {1: 11}


def test_a_job_without_room_waits_until_another_leaves() -> None:
    sched = scheduler(pages=10)
    sched.add(job(1, 5, pages=8))
    sched.add(job(2, 5, pages=4))
    assert sched.next_step().admitted == (1,)
    blocked = sched.blocked()
    assert blocked is not None
    assert blocked.job_id == 2
    room = sched.release(1)
    assert room is not None
    sched.give(room)
    assert sched.next_step().admitted == (2,)


def test_a_full_queue_refuses_and_changes_nothing() -> None:
    sched = scheduler(max_waiting=1)
    sched.add(job(1, 5))
    with pytest.raises(ResourceExhausted, match="queue is full") as refused:
        sched.add(job(2, 5))
    assert refused.value.retry_after_s is not None
    assert [j.job_id for j in sched.waiting] == [1]


def test_a_waiting_job_can_leave() -> None:
    sched = scheduler()
    sched.add(job(1, 5))
    assert sched.release(1) is None
    assert sched.next_step().is_empty


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 40), st.sampled_from([1, 8, 16])),
        min_size=1,
        max_size=12,
    ),
    st.integers(16, 80),
    st.integers(1, 40),
)
def test_every_job_ends_and_room_and_budget_are_never_exceeded(
    jobs: list[tuple[int, int, int]], max_step_tokens: int, decode_prefill_tokens: int
) -> None:
    """Random jobs run to the end: each decodes three tokens, then leaves; all room comes back."""
    sched = scheduler(
        pages=40, max_step_tokens=max_step_tokens, decode_prefill_tokens=decode_prefill_tokens, max_running=4
    )
    for place, (prompt, pages, quantum) in enumerate(jobs):
        sched.add(job(place, prompt, pages, quantum))
    decoded = dict.fromkeys(range(len(jobs)), 0)
    for _ in range(5000):
        step = sched.next_step()
        if step.is_empty:
            break
        assert min(sched.free.pages) >= 0
        quantum = max(j.quantum for j in sched.running.values())
        assert len(step.decodes) + sum(c.count for c in step.prefills) <= max(max_step_tokens, quantum) + 16
        sched.prefilled(step.prefills)
        for job_id in step.decodes:
            decoded[job_id] += 1
            if decoded[job_id] == 3:
                room = sched.release(job_id)
                assert room is not None
                sched.give(room)
    assert set(decoded.values()) == {3}
    assert sched.free == sched.limits.room


@given(st.integers(2, 6))
def test_prompts_of_equal_length_finish_together(count: int) -> None:
    """No prompt waits for another of its size: after any step their progress differs by one chunk at most."""
    sched = scheduler(max_step_tokens=60)
    for place in range(count):
        sched.add(job(place, 200))
    while not sched.next_step().is_empty and all(not j.decoding for j in sched.running.values()):
        run_prefill(sched)
        done = [j.prefilled_tokens for j in sched.running.values()]
        assert max(done) - min(done) <= 60 // count + 1
