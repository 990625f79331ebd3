"""The text process: answers as the tokenizer does, and nothing that a text or a template does outlives its limits."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from moorage.runtime.cluster.os_processes import ProcessId, descendants, wait_gone
from moorage.runtime.text.body import Body
from moorage.runtime.text.limits import JobLimits
from moorage.runtime.text.process import TextProcess
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest, Unavailable

PILOT = Path(__file__).parents[3] / "deploy" / "models" / "moorage-pilot"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@asynccontextmanager
async def started(model_dir: Path = PILOT) -> AsyncIterator[TextProcess]:
    text = TextProcess(model_dir, max_bytes_per_token=32, limits=JobLimits(base_s=1, patience=120))
    await text.start()
    try:
        yield text
    finally:
        await text.close()


def with_template(directory: Path, template: str) -> Path:
    shutil.copy(PILOT / "tokenizer.json", directory)
    (directory / "chat_template.jinja").write_text(template)
    return directory


async def chat(text: TextProcess, *messages: tuple[str, str]) -> list[int]:
    with Body(b"".join(content.encode() for _, content in messages)) as contents:
        layout = [(role, len(content.encode())) for role, content in messages]
        return list(await text.encode_chat(contents, layout))


async def encode(text: TextProcess, content: str, **options: bool) -> list[int]:
    with Body(content.encode("utf-8", "surrogatepass")) as body:
        return list(await text.encode("prompt", body, **options))


@pytest.mark.parametrize("content", ["", "Hello, world! naïve café 日本語 🙂", "word " * 100_000])
async def test_answers_equal_the_tokenizers(content: str) -> None:
    tokenizer = TextTokenizer.load(PILOT)
    async with started() as text:
        for special in (True, False):
            ids = await encode(text, content, add_special_tokens=special)
            assert ids == tokenizer.encode(content, add_special_tokens=special)
        assert await text.decode(ids) == content


async def test_conversations_equal_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.load(with_template(tmp_path, TEMPLATE))
    messages = [("user", "hé"), ("assistant", ""), ("user", "日本 </s>")]
    want = tokenizer.encode_chat([{"role": role, "content": content} for role, content in messages])
    async with started(tmp_path) as text:
        assert await chat(text, *messages) == want


async def test_many_at_once_get_each_their_own() -> None:
    tokenizer = TextTokenizer.load(PILOT)
    contents = [f"number {i} " * (1 + i % 7) for i in range(60)]
    async with started() as text:
        got = await asyncio.gather(*(encode(text, content) for content in contents))
    assert got == [tokenizer.encode(content) for content in contents]


async def test_text_that_is_not_utf8_is_refused() -> None:
    async with started() as text:
        with pytest.raises(InvalidRequest, match=r"prompt: is not valid UTF-8 \(.* at byte 1\)"):
            await encode(text, "a\ud800")
        assert await encode(text, "a")


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROWS = (
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x * 8 %}{% endfor %}{{ ns.x }}"
)
RECURSES = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOPS, "needs more than 1 s of CPU time"),
        (GROWS, r"needs more than \d+ MiB of memory"),
        ("{{ 9 ** (9 ** 9) }}", "needs more than"),
        (RECURSES, "RecursionError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ '{a}'.format() }}", "KeyError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
async def test_a_template_that_fails_is_the_callers_to_know(
    tmp_path: Path, template: str, words: str
) -> None:
    async with started(with_template(tmp_path, template)) as text:
        with pytest.raises(InvalidRequest, match=words) as told:
            await chat(text, ("user", "a"))
        assert "chat_template.jinja" in str(told.value)
        assert "\n" not in str(told.value)
        assert await encode(text, "a")


async def test_a_looping_template_holds_up_no_plain_text(tmp_path: Path) -> None:
    async with started(with_template(tmp_path, LOOPS)) as text:
        loops = [asyncio.create_task(chat(text, ("user", "a"))) for _ in range(8)]
        for _ in range(4):
            assert await encode(text, "a")
        assert not any(loop.done() for loop in loops)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        assert text.pid is not None
        assert wait_gone(descendants(text.pid), 10) == []


async def test_a_tokenizer_whose_expression_explodes_is_refused(tmp_path: Path) -> None:
    tokenizer = json.loads((PILOT / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "^(a|a|aa)+(?=b)$"},
        "behavior": "Isolated",
        "invert": False,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    async with started(tmp_path) as text:
        with pytest.raises(InvalidRequest, match=r"tokenizer\.json: the tokenizer"):
            await encode(text, "a" * 200)
        assert await encode(text, "b")


async def test_it_starts_again_when_it_is_killed() -> None:
    async with started() as text:
        first = text.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            while text.pid in (None, first):
                await asyncio.sleep(0.01)
        assert await encode(text, "a")
    assert text.pid is None


@pytest.mark.parametrize(
    ("patience", "why"),
    [pytest.param(1, "did not answer within 1 s", id="stuck"), pytest.param(60, "is stopped", id="stopped")],
)
async def test_a_process_that_does_not_answer_is_replaced(patience: int, why: str) -> None:
    text = TextProcess(PILOT, 32, JobLimits(base_s=1, patience=patience))
    await text.start()
    first = text.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(Unavailable, match=why):
        await encode(text, "a")
    async with asyncio.timeout(20):
        while text.pid in (None, first):
            await asyncio.sleep(0.01)
    await text.start()
    assert text.pid != first
    await text.close()


async def test_jobs_of_a_killed_process_are_told(tmp_path: Path) -> None:
    async with started(with_template(tmp_path, LOOPS)) as text:
        job = asyncio.create_task(chat(text, ("user", "a")))
        pid = text.pid
        assert pid is not None
        async with asyncio.timeout(20):
            while not descendants(pid):
                await asyncio.sleep(0.01)
        left = descendants(pid)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="text process"):
            await job
        assert wait_gone(left, 10) == []


async def test_the_end_leaves_no_process_and_refuses_more(tmp_path: Path) -> None:
    async with started(with_template(tmp_path, LOOPS)) as text:
        job = asyncio.create_task(chat(text, ("user", "a")))
        await asyncio.sleep(0.1)
        assert text.pid is not None
        own = ProcessId.of(text.pid)
        assert own is not None
        everything = [own, *descendants(own.pid)]
    assert wait_gone(everything, 10) == []
    with pytest.raises(Unavailable, match="stopping"):
        await job
    with pytest.raises(Unavailable, match="stopping"):
        await encode(text, "a")


async def test_a_model_that_can_not_be_read_does_not_start(tmp_path: Path) -> None:
    text = TextProcess(tmp_path, max_bytes_per_token=32)
    with pytest.raises(Unavailable, match="did not start"):
        await text.start()
    await text.close()


async def test_bodies_leave_no_memory_behind() -> None:
    before = psutil.Process().num_fds()
    bodies = [Body(b"a" * 100_000) for _ in range(10)]
    assert all(body.num_bytes == 100_000 for body in bodies)
    for body in bodies:
        body.close()
        body.close()
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize("module", ["torch", "ray", "numba", "numpy", "grpc", "pydantic"])
def test_the_process_is_light(module: str) -> None:
    code = f"import sys, moorage.runtime.text.child; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
