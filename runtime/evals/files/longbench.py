"""LongBench (Bai et al., 2024): the 21 data sets of version 1 with their metrics, and the choices of version 2."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moorage.runtime.evals.asking import Scorer
from moorage.runtime.evals.files.lines import Line
from moorage.runtime.evals.files.task import FileSample, FileTask, Reading, file_task
from moorage.runtime.evals.metrics import choices, matching, numbers, text
from moorage.runtime.evals.tasks import Metric

_QUESTION = (
    "Here are documents, and a question about them. Answer in a few words and say nothing else.\n\n{context}\n\n"
    "Question: {input}\nAnswer:"
)
_QUESTION_ZH = "请根据下面的材料，用几个字回答问题。\n\n{context}\n\n问题：{input}\n回答："
_QUERY = "Here is the record of a meeting, and a request about it.\n\n{context}\n\nRequest: {input}\nAnswer:"
_SUMMARY = "Here is a text of several parts. Write a summary of one page.\n\n{context}\n\nSummary:"
_SUMMARY_ZH = "请为下面的会议记录写一段总结。\n\n{context}\n\n总结："
_EXAMPLES = "Go on as in the examples.\n\n{context}\n{input}"
_EXAMPLES_ZH = "请按照下面的例子继续。\n\n{context}\n{input}"
_COUNT = (
    "Some of these paragraphs are repeated. How many different ones are there?\n\n{context}\n\n"
    "The number of different paragraphs is"
)
_WHICH = (
    "One of these paragraphs is summed up below.\n\n{context}\n\nSummary: {input}\n\n"
    'Name it as in "Paragraph 1". The summary is of'
)
_WHICH_ZH = "下面的摘要出自其中一个段落。\n\n{context}\n\n摘要：{input}\n\n请像“段落1”这样回答。答案是："
_CODE = "Write the next line of this code.\n{context}{input}"


@dataclass(frozen=True, slots=True)
class _Kind:
    prompt: str
    max_new_tokens: int
    score: Scorer | None
    """None classifies among the entry's own classes."""
    metric: Metric = Metric.SCORE
    first_line: bool = False
    """Whether only the first line of an answer counts: examples tempt a model to go on."""
    number_only: bool = False
    """Whether an answer such as `Paragraph 3` stands for its number."""


_KINDS = {
    **dict.fromkeys(("narrativeqa", "qasper"), _Kind(_QUESTION, 128, text.f1)),
    "multifieldqa_en": _Kind(_QUESTION, 64, text.f1),
    "multifieldqa_zh": _Kind(_QUESTION_ZH, 64, text.f1_characters),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), _Kind(_QUESTION, 32, text.f1)),
    "dureader": _Kind(_QUESTION_ZH, 128, text.rouge_l_characters),
    **dict.fromkeys(("gov_report", "multi_news"), _Kind(_SUMMARY, 512, text.rouge_l)),
    "qmsum": _Kind(_QUERY, 512, text.rouge_l),
    "vcsum": _Kind(_SUMMARY_ZH, 512, text.rouge_l_characters),
    "trec": _Kind(_EXAMPLES, 64, None, Metric.ACCURACY, first_line=True),
    "triviaqa": _Kind(_EXAMPLES, 32, text.f1, first_line=True),
    "samsum": _Kind(_EXAMPLES, 128, text.rouge_l, first_line=True),
    "lsht": _Kind(_EXAMPLES_ZH, 64, None, Metric.ACCURACY, first_line=True),
    "passage_count": _Kind(_COUNT, 32, numbers.share_of_numbers, Metric.ACCURACY),
    "passage_retrieval_en": _Kind(_WHICH, 32, numbers.share_of_numbers, Metric.ACCURACY, number_only=True),
    "passage_retrieval_zh": _Kind(_WHICH_ZH, 32, numbers.share_of_numbers, Metric.ACCURACY, number_only=True),
    **dict.fromkeys(("lcc", "repobench-p"), _Kind(_CODE, 64, matching.edit_similarity)),
}
_VERSION_2 = ("longbench_v2", "data")
"""Names of version 2's file: one set of multiple-choice questions."""
_VERSION_2_TOKENS = 128
_LETTERS = "ABCD"
TASKS = (*_KINDS, *(f"{name}_e" for name in _KINDS), *_VERSION_2)
"""Names of files; those with _e are LongBench-E's."""


def longbench(name: str, path: Path, reading: Reading) -> FileTask:
    """One data set. Raises InvalidRequest with file, line and field for data of another form."""
    if name in _VERSION_2:
        return file_task("longbench_v2", Metric.ACCURACY, path, reading, _choice)
    kind = _KINDS[name.removesuffix("_e")]
    return file_task(name, kind.metric, path, reading, partial(_samples, kind))


def _samples(kind: _Kind, line: Line) -> list[FileSample]:
    context, asked = line.text("context"), line.text("input")
    answers = line.texts("answers")
    if kind.number_only:
        found = [re.search(r"\d+", answer) for answer in answers]
        if not all(found):
            line.fail("answers", f"{answers[0][:30]!r} names no paragraph")
        answers = tuple(match[0] for match in found if match)
    score = kind.score or matching.classification(line.texts("all_classes"))
    if kind.first_line:
        score = _of_first_line(score)
    prompt = kind.prompt.format(context=context, input=asked)
    return [FileSample(line.where, prompt, answers, score, kind.max_new_tokens)]


def _of_first_line(score: Scorer) -> Callable[[str, Sequence[str]], float]:
    return lambda output, answers: score(output.lstrip("\n").split("\n")[0], answers)


def _choice(line: Line) -> list[FileSample]:
    options = {letter: line.text(f"choice_{letter}") for letter in _LETTERS}
    answer = line.text("answer").strip()
    if answer not in options:
        line.fail("answer", f"should be one of A, B, C and D, not {answer[:20]!r}")
    listed = "\n".join(f"({letter}) {words.strip()}" for letter, words in options.items())
    prompt = (
        f"Here is a text, and a question about it.\n\n{line.text('context').strip()}\n\n"
        f"Question: {line.text('question').strip()}\n{listed}\n\n"
        'Answer in the form "The correct answer is (letter)".'
    )
    return [FileSample(line.where, prompt, (answer, options[answer]), choices.choice, _VERSION_2_TOKENS)]
