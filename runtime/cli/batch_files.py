"""The files of `runtime generate --batch`: prompts, one JSON object a line, and their answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from moorage.client import GenerateOptions, Prompt
from moorage.runtime.text.quoting import quoted
from moorage.workers.errors import InvalidRequest

_KINDS = ("prompt", "messages", "token_ids")
Id = str | int


@dataclass(frozen=True, slots=True)
class BatchPrompt:
    """A line of the file of prompts."""

    id: Id
    kind: str
    """prompt, messages or token_ids."""
    value: Any
    options: dict[str, Any]
    """Options of this prompt alone, by their names in `moorage.client`."""

    def prompt(self, *, as_message: bool) -> Prompt:
        """What the client sends; `as_message` makes a text a user's message."""
        if self.kind == "prompt" and as_message:
            return [{"role": "user", "content": self.value}]
        prompt: Prompt = self.value
        return prompt


class PromptFile:
    """Prompts by the place of their lines. They are read when they are asked for, since they can be long."""

    def __init__(self, path: Path) -> None:
        """Checks every line. Raises InvalidRequest with the first that is no prompt, or has the id of another."""
        self._path = path
        self._places: dict[Id, tuple[int, int]] = {}
        if not path.is_file():
            raise InvalidRequest(f"{path}: is read twice, so it must be a file and no pipe")
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found = self._parsed(line, number)
                    if found.id in self._places:
                        raise InvalidRequest(
                            f"{path}:{number}: id {quoted(str(found.id))} is that of another line; give each its own"
                        )
                    self._places[found.id] = number, start
                start += len(line)

    @property
    def ids(self) -> tuple[Id, ...]:
        """The ids of all prompts, in the order of the file."""
        return tuple(self._places)

    def read(self, prompt_id: Id) -> BatchPrompt:
        """The prompt of that id."""
        number, start = self._places[prompt_id]
        with self._path.open("rb") as file:
            file.seek(start)
            return self._parsed(file.readline(), number)

    def _parsed(self, line: bytes, number: int) -> BatchPrompt:
        where = f"{self._path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise InvalidRequest(f'{where}: is no JSON object; write {{"id": …, "prompt": "…"}} on a line')
        kinds = [kind for kind in _KINDS if kind in value]
        if len(kinds) != 1:
            raise InvalidRequest(
                f"{where}: needs one of {', '.join(_KINDS)}, and has {len(kinds)} of them; give one"
            )
        (kind,) = kinds
        expected = str if kind == "prompt" else list
        if not isinstance(value[kind], expected):
            raise InvalidRequest(f"{where}: {kind}: must be a {'text' if expected is str else 'list'}")
        prompt_id = value.pop("id", number)
        if isinstance(prompt_id, bool) or not isinstance(prompt_id, str | int):
            raise InvalidRequest(f"{where}: id: must be a text or a whole number")
        content = value.pop(kind)
        unknown = sorted(value.keys() - GenerateOptions.__annotations__.keys())
        if unknown:
            known = ", ".join(GenerateOptions.__annotations__)
            raise InvalidRequest(f"{where}: {quoted(unknown[0])} is no option; there are {known}")
        return BatchPrompt(prompt_id, kind, content, value)


class AnswerFile:
    """Answers as they come, one JSON object a line. What an earlier run answered stays; its errors are dropped."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or goes on with it. Raises InvalidRequest for a file of other things."""
        kept = self._kept(path) if path.exists() else {}
        self.answered: frozenset[Id] = frozenset(kept)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(b"".join(kept.values()))
        scratch.replace(path)
        self._file: IO[bytes] = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, answer: Mapping[str, Any]) -> None:
        """Writes one line, which stays when this process is killed."""
        self._file.write(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()

    @staticmethod
    def _kept(path: Path) -> dict[Id, bytes]:
        lines: Sequence[bytes] = path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines = lines[:-1]  # An interrupted run wrote a part of it.
        kept = {}
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line)
                prompt_id, failed = value["id"], "error" in value
            except (ValueError, TypeError, KeyError, RecursionError):
                raise InvalidRequest(
                    f"{path}:{number}: is no answer of a batch; give --output another name"
                ) from None
            if not failed:
                kept[prompt_id] = line
        return kept
