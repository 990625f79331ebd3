"""A task whose samples are the entries of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from moorage.runtime.evals.asking import Question, Scorer, ask, encode_long
from moorage.runtime.evals.files.lines import Line, read_lines
from moorage.runtime.evals.targets import Target
from moorage.runtime.evals.tasks import Metric, Outcome, Place
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

_HEAD_TOKENS = 128
"""Kept from the beginning of a prompt of which the end is wanted, as InfLLM does: the instruction."""


class Truncate(StrEnum):
    """What becomes of a prompt that is too long."""

    NONE = "none"
    """It is an error."""
    SUFFIX = "suffix"
    """Its first 128 tokens and its end are kept (InfLLM)."""
    MIDDLE = "middle"
    """Both halves' ends are kept (LongBench)."""


@dataclass(frozen=True, slots=True)
class FileSample:
    """One prompt with its answers."""

    where: str
    prompt: str
    answers: tuple[str, ...]
    score: Scorer
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read: how many entries, and what fits."""

    samples: int | None = None
    """Entries of each file; None is all of them."""
    truncate: Truncate = Truncate.NONE
    max_length: int | None = None
    """Most tokens of prompt and answer; None is what the target has room for."""
    max_new_tokens: int | None = None
    """Most tokens of an answer, where its task would allow more."""


@dataclass(frozen=True, slots=True)
class FileTask:
    """The entries of one file, asked in their order."""

    name: str
    metric: Metric
    samples: tuple[FileSample, ...]
    reading: Reading
    data: str
    """Tells this file from another."""
    by_depth: bool = False

    def settings(self) -> Mapping[str, Any]:
        """The file, and what is cut."""
        return {
            "data": self.data,
            "truncate": self.reading.truncate.value,
            "max_length": self.reading.max_length,
            "max_new_tokens": self.reading.max_new_tokens,
        }

    def places(self) -> list[Place]:
        """One for each sample."""
        return [Place(index) for index in range(len(self.samples))]

    def measure(self, place: Place, target: Target) -> Outcome:
        """Asks one entry, cut to fit if that is allowed."""
        sample = self.samples[place.index]
        prefix = target.prefix()
        ids = encode_long(target, sample.prompt)
        most = min(self.reading.max_length or target.room, target.room)
        answer = min(sample.max_new_tokens, self.reading.max_new_tokens or sample.max_new_tokens)
        room = most - answer - len(prefix)
        if len(ids) > room and (self.reading.truncate is Truncate.NONE or room < 1):
            raise InvalidRequest(
                f"{sample.where}: the prompt has {counted(len(ids), 'token')} and {max(room, 0)} fit beside "
                f"{answer} of an answer; give --truncate middle or suffix, a longer --max-length, or fewer "
                "--max-new-tokens"
            )
        kept = cut(ids, room, self.reading.truncate)
        prompt = [*prefix, *kept]
        cut_tokens = len(ids) - len(kept)
        return ask(target, Question(prompt, answer, sample.answers, sample.score, cut_tokens))


def file_task(
    name: str,
    metric: Metric,
    path: Path,
    reading: Reading,
    samples_of: Callable[[Line], Sequence[FileSample]],
) -> FileTask:
    """The task of one file: `samples_of` an entry are one or more. Raises InvalidRequest as `read_lines` does."""
    samples: list[FileSample] = []
    for line in read_lines(path):
        samples += samples_of(line)
        if reading.samples is not None and len(samples) >= reading.samples:
            break
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return FileTask(name, metric, tuple(samples[: reading.samples]), reading, digest)


def cut(ids: Sequence[int], room: int, truncate: Truncate) -> list[int]:
    """At most `room` of the tokens."""
    if len(ids) <= room:
        return list(ids)
    head = min(_HEAD_TOKENS, room // 2) if truncate is Truncate.SUFFIX else room // 2
    tail = room - head
    return [*ids[:head], *ids[len(ids) - tail :]]
