"""InfiniteBench (Zhang et al., 2024): its twelve tasks, from {context, input, answer, options} in JSONL files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moorage.runtime.evals.asking import Scorer
from moorage.runtime.evals.files.lines import Line
from moorage.runtime.evals.files.task import FileSample, FileTask, Reading, file_task
from moorage.runtime.evals.metrics import choices, matching, numbers, text
from moorage.runtime.evals.tasks import Metric

_LETTERS = "ABCD"
_OPTIONS = "\n".join(f"{letter}. {{{letter}}}" for letter in _LETTERS)


def _answers(line: Line) -> tuple[str, ...]:
    return line.texts("answer")


def _numbers(line: Line) -> tuple[str, ...]:
    return line.numbers("answer")


def _integers(line: Line) -> tuple[str, ...]:
    return line.integers("answer")


def _option(line: Line) -> tuple[str, ...]:
    """(letter, its words): the answer is an option's words, its letter, or both."""
    options = line.texts("options")
    if len(options) != len(_LETTERS):
        line.fail("options", f"should be {len(_LETTERS)}, not {len(options)}")
    answers = _answers(line)
    letters = [_LETTERS[options.index(answer)] for answer in answers if answer in options]
    letters += [answer for answer in answers if len(answer) == 1 and answer in _LETTERS]
    if not letters:
        line.fail("answer", f"{answers[0][:40]!r} is none of the options")
    return letters[0], options[_LETTERS.index(letters[0])]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one task asks, and how it is judged."""

    prompt: str
    max_new_tokens: int
    score: Scorer
    answers: Callable[[Line], tuple[str, ...]] = _answers
    metric: Metric = Metric.ACCURACY
    asks: bool = True
    """Whether the entry's `input` is part of the prompt."""


_KINDS = {
    "passkey": _Kind(
        "This text says nothing but one thing: a pass key.\n\n{context}\n\n{input}\nThe pass key is",
        16, numbers.first_digits, _integers,
    ),
    "number_string": _Kind(
        "This text says nothing but one thing: a sequence of digits.\n\n{context}\n\n{input}\n"
        "The sequence of digits is",
        24, numbers.first_digits, _integers,
    ),
    "kv_retrieval": _Kind(
        "Look one key up in this JSON object.\n\n{context}\n\n{input}", 64, matching.among_words
    ),
    "math_find": _Kind(
        "Look through this list of numbers.\n\n{context}\n\n{input}", 16, numbers.first_number, _numbers
    ),
    "math_calc": _Kind(
        "Work through an expression from left to right and list the value after every operation.\n\n"
        "Expression: 2 + 5 - 1\nValues: [2, 7, 6]\n\nExpression: {context}\nValues:",
        30_000, numbers.leading_share, _integers, Metric.SCORE, False,
    ),
    "code_run": _Kind(
        "Here are Python functions that call one another.\n\n{context}\n\n{input}\nEnd with the returned value.",
        32, numbers.last_integer, _integers,
    ),
    "code_debug": _Kind(
        "One function in this Python project has a deliberate error that makes it fail.\n\n{context}\n\n{input}\n"
        f"{_OPTIONS}\n\nThe letter of the function with the error is",
        24, choices.choice_or_name, _option,
    ),
    "longbook_choice_eng": _Kind(
        f"Here is a book, and a question about it.\n\n{{context}}\n\nQuestion: {{input}}\n{_OPTIONS}\n\n"
        "The letter of the right answer is",
        24, choices.choice, _option,
    ),
    "longbook_qa_eng": _Kind(
        "Here is a book, and a question about it. Answer in a few words.\n\n{context}\n\nQuestion: {input}\nAnswer:",
        48, text.f1, metric=Metric.SCORE,
    ),
    "longbook_qa_chn": _Kind(
        "读完这本书，用几个字回答问题。\n\n{context}\n\n问题：{input}\n回答：",
        48, text.f1_characters, metric=Metric.SCORE,
    ),
    "longbook_sum_eng": _Kind(
        "Here is a book. Tell what happens in it.\n\n{context}\n\nSummary:",
        1200, text.rouge_l_sum, metric=Metric.SCORE, asks=False,
    ),
    "longdialogue_qa_eng": _Kind(
        "In this script one speaker's name has been replaced by $$MASK$$ in one place.\n\n{context}\n\n"
        "The name behind $$MASK$$ is",
        40, matching.named, asks=False,
    ),
}  # fmt: skip
TASKS = tuple(_KINDS)
"""Names of tasks and of their files."""


def infinitebench(name: str, path: Path, reading: Reading) -> FileTask:
    """One task. Raises InvalidRequest with file, line and field for data of another form."""
    kind = _KINDS[name]
    return file_task(name, kind.metric, path, reading, partial(_samples, kind))


def _samples(kind: _Kind, line: Line) -> list[FileSample]:
    values = {"context": line.text("context", "content")}
    if kind.asks:
        values["input"] = line.text("input")
    answers = kind.answers(line)
    if "{A}" in kind.prompt:
        values |= dict(zip(_LETTERS, line.texts("options"), strict=True))
    prompt = kind.prompt.format(**values)
    return [FileSample(line.where, prompt, answers, kind.score, kind.max_new_tokens)]
