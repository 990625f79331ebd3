"""The scheduler as a pure state machine: budgets, fairness, reservation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from moorage.runtime.serving.capacity import Resources
from moorage.runtime.serving.scheduled_request import Limits, ScheduledRequest
from moorage.runtime.serving.scheduler import Scheduler
from moorage.runtime.serving.session_cache import IdleSession, StoredKv
from moorage.workers.errors import ResourceExhausted
from moorage.workers.token_ids import TokenIds
from tests.engine_driver import FULL

NOTHING = StoredKv(TokenIds(), 0, FULL)


def scheduler(**changes: int) -> Scheduler:
    values = {
        "pages": 100,
        "slots": 1000,
        "rings": 0,
        "max_step_tokens": 64,
        "decode_prefill_tokens": 16,
        "max_running": 8,
        "max_waiting": 16,
        "reused_tokens": 0,
    } | changes
    resources = Resources((values.pop("pages"),), values.pop("slots"), values.pop("rings"))
    reused = values.pop("reused_tokens")
    return Scheduler(Limits(resources=resources, **values), lambda _request_id, _held: reused)


def request(
    request_id: str,
    prompt_tokens: int,
    pages: int = 1,
    chunk_alignment: int = 1,
    session: str | None = None,
    tenant: str = "",
) -> ScheduledRequest:
    return ScheduledRequest(
        request_id, prompt_tokens, Resources((pages,), 1), chunk_alignment, session, tenant
    )


def hold_idle(sched: Scheduler, name: str, pages: int) -> None:
    """A finished request of session `name` left `pages` of KV."""
    request_id = f"idle {len(sched.idle)}"
    sched.add(request(request_id, 1, pages, session=name))
    run_prefill(sched)
    keep(sched, request_id)


def keep(sched: Scheduler, request_id: str) -> None:
    """Ends a running request whose KV stays, all of it."""
    ended = sched.running[request_id]
    assert ended.session_name is not None
    resources = Resources(ended.reservation.pages, 0)
    sched.keep(
        request_id, IdleSession(ended.session_name, len(sched.idle), NOTHING, resources, ended.first_actor)
    )


def test_a_ring_is_taken_from_an_idle_session_and_not_from_a_running_one() -> None:
    sched = scheduler(rings=2)
    for name in ("a", "b"):
        sched.add(ScheduledRequest(name, 5, Resources((1,), 1, 1), session_name=name))
    run_prefill(sched)
    sched.keep("a", IdleSession("a", 1, NOTHING, Resources((1,), 0, 1)))
    for name in ("c", "d"):
        sched.add(ScheduledRequest(name, 5, Resources((1,), 1, 1)))
    step = sched.next_step()
    assert step.admitted == ("c",)
    assert [held.name for held in step.evicted] == ["a"]
    (wait,) = sched.waits()
    assert (wait.request.request_id, wait.waits_for) == ("d", "device_slots")


def run_prefill(sched: Scheduler) -> dict[str, int]:
    """One step; returns prompt tokens by request."""
    step = sched.next_step()
    sched.prefilled(step.prefills)
    return {chunk.request_id: chunk.count for chunk in step.prefills}


def test_a_prompt_is_cut_into_chunks_of_the_token_budget() -> None:
    sched = scheduler()
    sched.add(request("a", 150))
    assert [run_prefill(sched) for _ in range(3)] == [{"a": 64}, {"a": 64}, {"a": 22}]
    assert sched.next_step().decodes == ("a",)


def test_decodes_come_first_and_limit_the_prompt_tokens_beside_them() -> None:
    sched = scheduler()
    sched.add(request("a", 5))
    run_prefill(sched)
    sched.add(request("b", 150))
    step = sched.next_step()
    assert step.decodes == ("a",)
    assert [(c.request_id, c.count) for c in step.prefills] == [("b", 16)]


def test_two_prompts_share_a_step_and_a_short_one_passes_its_rest_on() -> None:
    sched = scheduler()
    sched.add(request("a", 1000))
    sched.add(request("b", 10))
    assert run_prefill(sched) == {"a": 54, "b": 10}


def test_a_prompt_with_a_large_alignment_is_not_starved_by_others() -> None:
    sched = scheduler(max_step_tokens=24)
    sched.add(request("a", 1000, chunk_alignment=16))
    sched.add(request("b", 1000))
    moved = [run_prefill(sched) for _ in range(4)]
    assert sum(step.get("a", 0) for step in moved) >= 32
    assert sum(step.get("b", 0) for step in moved) >= 24


def test_chunks_end_at_their_alignment_or_at_the_end_of_the_prompt() -> None:
    sched = scheduler(max_step_tokens=50)
    sched.add(request("a", 100, chunk_alignment=16))
    assert [run_prefill(sched)["a"] for _ in range(3)] == [48, 48, 4]


def test_a_continued_prompt_first_goes_to_the_next_boundary() -> None:
    sched = scheduler(max_step_tokens=10, reused_tokens=5)
    hold_idle(sched, "talk", pages=1)
    continued = request("a", 100, chunk_alignment=16, session="talk")
    sched.add(continued)
    assert run_prefill(sched) == {"a": 11}


def test_a_request_without_resources_waits_until_another_leaves() -> None:
    sched = scheduler(pages=10)
    sched.add(request("a", 5, pages=8))
    sched.add(request("b", 5, pages=4))
    assert sched.next_step().admitted == ("a",)
    (wait,) = sched.waits()
    assert (wait.request.request_id, wait.waits_for) == ("b", "memory")
    sched.release("a")
    assert sched.next_step().admitted == ("b",)


def test_a_full_queue_refuses_and_changes_nothing() -> None:
    sched = scheduler(max_waiting=1)
    sched.add(request("a", 5))
    with pytest.raises(ResourceExhausted, match="queue is full"):
        sched.add(request("b", 5))
    assert [j.request_id for j in sched.waiting] == ["a"]


def test_a_tenant_s_queue_is_full_for_this_tenant_alone() -> None:
    sched = scheduler(max_waiting=2)
    for request_id in "ab":
        sched.add(request(request_id, 5, tenant="one"))
    with pytest.raises(ResourceExhausted, match="queue is full"):
        sched.add(request("c", 5, tenant="one"))
    sched.add(request("d", 5, tenant="two"))
    assert [one.request_id for one in sched.waiting] == ["a", "d", "b"]


def test_tenants_take_turns_and_each_keeps_its_order() -> None:
    sched = scheduler(max_running=3)
    for request_id in ("a1", "a2", "a3", "a4", "a5"):
        sched.add(request(request_id, 5, tenant="a"))
    assert sched.next_step().admitted == ("a1", "a2", "a3")
    for request_id in ("b1", "b2", "c1"):
        sched.add(request(request_id, 5, tenant=request_id[0]))
    assert [wait.request.request_id for wait in sched.waits()] == ["b1", "c1", "b2", "a4", "a5"]
    assert [wait.place for wait in sched.waits()] == [0, 1, 2, 3, 4]
    started = []
    for ended in ("a1", "a2", "a3", "b1", "c1"):
        sched.release(ended)
        started += sched.next_step().admitted
    assert started == ["b1", "c1", "a4", "b2", "a5"]


def test_a_tenant_that_waits_for_memory_is_not_passed_by_later_ones() -> None:
    sched = scheduler(pages=10)
    sched.add(request("a1", 5, pages=8, tenant="a"))
    sched.next_step()
    sched.add(request("b1", 5, pages=5, tenant="b"))
    sched.add(request("c1", 5, pages=1, tenant="c"))
    assert sched.next_step().admitted == ()
    sched.release("a1")
    assert sched.next_step().admitted == ("b1", "c1")


def test_a_waiting_request_can_leave() -> None:
    sched = scheduler()
    sched.add(request("a", 5))
    sched.release("a")
    assert not sched.waiting
    assert sched.next_step().is_empty


def test_no_request_passes_one_that_waits_for_resources() -> None:
    sched = scheduler(pages=10)
    for request_id, pages in [("a", 8), ("b", 4), ("c", 1)]:
        sched.add(request(request_id, 5, pages))
    assert sched.next_step().admitted == ("a",)
    assert [(w.request.request_id, w.waits_for) for w in sched.waits()] == [("b", "memory"), ("c", "queue")]
    assert sched.next_step().admitted == ()
    sched.release("a")
    assert sched.next_step().admitted == ("b", "c")


def test_a_request_waits_while_its_session_is_in_use_and_lets_others_pass() -> None:
    sched = scheduler()
    for request_id, session in [("a", "talk"), ("b", "talk"), ("c", None), ("d", "talk")]:
        sched.add(request(request_id, 5, session=session))
    assert sched.next_step().admitted == ("a", "c")
    assert [(w.request.request_id, w.waits_for) for w in sched.waits()] == [
        ("b", "session"),
        ("d", "session"),
    ]
    keep(sched, "a")
    assert sched.next_step().admitted == ("b",)


def test_as_many_run_as_may_and_idle_sessions_do_not_count() -> None:
    sched = scheduler(max_running=2, slots=2)
    for place in range(40):
        hold_idle(sched, f"talk {place}", pages=1)
    assert len(sched.idle) == 40
    for request_id in ("a", "b", "c"):
        sched.add(request(request_id, 5))
    assert sched.next_step().admitted == ("a", "b")
    assert [w.waits_for for w in sched.waits()] == ["running"]


def test_device_slots_are_waited_for_without_evicting_anything() -> None:
    sched = scheduler(pages=10, slots=1)
    hold_idle(sched, "talk", pages=8)
    sched.add(request("a", 5))
    sched.add(request("b", 5, pages=9))
    step = sched.next_step()
    assert (step.admitted, step.evicted) == (("a",), ())
    assert [w.waits_for for w in sched.waits()] == ["device_slots"]


def test_idle_sessions_are_evicted_oldest_first_and_only_as_many_as_help() -> None:
    sched = scheduler(pages=10)
    for name, pages in [("old", 3), ("middle", 3), ("young", 3)]:
        hold_idle(sched, name, pages)
    sched.add(request("a", 5, pages=4))
    assert [held.name for held in sched.next_step().evicted] == ["old"]
    sched.add(request("b", 5, pages=7))
    assert sched.next_step().evicted == ()
    assert [held.name for held in sched.idle] == ["middle", "young"]
    sched.release("a")
    assert [held.name for held in sched.next_step().evicted] == ["middle"]


def test_a_session_that_a_request_waits_for_is_evicted_last() -> None:
    sched = scheduler(pages=10, reused_tokens=1)
    hold_idle(sched, "awaited", 4)
    hold_idle(sched, "young", 4)
    sched.add(request("a", 5, pages=6))
    sched.add(request("b", 5, pages=4, session="awaited"))
    assert [held.name for held in sched.next_step().evicted] == ["young"]


def test_two_sessions_that_grow_beside_a_third_all_end() -> None:
    """Each continues its own 35 % by as much while a third holds 30 %: none of them waits for the other's KV."""
    sched = scheduler(pages=100, reused_tokens=3)
    for name in ("a", "b"):
        hold_idle(sched, name, 35)
    sched.add(request("a", 5, pages=30))
    assert sched.next_step().admitted == ("a",)
    sched.add(request("b", 5, pages=70, session="a"))
    sched.add(request("c", 5, pages=70, session="b"))
    step = sched.next_step()
    assert (step.admitted, [held.name for held in step.evicted]) == (("b",), ["b"])
    assert sched.running["b"].prefilled_tokens == 3
    sched.release("a")
    keep(sched, "b")
    step = sched.next_step()
    assert (step.admitted, [held.name for held in step.evicted]) == (("c",), ["a"])
    assert sched.running["c"].prefilled_tokens == 0


