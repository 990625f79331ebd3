"""RULER's `qa_1` and `qa_2`: questions of SQuAD or HotpotQA among other documents, from a local file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moorage.runtime.evals.ruler.problem import Problem
from moorage.workers.errors import InvalidRequest

_ASKED = (
    "Answer the question based on the given documents. "
    "Only give me the answer and do not output any other words."
)
_DOCUMENT = _ASKED + "\n\nThe following are given documents.\n\n{context}"
_QUESTION = "\n\n" + _ASKED + "\n\nQuestion: {question} Answer:"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answers, and the documents that it needs."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Documents:
    """The maker of a question among other documents of the same file."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]

    def __call__(self, rng: random.Random, units: int, length: int) -> Problem:  # noqa: ARG002
        """Units are documents beside those that the question needs."""
        question = rng.choice(self.questions)
        others = [text for text in self.documents if text not in question.documents]
        chosen = [*question.documents, *rng.sample(others, min(units, len(others)))]
        rng.shuffle(chosen)
        context = "\n\n".join(f"Document {place}:\n{text}" for place, text in enumerate(chosen, 1))
        asked = _QUESTION.format(question=question.text)
        return Problem(_DOCUMENT.format(context=context), asked, question.answers)


def read_squad(path: Path) -> Documents:
    """SQuAD's JSON. Raises InvalidRequest with the field that is missing or of another kind."""
    questions, documents = [], []
    articles = _list(_field(_load(path), "data", path, ""), f"{path}: data")
    for at, article in enumerate(articles):
        for place, paragraph in enumerate(
            _list(_field(article, "paragraphs", path, f"data[{at}]"), str(path))
        ):
            where = f"data[{at}].paragraphs[{place}]"
            context = _text(_field(paragraph, "context", path, where), path, f"{where}.context")
            documents.append(context)
            for number, asked in enumerate(
                _list(_field(paragraph, "qas", path, where), f"{path}: {where}.qas")
            ):
                inner = f"{where}.qas[{number}]"
                if isinstance(asked, dict) and asked.get("is_impossible"):
                    continue
                text = _text(_field(asked, "question", path, inner), path, f"{inner}.question")
                found = _list(_field(asked, "answers", path, inner), f"{path}: {inner}.answers")
                answers = tuple(
                    _text(_field(answer, "text", path, inner), path, f"{inner}.answers.text")
                    for answer in found
                )
                questions.append(Question(text, answers, (context,)))
    return _whole(path, questions, documents)


def read_hotpotqa(path: Path) -> Documents:
    """HotpotQA's JSON. Raises InvalidRequest with the field that is missing or of another kind."""
    questions, documents = [], []
    for at, entry in enumerate(_list(_load(path), str(path))):
        where = f"[{at}]"
        own = []
        for part in _list(_field(entry, "context", path, where), f"{path}: {where}.context"):
            if not (isinstance(part, list) and len(part) == 2 and isinstance(part[1], list)):
                raise InvalidRequest(f"{path}: {where}.context: should be pairs of a title and its sentences")
            own.append(f"{part[0]}\n{''.join(map(str, part[1]))}")
        documents += own
        text = _text(_field(entry, "question", path, where), path, f"{where}.question")
        answer = _text(_field(entry, "answer", path, where), path, f"{where}.answer")
        questions.append(Question(text, (answer,), tuple(own)))
    return _whole(path, questions, documents)


READERS: dict[str, Callable[[Path], Documents]] = {"qa_1": read_squad, "qa_2": read_hotpotqa}
"""Task -> how its file is read."""


def _whole(path: Path, questions: list[Question], documents: list[str]) -> Documents:
    if not questions:
        raise InvalidRequest(f"{path}: has no questions that can be answered; name another file")
    return Documents(tuple(questions), tuple(sorted(set(documents))))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidRequest(f"{path}: no such file; download it first and give its path") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{path}:{error.lineno}: is not JSON ({error.msg}); download it again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: can't be read ({error}); give a JSON file") from None


def _field(value: Any, name: str, path: Path, where: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise InvalidRequest(
            f"{path}: {where + '.' if where else ''}{name}: is missing; is it the right dataset?"
        )
    return value[name]


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{where}: should be a list; is it the right dataset?")
    return value


def _text(value: Any, path: Path, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{path}: {where}: should be text; is it the right dataset?")
    return value
