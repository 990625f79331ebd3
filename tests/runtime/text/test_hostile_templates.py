"""Hostile chat templates: each ends within its limits, with one line, while tokens of another client flow."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from moorage.client import AsyncClient, Token
from moorage.runtime.text.limits import JobLimits
from moorage.runtime.text.process import TextProcess
from moorage.workers.errors import InvalidRequest, Unavailable
from tests.runtime.text.hostile_templates import OUT_OF_THE_SANDBOX, WITHOUT_BOUND, WITHOUT_END, WRONG
from tests.runtime.text.test_process import chat, with_template
from tests.toy_engine import ToyEngine
from tests.toy_server import toy_server


def test_an_ordinary_job_may_take_two_seconds() -> None:
    assert JobLimits().cpu_s(0) == 2


async def outcome_of(directory: Path, template: str) -> str:
    """What a client is told, or what was rendered. A server with some of the wrong ones does not start."""
    directory.mkdir()
    text = TextProcess(with_template(directory, template), max_bytes_per_token=32)
    try:
        await text.start()
        token_ids = await chat(text, ("user", "a"))
    except (InvalidRequest, Unavailable) as error:
        return str(error)
    finally:
        await text.close()
    return "rendered" if len(token_ids) > 1 else "rendered nothing"


@pytest.mark.slow
async def test_each_is_ended_while_other_tokens_flow(tmp_path: Path) -> None:
    told: dict[str, str] = {}
    seconds: dict[str, float] = {}
    with toy_server(engine=ToyEngine(step_s=0.001)) as server:
        async with AsyncClient(server.address) as client:
            tokens = 0

            async def flow() -> None:
                nonlocal tokens
                options = {"max_new_tokens": 1_000_000, "session": "endless"}
                async with client.generate([65], **options) as stream:  # type: ignore[arg-type]
                    async for event in stream:
                        tokens += isinstance(event, Token)

            flowing = asyncio.create_task(flow())
            templates = {**WITHOUT_END, **WITHOUT_BOUND, **OUT_OF_THE_SANDBOX, **WRONG}
            for number, (name, template) in enumerate(templates.items()):
                before, used = tokens, _cpu_s()
                told[name] = await outcome_of(tmp_path / str(number), template)
                seconds[name] = _cpu_s() - used
                assert tokens > before, name
            flowing.cancel()
    for name, line in told.items():
        print(f"{seconds[name]:5.1f} s  {name}: {line[:100]}")
    assert all("\n" not in line for line in told.values())
    ended = [name for name in (*WITHOUT_END, *WITHOUT_BOUND) if "needs more than" in told[name]]
    assert len(ended) > 30
    assert {name for name in templates if "did not start" in told[name]} <= set(WRONG)
    rendered = {name for name in templates if told[name].startswith("rendered")}
    assert rendered <= set(OUT_OF_THE_SANDBOX), rendered
    assert {told[name] for name in rendered} <= {"rendered nothing"}, "what is not there is empty"


def _cpu_s() -> float:
    """CPU seconds of processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
