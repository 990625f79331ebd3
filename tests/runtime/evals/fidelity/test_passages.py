"""The passages that are scored, over the embedded model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from moorage.runtime.evals.fidelity.passages import (
    COPIED_TOKENS,
    CUE_TOKENS,
    TASKS,
    Passage,
    Text,
    library_text,
    most_tokens,
    passages,
)
from moorage.runtime.packaged import DEPLOY
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest

LENGTH, COUNT, PREFIX = 400, 3, [1]


class Coder:
    """A tokenizer without special tokens."""

    def __init__(self) -> None:
        self._tokenizer = TextTokenizer.load(DEPLOY / "models" / "moorage-ref")

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids)


CODER = Coder()
FOUND = list(passages(library_text(), CODER, PREFIX, LENGTH, TASKS, COUNT))


def of(task: str) -> list[Passage]:
    return [passage for passage in FOUND if passage.task == task]


def test_every_task_has_its_passages_and_room() -> None:
    assert [(passage.index, passage.task) for passage in FOUND] == [
        (index, task) for index in range(COUNT) for task in TASKS
    ]
    for passage in FOUND:
        assert passage.prompt[:1] == PREFIX
        assert len(passage.prompt) + len(passage.fed) <= most_tokens(LENGTH)
        assert passage.fed == [*passage.given, *passage.wanted][:-1]


def test_what_is_copied_stands_at_the_source() -> None:
    for passage in of("copy"):
        assert passage.source is not None
        source = passage.prompt[passage.source.start : passage.source.stop]
        assert source[CUE_TOKENS:] == passage.wanted
        assert source[:CUE_TOKENS] == [*passage.prompt, *passage.given][-CUE_TOKENS:]
        assert len(passage.wanted) == COPIED_TOKENS
        assert passage.source.stop < LENGTH - 100


def test_the_text_goes_on_where_the_document_ends() -> None:
    first, second, _ = of("continue")
    assert len(first.prompt) + len(first.given) == LENGTH
    whole = library_text().tokens(CODER, 2 * LENGTH)
    assert [*first.prompt, *first.fed][1:] == whole[: LENGTH - 1 + len(first.fed) - 1]
    assert [*second.prompt, *second.given][1:] == whole[LENGTH : 2 * LENGTH - 1]


def test_one_of_several_facts_is_asked_for_with_every_question_token_under_selection() -> None:
    for passage in of("retrieve"):
        assert len(passage.prompt) == LENGTH
        document, question = CODER.decode(passage.prompt), CODER.decode(passage.given)
        assert document.count("One of the special magic numbers for") == 4
        key = question.split("special magic number for ")[1].split(" mentioned")[0]
        assert f"numbers for {key} is{CODER.decode(passage.wanted)}" in document


def test_a_short_text_is_named() -> None:
    with pytest.raises(
        InvalidRequest, match=r"the text note has 2 tokens, and 1264 are needed; name a longer text"
    ):
        list(passages(Text("note", ("two",), " "), CODER, [], LENGTH, ["copy"], COUNT))
