"""Documents are read by processes of their own, within limits of time, memory and number."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from moorage.runtime.text import document_process
from moorage.runtime.text.body import Body
from moorage.runtime.text.document_process import DOCUMENT_LIMITS, DocumentReader
from moorage.workers.errors import InvalidRequest, ResourceExhausted
from tests.pdf_files import pdf_of

LONG = pdf_of(*["word " * 200] * 2000)
"""Takes many seconds to read."""


async def test_several_are_read_at_once() -> None:
    reader = DocumentReader()
    with Body(b"first") as one, Body(pdf_of("second")) as other:
        texts = await asyncio.gather(reader.text("a", one), reader.text("b", other), reader.text("c", one))
    assert texts == ["first", "second", "first"]
    assert reader.num_running == 0


async def test_one_that_takes_too_long_is_ended() -> None:
    reader = DocumentReader(replace(DOCUMENT_LIMITS, base_s=1, s_per_mib=0))
    with Body(LONG) as document, pytest.raises(InvalidRequest, match=r"long\.pdf: needs more than 1 s"):
        await reader.text("long.pdf", document)


async def test_one_that_takes_too_much_memory_is_refused() -> None:
    reader = DocumentReader(replace(DOCUMENT_LIMITS, base_bytes=24 << 20, bytes_per_byte=1))
    with (
        Body(b"x" * (40 << 20)) as document,
        pytest.raises(InvalidRequest, match="more than 64 MiB of memory"),
    ):
        await reader.text("large.txt", document)


async def test_cancelling_ends_the_process() -> None:
    reader = DocumentReader()
    with Body(LONG) as document:
        reading = asyncio.create_task(reader.text("long.pdf", document))
        while not reader.num_running:
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert reader.num_running == 0


async def test_more_than_may_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_process, "MAX_WAITING", 1)
    reader = DocumentReader()
    with Body(LONG) as document:
        accepted = [asyncio.create_task(reader.text("long.pdf", document)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="1 documents wait"):
            await reader.text("one more", document)
        for one in accepted:
            one.cancel()
        await asyncio.gather(*accepted, return_exceptions=True)
