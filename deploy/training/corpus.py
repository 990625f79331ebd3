"""Collect the training text: documentation packages of Debian, downloaded, unpacked and turned into plain text.

    python -m deploy.training.corpus --output FOLDER

Every source is in the public domain or under a permissive licence (see `SOURCES`). The library and the language
reference of Python are left out, since the evaluation hides its facts in them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

CORPUS_FILE = "corpus.jsonl"
HELD_OUT_SHARE = 0.02
"""Documents that no model sees: their perplexity is that of unseen text."""
MIN_DOCUMENT_CHARACTERS = 400
WRAP_COLUMNS = 76


@dataclass(frozen=True, slots=True)
class Source:
    """A Debian package, the licence of its text, and which of its HTML or dictionary files are read."""

    package: str
    licence: str
    patterns: tuple[str, ...]


_PYTHON = "usr/share/doc/python3.11/html"
SOURCES = (
    Source("postgresql-doc-15", "PostgreSQL", ("usr/share/doc/postgresql-doc-15/html/*.html",)),
    Source("sqlite3-doc", "public domain", ("usr/share/doc/sqlite3/**/*.html",)),
    Source(
        "python3.11-doc",
        "PSF-2.0",
        tuple(
            f"{_PYTHON}/{part}/**/*.html"
            for part in ("tutorial", "howto", "faq", "whatsnew", "c-api", "extending")
        ),
    ),
    Source("python-django-doc", "BSD-3-Clause", ("usr/share/doc/python-django-doc/html/**/*.html",)),
    Source("dict-jargon", "public domain", ("usr/share/dictd/jargon.dict.dz",)),
)
_SKIPPED_TAGS = frozenset({"head", "script", "style", "nav", "header", "footer", "form", "button", "svg"})
_SKIPPED_CLASSES = frozenset(
    {
        "navheader", "navfooter", "sphinxsidebar", "related", "footer", "headerlink", "nosearch", "menu",
        "toc", "nav",
    }
)  # fmt: skip
_BLOCKS = frozenset(
    {
        "p", "div", "section", "h1", "h2", "h3", "h4", "h5", "h6", "li", "ul", "ol", "dl", "dt", "dd",
        "pre", "table", "tr", "blockquote", "br", "hr", "body", "article",
    }
)  # fmt: skip
_VOID = frozenset(
    {
        "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track",
        "wbr",
    }
)  # fmt: skip
_GENERATED = re.compile(
    r"genindex|py-modindex|search\.html|contents\.html|bookindex|/doclist|keyword_index|syntax/|_crossref|requirements\.html"
)


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text of one page. `held_out` documents are for evaluation only."""

    package: str
    name: str
    text: str
    held_out: bool


class _PlainText(HTMLParser):
    """Paragraphs of a page, code as it stands, without navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self._open: list[tuple[str, bool]] = []
        """Tags not yet closed, and whether their text is left out."""
        self._line: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self.flush()
        if tag in _VOID:
            return
        classes = (dict(attrs).get("class") or "").split()
        skipped = tag in _SKIPPED_TAGS or not _SKIPPED_CLASSES.isdisjoint(classes)
        self._open.append((tag, skipped or (bool(self._open) and self._open[-1][1])))

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.flush()
        for place in range(len(self._open) - 1, -1, -1):
            if self._open[place][0] == tag:
                del self._open[place:]
                break

    def handle_data(self, data: str) -> None:
        if not self._open or not self._open[-1][1]:
            self._line.append(data)

    def flush(self) -> None:
        """End the paragraph that is being read."""
        text = "".join(self._line)
        self._line.clear()
        if any(tag == "pre" for tag, _ in self._open):
            text = "\n".join(line.rstrip() for line in text.strip("\n").expandtabs().splitlines())
        else:
            text = " ".join(text.split())
        if text.strip():
            self.blocks.append(text)


def plain_text(page: str, *, wrapped: bool) -> str:
    """The text of an HTML page, paragraphs parted by empty lines and, if `wrapped`, cut into lines."""
    parser = _PlainText()
    parser.feed(page)
    parser.flush()
    blocks = parser.blocks
    if wrapped:
        blocks = [block if "\n" in block else textwrap.fill(block, WRAP_COLUMNS) for block in blocks]
    return "\n\n".join(blocks)


def documents(folder: Path) -> Iterator[Document]:
    """All documents of the packages unpacked in `folder`/PACKAGE, in a fixed order."""
    for source in SOURCES:
        root = folder / source.package
        paths = sorted({path for pattern in source.patterns for path in root.glob(pattern)})
        for path in paths:
            name = path.relative_to(root).as_posix()
            for number, text in enumerate(_texts(path, name)):
                if len(text) >= MIN_DOCUMENT_CHARACTERS:
                    key = f"{source.package}/{name}#{number}"
                    yield Document(source.package, key, text, _share(key) < HELD_OUT_SHARE)


def download(folder: Path) -> None:
    """Fetch and unpack the packages that `folder` lacks, with apt-get and dpkg-deb; needs no root."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        if not (folder / source.package).is_dir():
            subprocess.run(["apt-get", "download", "-q", source.package], cwd=folder, check=True)
            archive = next(folder.glob(f"{source.package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive.name, source.package], cwd=folder, check=True)


def read_corpus(folder: Path) -> list[Document]:
    """The documents that `main` wrote into `folder`."""
    with (folder / CORPUS_FILE).open(encoding="utf-8") as lines:
        return [Document(**json.loads(line)) for line in lines]


def collect(folder: Path) -> None:
    """Write the corpus into `folder` and say how much each source gives."""
    download(folder / "packages")
    sizes: dict[str, list[int]] = {source.package: [0, 0] for source in SOURCES}
    with (folder / CORPUS_FILE).open("w", encoding="utf-8") as lines:
        for document in documents(folder / "packages"):
            fields = {name: getattr(document, name) for name in Document.__slots__}
            lines.write(json.dumps(fields, ensure_ascii=False) + "\n")
            sizes[document.package][document.held_out] += len(document.text.encode())
    for source in SOURCES:
        train, held_out = sizes[source.package]
        print(f"{source.package:<20} {source.licence:<14} {train:>10,} bytes  held out {held_out:>8,}")


def main() -> None:
    """Collect without training."""
    parser = argparse.ArgumentParser(description="Collect the text that the reference model is trained on.")
    parser.add_argument("--output", type=Path, required=True, help="folder for packages and corpus.jsonl")
    collect(parser.parse_args().output)


def _texts(path: Path, name: str) -> Iterator[str]:
    if path.suffix == ".dz":
        entries = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        text = "\n".join(line.strip() if line.startswith("     ") else line for line in entries.splitlines())
        yield from (text[start : start + 8000] for start in range(0, len(text), 8000))
    elif not _GENERATED.search(name):
        page = path.read_text(encoding="utf-8", errors="replace")
        yield plain_text(page, wrapped=_share(name + "wrapped") < 0.5)


def _share(name: str) -> float:
    """A number from 0 to 1 that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


if __name__ == "__main__":
    main()
