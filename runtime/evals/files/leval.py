"""L-Eval (An et al., 2024): its closed-ended tasks, several questions to each document.

Entries are {input, instructions, outputs}.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moorage.runtime.evals.asking import Scorer
from moorage.runtime.evals.files.lines import Line
from moorage.runtime.evals.files.task import FileSample, FileTask, Reading, file_task
from moorage.runtime.evals.metrics import choices, matching, numbers, text
from moorage.runtime.evals.tasks import Metric

_DOCUMENT = "Here is a document, and a question about it.\n\n{document}\n\n{question}\n{ask}"
_LETTER = "The letter of the right answer is"
_AS_IT_STANDS = "{document}\n\n{question}"


@dataclass(frozen=True, slots=True)
class _Kind:
    score: Scorer
    max_new_tokens: int = 32
    prompt: str = _DOCUMENT
    ask: str = "Answer:"
    letters: bool = False
    """Whether the answer begins with its letters."""
    number: bool = False
    """Whether the answer is its last number."""


_KINDS = {
    "coursera": _Kind(choices.letter_set, ask="The letters of all right answers are", letters=True),
    "quality": _Kind(choices.choice, ask=_LETTER, letters=True),
    "tpo": _Kind(choices.choice, ask=_LETTER, letters=True),
    "topic_retrieval_longchat": _Kind(text.contains, 48, _AS_IT_STANDS),
    "gsm100": _Kind(numbers.final_number, 512, _AS_IT_STANDS, number=True),
    "codeU": _Kind(text.contains, 128),
    "sci_fi": _Kind(matching.verdict, ask="Answer in the form `True [fact: False]`:"),
}
TASKS = tuple(_KINDS)
"""Names of tasks and of their files."""


def leval(name: str, path: Path, reading: Reading) -> FileTask:
    """One task. Raises InvalidRequest with file, line and field for data of another form."""
    return file_task(name, Metric.ACCURACY, path, reading, partial(_samples, _KINDS[name]))


def _samples(kind: _Kind, line: Line) -> list[FileSample]:
    document = line.text("input")
    questions, outputs = line.texts("instructions"), line.texts("outputs")
    if len(questions) != len(outputs):
        line.fail("outputs", f"are {len(outputs)} to {len(questions)} instructions")
    return [
        FileSample(
            line.where,
            kind.prompt.format(document=document, question=question, ask=kind.ask),
            _answers(kind, line, output),
            kind.score,
            kind.max_new_tokens,
        )
        for question, output in zip(questions, outputs, strict=True)
    ]


def _answers(kind: _Kind, line: Line, output: str) -> tuple[str, ...]:
    if kind.letters:
        first, _, words = output.strip().partition(" ")
        letters = re.sub(r"[^A-D]", "", first)
        if not letters:
            line.fail("outputs", f"{output[:30]!r} names no option from A to D")
        return (letters, words.strip()) if words.strip() else (letters,)
    if kind.number:
        found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", output)
        if not found:
            line.fail("outputs", f"{output[:30]!r} has no number")
        return (found[-1],)
    return (output,)
