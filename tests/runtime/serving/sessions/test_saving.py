"""Sessions outlive the server: saved by one coordinator, loaded by the next, over real stores and a real model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moorage.runtime.serving.coordinator import Coordinator
from moorage.runtime.serving.protocol import Finished
from moorage.workers.errors import FailedPrecondition, InvalidRequest, NotFound, ResourceExhausted
from tests.counting_executor import collect, token_ids
from tests.runtime.serving.sessions.conftest import Serving

DOCUMENT = [(7 * place) % 1000 for place in range(600)]


async def ask(coordinator: Coordinator, prompt: list[int], session: str | None) -> tuple[list[int], int]:
    """Greedy tokens, and how many of the prompt's were cached."""
    events = await collect(coordinator, prompt=prompt, max_new_tokens=6, session=session, ignore_eos=True)
    assert isinstance(events[-1], Finished)
    return token_ids(events), events[-1].usage.cached_tokens


async def test_after_a_restart_a_session_goes_on_with_the_same_tokens(serving: Serving) -> None:
    question = [*DOCUMENT, 5, 6, 7]
    async with serving() as before:
        await ask(before, DOCUMENT, "talk")
        saved = await before.sessions.save("talk")
        assert (saved.state, saved.saved_bytes > 0) == ("idle", True)
        want, cached = await ask(before, question, "talk")
        assert cached > 0
    async with serving() as after:
        (found,) = await after.sessions.list()
        assert (found.name, found.state, found.dram_bytes, found.num_tokens) == ("talk", "saved", 0, 605)
        loaded = await after.sessions.load("talk")
        assert (loaded.state, loaded.num_tokens, loaded.saved_bytes) == ("idle", 605, saved.saved_bytes)
        assert await ask(after, question, "talk") == (want, cached)
        await after.sessions.delete("talk")
        assert await after.sessions.list() == ()
    async with serving() as last:
        assert await last.sessions.list() == ()


async def test_a_loaded_session_serves_prompts_without_its_name_and_can_be_forked(serving: Serving) -> None:
    question = [*DOCUMENT, 8, 9]
    async with serving() as before:
        want, _ = await ask(before, question, "talk")
        await before.sessions.save("talk")
    async with serving() as after:
        await after.sessions.load("talk")
        await after.sessions.fork("talk", "branch")
        for session in (None, "branch", "talk"):
            tokens, cached = await ask(after, question, session)
            assert tokens == want
            assert cached >= 512


async def test_work_goes_on_while_a_session_is_saved(serving: Serving) -> None:
    async with serving() as coordinator:
        await ask(coordinator, DOCUMENT, "talk")
        saving = asyncio.create_task(coordinator.sessions.save("talk"))
        answers = await asyncio.gather(
            *(ask(coordinator, [*DOCUMENT[:100], n], f"new {n}") for n in range(3))
        )
        again = await ask(coordinator, [*DOCUMENT, 1], "talk")
        await saving
        assert len(answers) == 3
        assert again[1] > 0
        held = sum(info.dram_bytes - info.shared_bytes for info in await coordinator.sessions.list())
        for info in await coordinator.sessions.list():
            await coordinator.sessions.delete(info.name)
        status = await coordinator.status()
        assert held > 0
        assert status.idle_sessions == 0, "the save holds nothing any longer"


