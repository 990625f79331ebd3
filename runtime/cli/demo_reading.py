"""The first part of `runtime demo`: a real language model reads a document and answers two questions about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moorage.client import Client, GenerateResult
from moorage.runtime.cli.demo_cluster import demo_cluster
from moorage.runtime.cli.demo_figures import print_figures
from moorage.runtime.cli.output import print_note
from moorage.runtime.cli.streaming import stream_text
from moorage.runtime.packaged import DEPLOY
from moorage.workers.errors import MoorageError

DOCUMENTS = DEPLOY / "documents"
READING_TOKENS = 8000
"""Tokens of the document. With questions and answers the conversation stays within the 8 192 that the model knows."""
ANSWER_TOKENS = 40
_SESSION = "demo"
_OVERRIDES = (
    "kv_store.dram=1GiB",
    "long_context.max_seq_len=8192",
    "memory.dense_until=0",
)
"""Room for one conversation, and a selection where the defaults would attend all of a document this short."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and a word of the right answer."""

    text: str
    expected: str

    def answered_by(self, answer: str) -> bool:
        """Whether the answer has the word, in any case."""
        return self.expected.lower() in answer.lower()


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a text file, from the line `begin` up to the line `end`, or to the end of the file."""

    file: Path
    begin: str
    end: str | None = None

    def text(self) -> str:
        """The part."""
        whole = "\n" + self.file.read_text(encoding="utf-8")
        text = whole[whole.index(f"\n{self.begin}\n") + 1 :]
        return text if self.end is None else text[: text.index(f"\n{self.end}")]


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read, and what is asked about it."""

    title: str
    body: Passage
    """Cut so that everything is of the wanted length."""
    last: Passage
    questions: tuple[Question, Question]

    def text(self, client: Client, num_tokens: int) -> str:
        """Both passages, together of about so many tokens of the server's model."""
        last = f"\n\n{self.last.text()}"
        body = client.tokenize(self.body.text()[: 8 * num_tokens], add_special_tokens=False)
        room = num_tokens - len(client.tokenize(last, add_special_tokens=False))
        return client.detokenize(body[:room]) + last


READING = Reading(
    "the Python reference from socketserver on, and the history of Python",
    Passage(DOCUMENTS / "python_reference.txt", "The module socketserver"),
    Passage(DOCUMENTS / "LICENSE.PSF", "A. HISTORY OF THE SOFTWARE", "All Python releases are Open Source"),
    (
        Question("In which year was the Python Software Foundation formed?", "2001"),
        Question("What is the Python Software Foundation?", "non-profit"),
    ),
)
"""A model of 135 million parameters finds few facts among 8 000 tokens, and fewer the farther back they lie. It finds
these two, which are in the last passage, with exact attention, and with selected keys as well."""


def read_document(model: Path, reading: Reading = READING) -> None:
    """Asks both questions, the second in the session of the first, and prints the figures of both.

    Raises MoorageError for a wrong answer.
    """
    with demo_cluster(model, _OVERRIDES) as client:
        text = reading.text(client, READING_TOKENS)
        print_note(
            f"{model.stem} reads {READING_TOKENS:,} tokens, and answers two questions about them:\n"
            f"  {reading.title}."
        )
        first, second = reading.questions
        messages = [{"role": "user", "content": f"{text}\n\n{first.text}"}]
        answers = [_ask(client, messages, first)]
        messages += [
            {"role": "assistant", "content": answers[0].text},
            {"role": "user", "content": second.text},
        ]
        answers.append(_ask(client, messages, second))
        print()
        print_figures({f"question {number}": one.usage for number, one in enumerate(answers, start=1)})
    for question, answer in zip(reading.questions, answers, strict=True):
        if not question.answered_by(answer.text):
            raise MoorageError(
                f"the answer to {question.text!r} is wrong: {question.expected!r} is not in it; "
                "--no-real-model leaves this part out"
            )
    print("Both answers are right.")


def _ask(client: Client, messages: list[dict[str, str]], question: Question) -> GenerateResult:
    print(f"> {question.text}")
    stream = client.generate(messages, max_new_tokens=ANSWER_TOKENS, temperature=0.0, session=_SESSION)
    return stream_text(stream)
