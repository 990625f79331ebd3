"""Plain text of pages, and which documents are held out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from deploy.training.corpus import CORPUS_FILE, SOURCES, documents, plain_text, read_corpus
from deploy.training.prepare import Prepared, common_words, load_prepared, save_prepared

PAGE = """<html><head><title>Not this</title><style>p {}</style></head><body>
<div class="navheader">Prev <a>Up</a> Next</div>
<h1>Chairs<a class="headerlink">¶</a></h1>
<p>A chair &amp; a table,
  with <b>four</b> legs.<br>Each.</p>
<pre>def sit():
    return 1

sit()</pre>
<ul><li>One</li><li>Two <p>more</p></li></ul>
<script>ignored()</script><div class="footer">Copyright</div></body></html>"""


def test_paragraphs_and_code_of_a_page() -> None:
    expected = ["Chairs", "A chair & a table, with four legs.", "Each.", "def sit():\n    return 1\n\nsit()"]
    assert plain_text(PAGE, wrapped=False) == "\n\n".join([*expected, "One", "Two", "more"])


def test_wrapping_leaves_code_alone() -> None:
    line = "word " * 60
    text = plain_text(f"<p>{line}</p><pre>{line}\n</pre>", wrapped=True)
    paragraph, code = text.split("\n\n")
    assert max(map(len, paragraph.splitlines())) <= 76
    assert paragraph.split() == line.split() == code.split()


@pytest.mark.parametrize("page", ["", "<p></p>", "<br>", "<nav>only</nav>", "</p></div>"])
def test_pages_without_text(page: str) -> None:
    assert plain_text(page, wrapped=True) == ""


def test_documents_of_unpacked_packages(tmp_path: Path) -> None:
    page = tmp_path / "postgresql-doc-15/usr/share/doc/postgresql-doc-15/html"
    page.mkdir(parents=True)
    for number in range(200):
        (page / f"p{number}.html").write_text(f"<p>{number} {'text ' * 100}</p>", encoding="utf-8")
    (page / "short.html").write_text("<p>too little</p>", encoding="utf-8")
    (page / "bookindex.html").write_text(f"<p>{'index ' * 100}</p>", encoding="utf-8")
    jargon = tmp_path / "dict-jargon/usr/share/dictd"
    jargon.mkdir(parents=True)
    (jargon / "jargon.dict.dz").write_bytes(gzip.compress(b"hack\n     a quick job\n" * 800))
    found = list(documents(tmp_path))
    assert found == list(documents(tmp_path))
    pages = [document for document in found if document.package == "postgresql-doc-15"]
    assert len(pages) == 200
    assert 0 < sum(document.held_out for document in pages) < 20
    assert [len(document.text) for document in found[200:]][:-1] == [8000]
    assert found[200].text.startswith("hack\na quick job\n")


def test_sources_name_their_licence() -> None:
    assert {source.licence for source in SOURCES} <= {
        "PostgreSQL",
        "PSF-2.0",
        "BSD-3-Clause",
        "public domain",
    }


def test_read_corpus_reads_lines(tmp_path: Path) -> None:
    fields = {"package": "p", "name": "n", "text": "déjà\nvu", "held_out": True}
    (tmp_path / CORPUS_FILE).write_text(json.dumps(fields) + "\n", encoding="utf-8")
    (document,) = read_corpus(tmp_path)
    assert (document.text, document.held_out) == ("déjà\nvu", True)


def test_held_out_text_is_apart(prepared: Prepared) -> None:
    held_out = prepared.tokenizer.decode(prepared.held_out.ids[:200].tolist())
    assert held_out[:150] not in prepared.tokenizer.decode(prepared.train.ids.tolist())


def test_starts_are_where_words_begin(prepared: Prepared) -> None:
    first = prepared.train.ids[prepared.train.starts[:500]].tolist()
    assert {(prepared.tokenizer.id_to_token(token) or "?")[0] for token in first} <= {"Ġ", "Ċ"}


def test_prepared_text_survives_its_files(prepared: Prepared, tmp_path: Path) -> None:
    save_prepared(prepared, tmp_path)
    again = load_prepared(tmp_path)
    assert np.array_equal(again.train.ids, prepared.train.ids)
    assert np.array_equal(again.held_out.starts, prepared.held_out.starts)
    assert again.words == prepared.words
    assert again.tokenizer.to_str() == prepared.tokenizer.to_str()


def test_common_words_are_plain_and_common() -> None:
    texts = ["a lamp and Table of rel.name x_y lamps"] * 8 + ["rare"]
    assert common_words(texts) == ("and", "lamp", "lamps")