async def test_damaged_files_are_refused_and_take_no_memory(serving: Serving, tmp_path: Path) -> None:
    async with serving() as coordinator:
        await ask(coordinator, DOCUMENT, "talk")
        await coordinator.sessions.save("talk")
    (file,) = (tmp_path / "saved").glob("*/blocks-1.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    async with serving() as coordinator:
        with pytest.raises(InvalidRequest, match=r"blocks-1\.safetensors: checksum"):
            await coordinator.sessions.load("talk")
        assert [info.state for info in await coordinator.sessions.list()] == ["saved"]
        assert (await ask(coordinator, DOCUMENT, "talk"))[1] == 0
        assert (await coordinator.status()).idle_sessions == 1


async def test_another_store_refuses_a_session_with_the_field(serving: Serving) -> None:
    async with serving() as coordinator:
        await ask(coordinator, DOCUMENT, "talk")
        await coordinator.sessions.save("talk")
    async with serving("kv_store.actors=1") as coordinator:
        with pytest.raises(InvalidRequest, match="actors is 2 in its manifest and 1 here"):
            await coordinator.sessions.load("talk")
    async with serving("model.weights=int8") as coordinator:
        with pytest.raises(InvalidRequest, match="of another model: fingerprint"):
            await coordinator.sessions.load("talk")


async def test_refusals_say_what_is_missing(serving: Serving) -> None:
    async with serving("sessions.max_bytes=1KiB") as coordinator:
        await ask(coordinator, DOCUMENT, "talk")
        await ask(coordinator, [1, 2, 3], "short")
        with pytest.raises(NotFound, match="'absent'"):
            await coordinator.sessions.save("absent")
        with pytest.raises(NotFound, match="'absent' was not saved"):
            await coordinator.sessions.load("absent")
        with pytest.raises(FailedPrecondition, match="is in memory already"):
            await coordinator.sessions.load("talk")
        with pytest.raises(FailedPrecondition, match="no full block of 32 tokens"):
            await coordinator.sessions.save("short")
        with pytest.raises(ResourceExhausted, match=r"sessions\.max_bytes"):
            await coordinator.sessions.save("talk")
        assert [info.saved_bytes for info in await coordinator.sessions.list()] == [0, 0]
        assert (await coordinator.status()).idle_sessions == 2


async def test_a_request_that_names_a_saved_session_loads_it(serving: Serving, tmp_path: Path) -> None:
    question = [*DOCUMENT, 5, 6, 7]
    async with serving() as before:
        want, _ = await ask(before, question, "talk")
        await before.sessions.save("talk")
    async with serving() as after:
        await asyncio.gather(*(after.sessions.wake("talk") for _ in range(3)), after.sessions.wake("absent"))
        assert [info.state for info in await after.sessions.list()] == ["idle"]
        tokens, cached = await ask(after, question, "talk")
        assert tokens == want
        assert cached >= 512
    for file in (tmp_path / "saved").glob("*/blocks-0.safetensors"):
        file.write_bytes(b"")
    async with serving() as last:
        await last.sessions.wake("talk")
        assert await ask(last, question, "talk") == (want, 0), "what can't be loaded is read anew"


async def test_sessions_are_saved_by_themselves_once_they_were_idle(serving: Serving) -> None:
    async with serving("sessions.save_after=0.05") as coordinator:
        await ask(coordinator, DOCUMENT, "talk")
        await ask(coordinator, [1, 2, 3], "short")
        await ask(coordinator, DOCUMENT, None)

        async def saved() -> dict[str, int]:
            return {info.name: info.saved_bytes for info in await coordinator.sessions.list()}

        async with asyncio.timeout(20):
            while not (await saved())["talk"]:
                await asyncio.sleep(0.01)
        assert (await saved())["short"] == 0
        await ask(coordinator, [*DOCUMENT, *DOCUMENT[:80], 1], "talk")
        first = (await saved())["talk"]
        async with asyncio.timeout(20):
            while (await saved())["talk"] == first:
                await asyncio.sleep(0.01)
        assert (await saved()).keys() == {"talk", "short"}


async def test_what_is_not_saved_yet_is_saved_when_the_server_stops(serving: Serving) -> None:
    async with serving("sessions.save_after=1h") as before:
        await ask(before, DOCUMENT, "talk")
        await ask(before, [1, 2, 3], "short")
        assert [info.saved_bytes for info in await before.sessions.list()] == [0, 0]
    async with serving("sessions.save_after=1h") as after:
        assert [(info.name, info.state) for info in await after.sessions.list()] == [("talk", "saved")]
    async with serving() as without:
        await ask(without, DOCUMENT, "other")
    async with serving() as last:
        assert [info.name for info in await last.sessions.list()] == ["talk"]


async def test_a_session_that_is_deleted_while_it_is_saved_stays_deleted(
    serving: Serving, tmp_path: Path
) -> None:
    async with serving() as coordinator:
        await ask(coordinator, DOCUMENT, "talk")
        saving = asyncio.create_task(coordinator.sessions.save("talk"))
        await asyncio.sleep(0)
        await coordinator.sessions.delete("talk")
        with pytest.raises((FailedPrecondition, NotFound)):
            await saving
        assert await coordinator.sessions.list() == ()
    assert list((tmp_path / "saved").iterdir()) == []


async def test_a_load_evicts_what_is_longest_unused_and_nothing_that_is_pinned(serving: Serving) -> None:
    async with serving() as before:
        await ask(before, DOCUMENT, "talk")
        await before.sessions.save("talk")
    async with serving("kv_store.dram=4MiB") as after:
        for number, name in enumerate("abc"):
            await ask(after, [(number + 11 * place) % 999 for place in range(600)], name)
            await after.sessions.pin(name)
        with pytest.raises(ResourceExhausted, match="leave no memory for the saved session"):
            await after.sessions.load("talk")
        await after.sessions.pin("a", False)
        await after.sessions.pin("b", False)
        await after.sessions.load("talk")
        assert [info.name for info in await after.sessions.list()] == ["b", "c", "talk"]
