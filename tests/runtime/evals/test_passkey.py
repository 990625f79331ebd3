"""Pass-key prompts: exact lengths, the fact where it should be, and the judgement of answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from moorage.runtime.evals.haystack import (
    DEFAULT_DOCUMENT,
    Haystack,
    Material,
    garbage_haystack,
    text_haystack,
)
from moorage.runtime.evals.passkey import (
    ANSWER_TOKENS,
    FACT,
    QUESTION,
    Passkey,
    Style,
    is_correct,
    make_sample,
    make_samples,
)
from moorage.runtime.evals.targets import Answer
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest

MODEL = Path(__file__).parents[3] / "deploy" / "models" / "moorage-pilot"


class Pilot:
    """The embedded model's tokenizer."""

    def __init__(self) -> None:
        self.tokenizer = TextTokenizer.load(MODEL)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids)


@pytest.fixture(scope="module")
def pilot() -> Pilot:
    return Pilot()


@pytest.fixture(scope="module", params=["text", "garbage"])
def haystack(request: pytest.FixtureRequest) -> Haystack:
    return text_haystack(DEFAULT_DOCUMENT) if request.param == "text" else garbage_haystack()


@pytest.mark.parametrize("num_tokens", [200, 512, 5000])
@pytest.mark.parametrize("seed", range(2))
def test_prompt_has_its_length_one_fact_and_the_question(
    pilot: Pilot, haystack: Haystack, num_tokens: int, seed: int
) -> None:
    for sample in make_samples(Material(haystack, pilot), num_tokens, 4, seed):
        assert len(sample.prompt_ids) == sample.num_tokens == num_tokens
        text = pilot.decode(sample.prompt_ids)
        assert re.fullmatch(r"[1-9]\d{4}", sample.answer)
        assert text.count(FACT.format(key=sample.answer)) == 1
        assert text.endswith(QUESTION)
        before = pilot.encode(text[: text.index(FACT.format(key=sample.answer))])
        assert len(before) / num_tokens == pytest.approx(sample.depth, abs=0.25 if num_tokens == 200 else 0.1)


def test_depths_are_spread_or_as_given(pilot: Pilot) -> None:
    garbage = Material(garbage_haystack(), pilot)
    assert [sample.depth for sample in make_samples(garbage, 100, 4)] == [0.125, 0.375, 0.625, 0.875]
    assert [sample.depth for sample in make_samples(garbage, 100, 2, depth=0.3)] == [0.3, 0.3]


def test_ends_of_the_text_are_depths_too(pilot: Pilot) -> None:
    first, last = (
        make_sample(Material(garbage_haystack(), pilot), 300, depth, seed=3) for depth in (0.0, 1.0)
    )
    assert pilot.decode(first.prompt_ids).startswith(FACT.format(key=first.answer))
    assert pilot.decode(last.prompt_ids).endswith(FACT.format(key=last.answer) + QUESTION)


def test_seed_decides_keys_and_text(pilot: Pilot, haystack: Haystack) -> None:
    first, again, other = (make_samples(Material(haystack, pilot), 300, 3, seed) for seed in (1, 1, 2))
    assert first == again
    assert {sample.answer for sample in first}.isdisjoint(sample.answer for sample in other)


def test_prefix_comes_first_and_counts(pilot: Pilot) -> None:
    sample = make_sample(Material(garbage_haystack(), pilot, [0]), 256, 0.5, seed=0)
    assert sample.prompt_ids[0] == 0
    assert sample.num_tokens == 256


def test_answer_tokens_hold_the_number(pilot: Pilot) -> None:
    assert len(pilot.encode(" 98765.")) <= ANSWER_TOKENS


def test_refuses_a_length_without_room_and_names_the_least(pilot: Pilot) -> None:
    with pytest.raises(InvalidRequest, match="at least") as refused:
        make_sample(Material(garbage_haystack(), pilot), 10, 0.5, seed=0)
    least = int(re.findall(r"at least (\d+)", str(refused.value))[0])
    assert make_sample(Material(garbage_haystack(), pilot), least, 0.5, seed=0).num_tokens == least


@pytest.mark.parametrize("depth", [-0.1, 1.1, float("nan")])
def test_refuses_a_depth_outside_the_text(pilot: Pilot, depth: float) -> None:
    with pytest.raises(InvalidRequest, match="depth"):
        make_sample(Material(garbage_haystack(), pilot), 100, depth, seed=0)


