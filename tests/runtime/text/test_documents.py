"""The text of documents, and one line for each that has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.text.documents import read_document
from moorage.workers.errors import InvalidRequest
from tests.pdf_files import pdf_of


def test_text_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "note.md"
    file.write_bytes("\ufeffZwei\nZeilen é".encode())
    document = read_document(file)
    assert (document.name, document.text) == ("note.md", "Zwei\nZeilen é")


def test_pages_of_a_pdf_follow_one_another(tmp_path: Path) -> None:
    file = tmp_path / "report.pdf"
    file.write_bytes(pdf_of("The pass key is 48213.", "It ends (here)."))
    assert read_document(file).text.split("\n\n") == ["The pass key is 48213.", "It ends (here)."]


def test_a_folder_is_its_files_under_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "deep.txt").write_text("deep")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.pdf").write_bytes(pdf_of("third"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "link").symlink_to("/etc/hostname")
    document = read_document(tmp_path)
    assert document.text == "=== a.txt ===\nfirst\n\n=== b/deep.txt ===\ndeep\n\n=== c.pdf ===\nthird"
    assert document.skipped == ("picture.png",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no text"),
        (b" \n", "has no text"),
        (b"\xff\xfe\x00", "neither PDF nor UTF-8 text"),
        (b"a\x00b", "neither PDF nor text"),
        (b"%PDF-1.4\nnonsense", "damaged PDF"),
        (pdf_of("whole")[:200], "damaged PDF"),
        (pdf_of(""), "has no text"),
    ],
)
def test_what_has_no_text_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=message) as raised:
        read_document(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        read_document(tmp_path / "none.pdf")
    with pytest.raises(InvalidRequest, match="no file in it has text"):
        read_document(tmp_path)
