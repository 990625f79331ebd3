"""The text of documents that people ask about: UTF-8 files, PDF, and folders of them.

PDF is read by pypdf. A page that holds nothing but a picture has no text, and none is made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from moorage.workers.errors import InvalidRequest

_PDF = b"%PDF-"
_LOOK_BYTES = 1024
"""A PDF may have a few bytes before its mark."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document and its whole text."""

    name: str
    text: str
    skipped: tuple[str, ...] = ()
    """Files of a folder that hold no text."""


def read_document(path: Path) -> Document:
    """The text of a file, or of all files below a folder, each under its name.

    Raises InvalidRequest for what can't be read, is neither text nor PDF, or has no text in it.
    """
    if path.is_dir():
        return _folder(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}; give another file") from None
    return Document(path.name, text_in(data, str(path)))


def text_in(data: bytes, name: str) -> str:
    """The text of a file's content; `name` names it in errors.

    Raises InvalidRequest for what is neither text nor PDF, or has no text in it.
    """
    text = _pdf_text(data, name) if _PDF in data[:_LOOK_BYTES] else _plain_text(data, name)
    if not text.strip():
        raise InvalidRequest(f"{name}: has no text in it; a scanned document must be made readable first")
    return text


def _folder(folder: Path) -> Document:
    parts, skipped = [], []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            parts.append(f"=== {name} ===\n{read_document(path).text}")
        except InvalidRequest:
            skipped.append(name)
    if not parts:
        raise InvalidRequest(f"{folder}: no file in it has text; give a file or another folder")
    return Document(folder.resolve().name, "\n\n".join(parts), tuple(skipped))


def _files(folder: Path) -> Iterator[Path]:
    """The files in the order of their names; hidden files and folders are left out, and links are not followed."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _plain_text(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{name}: is neither PDF nor UTF-8 text ({error.reason}); convert it first"
        ) from None
    if "\0" in text:
        raise InvalidRequest(f"{name}: is neither PDF nor text; convert it first")
    return text


def _pdf_text(data: bytes, name: str) -> str:
    """The text of all pages, a blank line between two."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # It warns of what it mends.
    try:
        reader = PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InvalidRequest(f"{name}: is locked by a password; save a copy without one")
        return "\n\n".join(page.extract_text() for page in reader.pages)
    except DependencyError:
        raise InvalidRequest(f"{name}: is encrypted; save a copy without encryption") from None
    except (
        PyPdfError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise InvalidRequest(f"{name}: is a damaged PDF ({type(error).__name__}); save it anew") from None