@pytest.mark.parametrize(
    ("output", "correct"),
    [
        (" 12345.", True),
        ("12345", True),
        (" is 12345. 99999 is", True),
        (" 123456.", False),
        (" 1234.", False),
        (" 99999. 12345", False),
        (" the", False),
        ("", False),
    ],
)
def test_judges_the_first_number(output: str, correct: bool) -> None:
    assert is_correct(output, "12345") is correct


@pytest.mark.parametrize("style", [Style.LMDEPLOY, Style.CHUNKLLAMA])
def test_published_prompts_describe_the_task_first(pilot: Pilot, style: Style) -> None:
    frame = style.frame()
    sample = make_sample(Material(garbage_haystack(), pilot), 400, 0.4, seed=1, frame=frame)
    text = pilot.decode(sample.prompt_ids)
    assert len(sample.prompt_ids) == 400
    assert text.startswith(
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize"
    )
    assert text.count(frame.fact.format(key=sample.answer)) == 1
    assert text.endswith("What is the pass key? The pass key is")
    assert ("\n" in text) is (style is Style.CHUNKLLAMA)


def test_published_depths_are_drawn_and_others_spread() -> None:
    spread, drawn = (
        [place.depth for place in Passkey(garbage_haystack(), style, (256,), 40, seed=2).places()]
        for style in (Style.GARBAGE, Style.LMDEPLOY)
    )
    assert spread == sorted(spread, key=lambda depth: depth or 0)
    assert drawn != sorted(drawn, key=lambda depth: depth or 0)
    assert all(depth is not None and 0 <= depth <= 1 for depth in drawn)
    given = Passkey(garbage_haystack(), Style.LMDEPLOY, (256,), 1, depths=(0.0, 1.0))
    assert [place.depth for place in given.places()] == [0.0, 1.0]
    assert given.by_depth


class Recorder(Pilot):
    """Answers nothing and remembers what it was asked."""

    room = 10_000

    def __init__(self, questions: Sequence[str] = (QUESTION,)) -> None:
        super().__init__()
        self.questions = questions
        self.asked: list[tuple[Sequence[int], str | None]] = []

    def prefix(self) -> list[int]:
        return []

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        session: str | None = None,
        question_tokens: int = 0,
    ) -> Answer:
        assert max_new_tokens == ANSWER_TOKENS
        assert self.decode(prompt[-question_tokens:]) in self.questions
        self.asked.append((prompt, session))
        return Answer("", 0.0, None, 0)

    def score(self, tokens: Sequence[int]) -> list[float]:
        raise NotImplementedError


def test_keys_in_one_text_share_what_lies_before_them(haystack: Haystack) -> None:
    task = Passkey(haystack, Style.TEXT, (600, 300), 4, seed=5, one_text=True)
    places, target = task.places(), Recorder()
    assert [(place.length, place.depth) for place in places[:2]] == [(300, 0.875), (300, 0.625)]
    for place in places:
        task.measure(place, target)
    assert {session for _, session in target.asked} == {"passkey 5"}
    for (deeper, _), (prompt, _), place in zip(target.asked[:3], target.asked[1:4], places[1:4], strict=True):
        shared = next(i for i, pair in enumerate(zip(deeper, prompt, strict=True)) if pair[0] != pair[1])
        assert shared >= 0.9 * (place.depth or 0) * 250
    plain = Passkey(haystack, Style.TEXT, (300,), 4, seed=5)
    plain.measure(plain.places()[0], target)
    assert target.asked[-1][1] is None
    assert plain.settings() != task.settings()


def test_other_wordings_are_taken_in_turn(haystack: Haystack) -> None:
    frames = [Style.WORDINGS.frame(index) for index in range(11)]
    recorder = Recorder([frame.question for frame in frames])
    task = Passkey(haystack, Style.WORDINGS, (400,), 11)
    for place in task.places():
        task.measure(place, recorder)
    texts = [recorder.decode(prompt) for prompt, _ in recorder.asked]
    assert frames[10] == frames[0]
    assert len(set(frames)) == 10
    for frame, text in zip(frames, texts, strict=True):
        assert text.endswith(frame.question)
        assert frame.fact.partition("{key}")[0] in text
