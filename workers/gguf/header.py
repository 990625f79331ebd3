"""The headers of GGUF files, parsed by a process of their own under limits of memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.limits import ANSWER_BYTES, CPU_S, MEMORY_BYTES, MOST_ELEMENTS, WALL_S
from moorage.workers.safetensors_header import TensorHeader

_FEW = 4096
"""Elements of the longest array that is read with the other values; layers have one each, a vocabulary many."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the weights of one file."""

    file: Path
    values: Mapping[str, Any]
    """Value by key."""
    lengths: Mapping[str, int]
    """Elements of the arrays that are too long to stand in `values`."""
    tensors: tuple[TensorHeader, ...]
    """The tensors in the order of their bytes; `dtype` is a name of `types.py`."""


def read_headers(files: Sequence[Path]) -> list[GgufHeader]:
    """The headers of `files`, without long arrays. Raises InvalidModel, in one line, for the first that has none."""
    stamps = tuple((file, *_stamp(file)) for file in files)
    return [_checked(found) for found in _cached(stamps)]


def read_whole_header(file: Path) -> GgufHeader:
    """The header of `file` with the arrays of its tokenizer. Raises InvalidModel in one line."""
    return _checked(parse_files([file], most_shown=MOST_ELEMENTS)[0])


def parse_files(files: Sequence[Path], most_shown: int = _FEW) -> list[GgufHeader | InvalidModel]:
    """The header of each file, or what is wrong with it in one line; one process parses all of them.

    `most_shown` is the length of arrays above which only their length is returned.
    """
    limits = [str(limit) for limit in (MEMORY_BYTES, CPU_S, ANSWER_BYTES, most_shown)]
    command = [sys.executable, "-m", "moorage.workers.gguf.child", *limits, *map(str, files)]
    with tempfile.TemporaryFile() as answers:
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=answers, stderr=subprocess.DEVNULL, timeout=WALL_S
            )
            code: int | None = ended.returncode
        except subprocess.TimeoutExpired:
            code = None
        answers.seek(0)
        lines = answers.read().splitlines(keepends=True)
    found = [
        _outcome(file, json.loads(line))
        for file, line in zip(files, lines, strict=False)
        if line.endswith(b"\n")
    ]
    reason = f"{WALL_S:g} s" if code is None else f"{MEMORY_BYTES >> 30} GiB of memory or {CPU_S} s"
    return found + [
        _damaged(file, f"reading its header takes more than {reason}") for file in files[len(found) :]
    ]


@lru_cache(maxsize=16)
def _cached(stamps: tuple[tuple[Path, int, int], ...]) -> tuple[GgufHeader | InvalidModel, ...]:
    return tuple(parse_files([file for file, _, _ in stamps]))


def _stamp(file: Path) -> tuple[int, int]:
    """What changes when a file does."""
    try:
        status = file.stat()
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from None
    return status.st_size, status.st_mtime_ns


def _checked(found: GgufHeader | InvalidModel) -> GgufHeader:
    if isinstance(found, InvalidModel):
        raise InvalidModel(str(found))
    return found


def _outcome(file: Path, answer: dict[str, Any]) -> GgufHeader | InvalidModel:
    if "damaged" in answer:
        return _damaged(file, answer["damaged"])
    if "unreadable" in answer:
        return _unreadable(file, answer["unreadable"])
    tensors = tuple(
        TensorHeader(each["name"], file, each["type"], tuple(each["shape"]), each["begin"], each["num_bytes"])
        for each in answer["tensors"]
    )
    return GgufHeader(file, answer["values"], answer["lengths"], tensors)


def _damaged(file: Path, reason: str) -> InvalidModel:
    return InvalidModel(f"{file}: not a complete GGUF file ({reason}); download it again")


def _unreadable(file: Path, reason: str) -> InvalidModel:
    return InvalidModel(f"{file}: can't be read ({reason}); check model.path")
