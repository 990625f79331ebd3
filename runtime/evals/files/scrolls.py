"""Few-shot questions and summaries of SCROLLS (Shaham et al., 2022), the way ChunkLlama measures them.

Entries are {input, output}, a document with its question in one field, or {context, input, answers}. The first
`shots` entries of a file come before every prompt, with their answers, and are not asked themselves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from moorage.runtime.evals.asking import Scorer
from moorage.runtime.evals.files.lines import Line, read_lines
from moorage.runtime.evals.files.task import FileSample, FileTask, Reading
from moorage.runtime.evals.metrics import choices, text
from moorage.runtime.evals.tasks import Metric
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

_OPTION = re.compile(r"^\s*\(([A-D])\)\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Kind:
    score: Scorer
    max_new_tokens: int
    ask: str
    metric: Metric = Metric.SCORE


_KINDS = {
    "narrative_qa": _Kind(text.f1, 64, "Answer:"),
    "qasper": _Kind(text.f1, 64, "Answer:"),
    "qmsum": _Kind(text.rouge_mean, 512, "Summary:"),
    "quality": _Kind(text.exact_match, 64, "Answer:", Metric.ACCURACY),
}
TASKS = tuple(_KINDS)
"""Names of tasks and of their files."""


def scrolls(name: str, path: Path, reading: Reading, shots: int) -> FileTask:
    """One task. Raises InvalidRequest with file, line and field for data of another form, or too few entries."""
    kind = _KINDS[name]
    most = None if reading.samples is None else shots + reading.samples
    lines = list(islice(read_lines(path), most))
    if len(lines) <= shots:
        raise InvalidRequest(
            f"{path}: has {len(lines)} entries, all taken by {counted(shots, 'shot')}; give fewer --shots"
        )
    examples = "".join(f"{_asked(line, kind)} {_answers(line)[0]}\n\n\n" for line in lines[:shots])
    samples = tuple(_sample(line, kind, examples) for line in lines[shots:])
    digest = hashlib.sha256(path.read_bytes() + str(shots).encode()).hexdigest()[:16]
    return FileTask(name, kind.metric, samples, reading, digest)


def _sample(line: Line, kind: _Kind, examples: str) -> FileSample:
    asked, answers, score = _asked(line, kind), _answers(line), kind.score
    options = {words: letter for letter, words in _OPTION.findall(asked)}
    if answers[0] in options:
        answers, score = (options[answers[0]], answers[0]), _words_or_letter
    return FileSample(line.where, examples + asked, answers, score, kind.max_new_tokens)


def _words_or_letter(output: str, answers: Sequence[str]) -> float:
    """Options may be answered by their words or, since the prompt shows them, by their letters."""
    return max(text.exact_match(output, answers[1:]), choices.choice(output, answers))


def _asked(line: Line, kind: _Kind) -> str:
    context = f"{line.text('context').strip()}\n\n" if "context" in line.fields else ""
    return f"{context}{line.text('input').strip()}\n\n{kind.ask}"


def _answers(line: Line) -> tuple[str, ...]:
    return line.texts("outputs", "output", "answers")
