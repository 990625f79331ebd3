"""Conversations that have a name: one private JSON file each, since the server keeps only their KV."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moorage.runtime.cluster import registry
from moorage.workers.errors import InvalidRequest

_MOST_NAME_CHARACTERS = 120
"""Most characters of a file's name; a longer name of a conversation is shortened to its hash."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A saved conversation; `turns` is what its `Turns.as_json` gave."""

    name: str
    model: str
    num_questions: int
    saved_s: float
    """Seconds since the epoch."""
    turns: Any


def folder() -> Path:
    """The directory of the files, made for this user alone."""
    path = registry.state_dir() / "chats"
    path.mkdir(exist_ok=True, mode=0o700)
    return path


def save(name: str, model: str, num_questions: int, turns: object) -> None:
    """Writes a conversation over what was saved under its name."""
    value = {
        "session": name,
        "model": model,
        "num_questions": num_questions,
        "saved_s": time.time(),
        "turns": turns,
    }
    write_private(_file(name), value)


def load(name: str) -> Transcript | None:
    """The conversation of that name, or None. Raises InvalidRequest for a file that can't be read."""
    file = _file(name)
    return _read(file) if file.exists() else None


def saved() -> list[Transcript]:
    """All conversations, the latest first; files of other things are left out."""
    found = []
    for file in folder().glob("*.json"):
        try:
            found.append(_read(file))
        except InvalidRequest:
            continue
    return sorted(found, key=lambda transcript: -transcript.saved_s)


def write_private(file: Path, value: object) -> None:
    """Writes JSON that only this user may read, all of it or nothing. Raises OSError."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogatepass") as stream:
        stream.write(text)
    scratch.replace(file)


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises InvalidRequest that names it."""
    try:
        return json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}; give another file") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(
            f"{file}: is no JSON; give a file that /save wrote or a list of messages"
        ) from None


def _read(file: Path) -> Transcript:
    value = read_json(file)
    try:
        return Transcript(
            value["session"],
            value["model"],
            int(value["num_questions"]),
            float(value["saved_s"]),
            value["turns"],
        )
    except (KeyError, TypeError, ValueError):
        raise InvalidRequest(f"{file}: is no conversation of `chat`; remove it or use another name") from None


def _file(name: str) -> Path:
    safe = quote(name, safe="", errors="surrogatepass")
    if len(safe) > _MOST_NAME_CHARACTERS:
        safe = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return folder() / f"{safe}.json"