def test_a_session_whose_kv_is_of_no_use_begins_anew() -> None:
    sched = scheduler(pages=10)
    hold_idle(sched, "talk", 8)
    sched.add(request("a", 5, pages=5, session="talk"))
    step = sched.next_step()
    assert [held.name for held in step.evicted] == ["talk"]
    assert sched.running["a"].continues is None
    assert sched.free.pages == (5,)


def test_short_sessions_start_at_the_emptiest_actor() -> None:
    resources = Resources((4, 4, 4), 100)
    sched = Scheduler(Limits(resources, 64, 16, max_running=20, max_waiting=20), lambda *_: 0)
    for request_id in range(12):
        sched.add(ScheduledRequest(str(request_id), 5, Resources((1, 0, 0), 1)))
    assert len(sched.next_step().admitted) == 12
    assert sched.free.pages == (0, 0, 0)
    assert [sched.running[str(request_id)].first_actor for request_id in range(4)] == [0, 1, 2, 0]


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
def test_every_request_ends_and_resources_and_budget_are_never_exceeded(
    requests: list[tuple[int, int, int]], max_step_tokens: int, decode_prefill_tokens: int
) -> None:
    """Random requests run to the end: each decodes three tokens, then leaves; all resources are free again."""
    sched = scheduler(
        pages=40, max_step_tokens=max_step_tokens, decode_prefill_tokens=decode_prefill_tokens, max_running=4
    )
    for place, (prompt, pages, chunk_alignment) in enumerate(requests):
        sched.add(request(str(place), prompt, pages, chunk_alignment))
    decoded = dict.fromkeys(map(str, range(len(requests))), 0)
    for _ in range(5000):
        step = sched.next_step()
        if step.is_empty:
            break
        assert min(sched.free.pages) >= 0
        chunk_alignment = max(j.chunk_alignment for j in sched.running.values())
        assert (
            len(step.decodes) + sum(c.count for c in step.prefills)
            <= max(max_step_tokens, chunk_alignment) + 16
        )
        sched.prefilled(step.prefills)
        for request_id in step.decodes:
            decoded[request_id] += 1
            if decoded[request_id] == 3:
                sched.release(request_id)
    assert set(decoded.values()) == {3}
    assert sched.free == sched.limits.resources


