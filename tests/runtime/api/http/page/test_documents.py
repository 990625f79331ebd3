"""POST /v1/documents: the text of files, good ones and hostile ones."""

from __future__ import annotations

import asyncio
import zlib
from contextlib import suppress

import pytest

from moorage.runtime.api.http.page import documents
from tests.pdf_files import pdf_of
from tests.runtime.api.http.conftest import Http

PDF = {"content-type": "application/pdf"}
ANY = {"content-type": "application/octet-stream"}


@pytest.fixture(autouse=True)
def patient(http: Http) -> None:
    """A process that reads a document may take long to start where the machine is busy."""
    http.client.timeout = 60


def pdf_of_one_stream(stream: bytes, more: str = "") -> bytes:
    """A PDF whose one page has this content, as it is."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>",
        b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(stream), more.encode(), stream),
    ]
    body = b"%PDF-1.4\n"
    for number, content in enumerate(objects, start=1):
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    return body + b"trailer\n<< /Size 5 /Root 1 0 R >>\n%%EOF\n"


def pages_within_themselves() -> bytes:
    """A PDF whose list of pages contains itself."""
    objects = b"1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n"
    objects += b"2 0 obj\n<< /Type /Pages /Kids [2 0 R] /Count 1 >>\nendobj\n"
    return b"%PDF-1.4\n" + objects + b"trailer\n<< /Size 3 /Root 1 0 R >>\n%%EOF\n"


async def test_the_text_of_a_pdf_comes_back_under_its_name(http: Http) -> None:
    file = pdf_of("The pass key is 48213.", "It ends here.")
    answer = await http.client.post(
        "/v1/documents", params={"name": "über\nuns.pdf"}, content=file, headers=PDF
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "object": "document",
        "name": "über uns.pdf",
        "bytes": len(file),
        "text": "The pass key is 48213.\n\nIt ends here.",
    }


async def test_text_is_taken_too(http: Http) -> None:
    answer = await http.client.post(
        "/v1/documents", content="Zwei é".encode(), headers={"content-type": "text/plain"}
    )
    assert (answer.json()["name"], answer.json()["text"]) == ("document", "Zwei é")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe\x00", "neither PDF nor UTF-8 text"),
        (b"%PDF-1.7\n" + b"\x00" * 500, "a.pdf: "),
        (pdf_of("whole")[:200], "a.pdf: "),
        (pages_within_themselves(), "a.pdf: "),
        (pdf_of_one_stream(b"not deflated", "/Filter /FlateDecode"), "a.pdf: "),
        (pdf_of_one_stream(b"[" * 100_000), "a.pdf: "),
        (pdf_of_one_stream(zlib.compress(b" " * (600 << 20), 9), "/Filter /FlateDecode"), "a.pdf: "),
    ],
    ids=["binary", "zeros", "cut", "endless pages", "no deflate", "deep", "bomb"],
)
async def test_hostile_files_are_refused_in_one_line(http: Http, content: bytes, reason: str) -> None:
    answer = await http.client.post(
        "/v1/documents", params={"name": "a.pdf"}, content=content, headers=PDF, timeout=60
    )
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert reason in message
    assert "\n" not in message
    assert (await http.client.get("/health")).status_code == 200


async def test_what_is_no_file_is_refused(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = http.client.post
    form = await sent("/v1/documents", files={"file": b"text"})
    assert (form.status_code, "content-type: multipart/form-data" in form.text) == (415, True)
    empty = await sent("/v1/documents", content=b"", headers=ANY)
    assert (empty.status_code, "body: is empty" in empty.text) == (400, True)
    named = await sent("/v1/documents", params={"name": "n" * 300}, content=b"x", headers=ANY)
    assert (named.status_code, "name: has more than 200" in named.text) == (400, True)
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 10)
    large = await sent("/v1/documents", content=b"x" * 11, headers=ANY)
    assert (large.status_code, "the most that a document may have" in large.text) == (413, True)


async def test_a_client_that_leaves_ends_the_work(http: Http) -> None:
    reader = http.server._service.documents
    with suppress(TimeoutError):
        async with asyncio.timeout(0.4):
            await http.client.post("/v1/documents", content=pdf_of(*["page"] * 3000), headers=PDF)
    async with asyncio.timeout(10):
        while reader.num_running:
            await asyncio.sleep(0.02)
    answer = await http.client.post("/v1/documents", content=b"text", headers=ANY)
    assert answer.json()["text"] == "text"
