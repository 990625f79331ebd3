"""Limits of an API key: what its requests may take together, and when a refused one may come again."""

from __future__ import annotations

import pytest

from moorage.runtime.serving.protocol import GenerateParams, ScoreParams
from moorage.runtime.serving.tenant_limits import TenantLimits
from moorage.runtime.serving.tenant_use import TenantUse
from moorage.workers.errors import InvalidRequest, ResourceExhausted
from tests.counting_executor import LAYOUT, running


def asked(limits: TenantLimits, *, prompt: int = 10, new: int = 4, tenant: str = "one") -> GenerateParams:
    return GenerateParams([1] * prompt, max_new_tokens=new, tenant=tenant, limits=limits)


async def test_only_so_many_requests_of_a_key_are_under_way() -> None:
    limits = TenantLimits(max_parallel_requests=2)
    async with running() as (coordinator, _):
        streams = [coordinator.generate(asked(limits)) for _ in range(2)]
        with pytest.raises(ResourceExhausted, match="2 requests of the API key run or wait") as refused:
            coordinator.score(ScoreParams([1, 2], tenant="one", limits=limits))
        assert refused.value.retry_after_s
        other = coordinator.generate(asked(limits, tenant="other"))
        for stream in (*streams, other):
            async for _event in stream:
                pass
        async for _event in coordinator.generate(asked(limits)):
            pass


async def test_what_a_key_may_not_ask_is_known_before_a_prompt() -> None:
    for limits in (TenantLimits(max_parallel_requests=1), TenantLimits(tokens_per_minute=10)):
        async with running() as (coordinator, _):
            coordinator.check_load("one", limits)
            stream = coordinator.generate(asked(limits))
            with pytest.raises(ResourceExhausted, match="API key") as early:
                coordinator.check_load("one", limits)
            with pytest.raises(ResourceExhausted) as late:
                coordinator.generate(asked(limits))
            assert str(early.value) == str(late.value)
            coordinator.check_load("other", limits)
            await stream.aclose()


async def test_requests_of_a_key_hold_only_so_much_memory() -> None:
    page = LAYOUT.page_bytes * LAYOUT.num_blocks(14)
    limits = TenantLimits(max_kv_bytes=2 * page)
    async with running() as (coordinator, _):
        with pytest.raises(InvalidRequest, match="shorter prompt"):
            coordinator.generate(asked(limits, prompt=60))
        streams = [coordinator.generate(asked(limits)) for _ in range(2)]
        with pytest.raises(ResourceExhausted, match="requests of the API key hold"):
            coordinator.generate(asked(limits))
        for stream in streams:
            async for _event in stream:
                pass
        await coordinator.generate(asked(limits)).aclose()


async def test_a_key_reads_and_generates_only_so_many_tokens_in_a_minute() -> None:
    limits, now_s = TenantLimits(tokens_per_minute=20), 100.0
    async with running() as (coordinator, _):
        requests = {}
        use = TenantUse(requests, lambda: now_s)

        def ask(arrived_s: float, *token_s: float, cached: int = 0, name: str) -> None:
            request = coordinator._request(asked(limits))  # a request as it lies in the queue
            request.request_id, request.arrived_s, request.cached_tokens = name, arrived_s, cached
            use.check(request, limits)
            request.token_s = list(token_s)
            requests[name] = request

        ask(100.0, 101.0, 102.0, name="first")  # 10 tokens of its prompt, and 2
        now_s = 110.0
        ask(110.0, 115.0, 120.0, cached=8, name="second")  # 2 of its prompt, and 2
        now_s = 120.0
        ask(120.0, name="third")  # 16 tokens are used before it, and 26 afterwards
        now_s = 130.0
        with pytest.raises(ResourceExhausted, match="used 26 tokens in the last minute, and 20") as refused:
            ask(130.0, name="fourth")
        # The ten tokens of the first prompt are a minute old at 160.
        assert refused.value.retry_after_s == pytest.approx(30.0, abs=1.0)
        now_s = 161.0
        ask(161.0, name="fourth")