@given(st.integers(2, 6))
def test_prompts_of_equal_length_finish_together(count: int) -> None:
    """No prompt waits for another of its size: after any step their progress differs by one chunk at most."""
    sched = scheduler(max_step_tokens=60)
    for place in range(count):
        sched.add(request(str(place), 200))
    while not sched.next_step().is_empty and all(not j.decoding for j in sched.running.values()):
        run_prefill(sched)
        done = [j.prefilled_tokens for j in sched.running.values()]
        assert max(done) - min(done) <= 60 // count + 1


class Life(RuleBasedStateMachine):
    """Requests of few sessions over few actors come, run, leave KV or not, and go away, in any order."""

    @initialize(
        pages=st.lists(st.integers(4, 12), min_size=1, max_size=3).map(lambda ps: [max(ps)] * len(ps)),
        slots=st.integers(2, 6),
        max_running=st.integers(1, 3),
    )
    def start(self, pages: list[int], slots: int, max_running: int) -> None:
        self.capacity = Resources(tuple(pages), slots)
        limits = Limits(self.capacity, 32, 8, max_running, max_waiting=6)
        self.sched = Scheduler(
            limits, lambda request_id, held: 0 if (int(request_id) + held.session_id) % 5 == 0 else 1
        )
        self.ids = itertools.count(1)
        self.order: list[str] = []
        """Requests in order of arrival, until they are admitted or leave."""

    @rule(
        prompt=st.integers(2, 60),
        blocks=st.integers(1, 12),
        slots=st.integers(1, 2),
        session=st.sampled_from([None, "a", "b", "c"]),
        tenant=st.sampled_from(["", "x", "y"]),
    )
    def arrives(self, prompt: int, blocks: int, slots: int, session: str | None, tenant: str) -> None:
        actors = len(self.capacity.pages)
        need = Resources(tuple((blocks + actors - 1 - actor) // actors for actor in range(actors)), slots)
        new = ScheduledRequest(str(next(self.ids)), prompt, need, chunk_alignment=4, session_name=session)
        new.tenant = tenant
        if not self.capacity.holds(need):  # refused by the capacity
            return
        if sum(one.tenant == tenant for one in self.sched.waiting) == self.sched.limits.max_waiting:
            with pytest.raises(ResourceExhausted):
                self.sched.add(new)
            return
        self.sched.add(new)
        self.order.append(new.request_id)

    @rule()
    def steps(self) -> None:
        busy = {one.session_name for one in self.sched.running.values()} - {None}
        waiting = {one.request_id: one for one in self.sched.waiting}
        idle_run = not self.sched.running
        step = self.sched.next_step()
        assert not (idle_run and waiting and not step.admitted), "nothing runs and something waits"
        for request_id in step.admitted:
            # Whoever of its tenant came earlier and still waits, waits for its session.
            earlier = [waiting[other] for other in self.order[: self.order.index(request_id)]]
            earlier = [other for other in earlier if other.tenant == waiting[request_id].tenant]
            assert all(other.session_name in busy for other in earlier)
            busy |= {waiting[request_id].session_name} - {None}
            self.order.remove(request_id)
        assert bool(self.sched.running) == (not step.is_empty)
        self.sched.prefilled(step.prefills)

    @rule(data=st.data(), kept=st.booleans())
    def ends(self, data: st.DataObject, kept: bool) -> None:
        if not self.sched.running:
            return
        request_id = data.draw(st.sampled_from(sorted(self.sched.running)))
        ended = self.sched.running[request_id]
        if not kept or ended.session_name is None:
            self.sched.release(request_id)
            return
        resources = Resources(tuple(-(-pages // 2) for pages in ended.reservation.pages), 0)
        self.sched.keep(
            request_id,
            IdleSession(ended.session_name, int(request_id), NOTHING, resources, ended.first_actor),
        )

    @rule(data=st.data())
    def leaves_the_queue(self, data: st.DataObject) -> None:
        if self.order:
            request_id = data.draw(st.sampled_from(self.order))
            self.sched.release(request_id)
            self.order.remove(request_id)

    @invariant()
    def all_room_is_accounted_for(self) -> None:
        held = [one.reservation for one in self.sched.running.values()] + [
            each.resources for each in self.sched.idle
        ]
        total = self.sched.free
        for resources in held:
            assert resources is not None
            assert all(pages >= 0 for pages in resources.pages)
            total = total.plus(resources)
        assert total == self.capacity
        idle = [each.resources for each in self.sched.idle]
        if self.sched.idle.resources is not None:
            pages = (sum(each.pages[actor] for each in idle) for actor in range(len(total.pages)))
            assert self.sched.idle.resources.pages == tuple(pages)
        assert self.sched.free.slots >= 0
        assert all(pages >= 0 for pages in self.sched.free.pages)

    @invariant()
    def a_session_is_used_once(self) -> None:
        used = [one.session_name for one in self.sched.running.values() if one.session_name is not None]
        used += [held.name for held in self.sched.idle]
        assert len(used) == len(set(used))
        assert len(self.sched.running) <= self.sched.limits.max_running

    @invariant()
    def every_wait_has_a_cause_that_will_end(self) -> None:
        """A running request, or the next step, ends each wait: nothing waits for another that waits."""
        for wait in self.sched.waits():
            assert wait.waits_for in ("memory", "device_slots", "running", "session", "queue")
            if wait.waits_for != "queue":
                assert self.sched.running

    def teardown(self) -> None:
        """Whatever state was reached, all that waits is served once what runs has ended."""
        for _ in range(200):
            step = self.sched.next_step()
            self.sched.prefilled(step.prefills)
            for request_id in step.decodes:
                self.sched.release(request_id)
        assert not self.sched.waiting
        assert not self.sched.running


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
