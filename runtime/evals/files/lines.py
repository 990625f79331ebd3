"""Entries of data files, with errors that name the file, the line and the field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from moorage.workers.errors import InvalidRequest

SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Line:
    """One entry; `where` is FILE:LINE, or FILE: entry N of a JSON list."""

    where: str
    fields: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """The first of the named fields that there is, as text."""
        name = next((name for name in names if name in self.fields), None)
        if name is None:
            self.fail(names[0], "is missing")
        value = self.fields[name]
        if not isinstance(value, str):
            self.fail(name, f"should be text, not {_kind(value)}")
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """A text, a number, or a list of them, as texts; at least one."""
        name = next((name for name in names if name in self.fields), None)
        if name is None:
            self.fail(names[0], "is missing")
        value = self.fields[name]
        values = value if isinstance(value, list) else [value]
        if not values:
            self.fail(name, "is an empty list")
        for item in values:
            if isinstance(item, bool) or not isinstance(item, str | int | float):
                self.fail(name, f"should hold texts or numbers, not {_kind(item)}")
        return tuple(item if isinstance(item, str) else repr(item) for item in values)

    def numbers(self, name: str) -> tuple[str, ...]:
        """Like `texts`, each of them a number; a list in a list is taken for its inner one."""
        value = self.fields.get(name)
        inner = (
            value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value
        )
        texts = Line(self.where, {name: inner} if name in self.fields else {}).texts(name)
        for text in texts:
            try:
                float(text)
            except ValueError:
                self.fail(name, f"should be a number, not {text[:30]!r}")
        return texts

    def integers(self, name: str) -> tuple[str, ...]:
        """Like `numbers`, each of them whole."""
        texts = self.numbers(name)
        for text in texts:
            if not text.strip().lstrip("-").isdecimal():
                self.fail(name, f"should be a whole number, not {text[:30]!r}")
        return texts

    def fail(self, field: str, what: str) -> NoReturn:
        """Raises InvalidRequest about one field."""
        raise InvalidRequest(f"{self.where}: {field}: {what}; is it a file of this task?")


def read_lines(path: Path) -> Iterator[Line]:
    """Entries of a JSONL file, or of a JSON file that is one list. Raises InvalidRequest for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidRequest(f"{path}: no such file; download the data first and give its path") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: not UTF-8 text at byte {error.start}; download it again") from None
    except OSError as error:
        raise InvalidRequest(f"{path}: can't be read ({error.strerror}); give a JSONL file") from None
    if path.suffix == ".json" and text.lstrip().startswith("["):
        yield from _entries(path, text)
        return
    found = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            found = True
            yield _entry(f"{path}:{number}", _parsed(f"{path}:{number}", line))
    if not found:
        raise InvalidRequest(f"{path}: is empty; download it again")


def find_files(paths: list[str], known: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(task, file) of each path: a file named after its task, `TASK=FILE`, or a folder of such files.

    Raises InvalidRequest when a file's task is not known or a folder has none.
    """
    found: list[tuple[str, Path]] = []
    for text in paths:
        name, equals, rest = text.partition("=")
        path = Path(rest if equals else text)
        if not equals and path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.stem in known)
            if not files:
                raise InvalidRequest(f"{path}: no data in it; it should hold files such as {known[0]}.jsonl")
            found += [(file.stem, file) for file in files]
            continue
        task = name if equals else path.stem
        if task not in known:
            raise InvalidRequest(
                f"{text}: {task} is no task here; write TASK=FILE, TASK one of {', '.join(known)}"
            )
        found.append((task, path))
    names = [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"{twice}: given by two files; run them one after the other")
    return found


def _entries(path: Path, text: str) -> Iterator[Line]:
    entries = _parsed(str(path), text)
    for number, entry in enumerate(entries, 1):
        yield _entry(f"{path}: entry {number}", entry)


def _entry(where: str, value: Any) -> Line:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: should be a JSON object, not {_kind(value)}")
    return Line(where, value)


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{where}:{error.lineno}" if error.lineno > 1 else where
        raise InvalidRequest(
            f"{at}: is not JSON ({error.msg} at column {error.colno}); download it again"
        ) from None


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "null" if value is None else "an object")
