"""What choices are compared on: documents that hold the answers, and questions that are asked under selection."""

from __future__ import annotations

import re

import pytest

from moorage.runtime.cli.eval_compare import TASKS as OFFERED
from moorage.runtime.evals.compare.report import TASKS
from moorage.runtime.evals.compare.samples import TEXT_TASKS, Sample, SampleMaker
from moorage.runtime.evals.compare.wordings import PASSKEY_WORDINGS, WORDINGS, Wordings
from moorage.runtime.evals.fidelity.passages import text_of
from moorage.runtime.evals.haystack import DEFAULT_DOCUMENT
from moorage.runtime.evals.local_coder import LocalCoder
from moorage.runtime.packaged import DEPLOY
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest

LENGTH, COUNT = 1200, 3
CODER = LocalCoder(TextTokenizer.load(DEPLOY / "models" / "moorage-ref"))
MAKER = SampleMaker(text_of(DEFAULT_DOCUMENT), CODER, COUNT, seed=0, generated=50)


def of(task: str) -> list[Sample]:
    found = list(MAKER.samples(LENGTH, [task]))
    assert [sample.index for sample in found] == list(range(COUNT))
    return found


@pytest.mark.parametrize("task", TASKS)
def test_documents_fill_their_length_and_differ(task: str) -> None:
    found = of(task)
    for sample in found:
        assert 0.7 * LENGTH < len(sample.prompt) < LENGTH + 20
        assert sample.given
        assert sample.prompt[: len(CODER.prefix())] == CODER.prefix()
    texts = [CODER.decode(sample.prompt)[-300:] for sample in found]
    assert len(set(texts)) == COUNT
    assert task in OFFERED


@pytest.mark.parametrize("task", [task for task in TASKS if task not in TEXT_TASKS])
def test_a_document_holds_its_answers_and_the_question_asks_for_them(task: str) -> None:
    for sample in of(task):
        document, question = CODER.decode(sample.prompt), CODER.decode(sample.given)
        assert all(answer in document for answer in sample.answers)
        assert not any(answer in question for answer in sample.answers)
        assert sample.score is not None
        assert sample.score(" ".join(sample.answers), sample.answers) == 1
        assert sample.score("nothing", sample.answers) == 0
        assert sample.wanted is None


@pytest.mark.parametrize(
    ("task", "wordings"), [("wordings", WORDINGS), ("passkey-wordings", PASSKEY_WORDINGS)]
)
def test_samples_take_the_wordings_in_turn(task: str, wordings: Wordings) -> None:
    questions = [CODER.decode(sample.given).strip() for sample in of(task)]
    assert questions == [question.strip() for _, question in wordings[:COUNT]]
    for fact, question in wordings:
        before = fact.partition("{key}")[0].strip().split()[-4:]
        assert question.split()[-4:] == before  # the answer goes on as the text does


def test_one_of_four_keys_is_asked_for() -> None:
    for sample in of("multikey"):
        facts = re.findall(r"magic numbers for (\S+) is: (\d+)\.", CODER.decode(sample.prompt))
        assert len(facts) == 4
        asked = re.findall(r"number for (\S+) mentioned", CODER.decode(sample.given))
        assert (asked[0], *sample.answers) in facts


def test_short_documents_have_fewer_records() -> None:
    assert [len(sample.answers) for sample in of("records")] == [4] * COUNT
    (longer,) = SampleMaker(MAKER.text, CODER, 1, 0, 50).samples(3000, ["records"])
    assert len(longer.answers) == 3000 // 256


def test_tasks_of_text_share_their_documents() -> None:
    found = list(MAKER.samples(LENGTH, ["copy", "continue", "generate"]))
    assert [(sample.task, sample.index) for sample in found] == [
        (task, index) for index in range(COUNT) for task in ("copy", "continue", "generate")
    ]
    copied, continued, generated = found[:3]
    assert generated.prompt == continued.prompt == copied.prompt[: len(continued.prompt)]
    assert (generated.wanted, generated.most_new_tokens, generated.endless) == (None, 50, True)
    assert continued.most_tokens == len(continued.prompt) + len(continued.given) + 64


def test_the_seed_decides() -> None:
    again = SampleMaker(MAKER.text, CODER, COUNT, 0, 50)
    other = SampleMaker(MAKER.text, CODER, COUNT, 1, 50)
    assert list(again.samples(LENGTH, ["needle"])) == of("needle")
    assert list(other.samples(LENGTH, ["needle"])) != of("needle")


def test_too_short_a_document_names_the_task() -> None:
    with pytest.raises(InvalidRequest, match="records: lengths: too short by"):
        list(MAKER.samples(40, ["records"]))
