"""An engine in this process that keeps a document for the next question."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moorage.runtime.evals.haystack import text_haystack
from moorage.runtime.evals.key_values import KeyValues
from moorage.runtime.evals.local_coder import LocalCoder
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.evals.local_targets import LocalConfig, LocalTargets
from moorage.runtime.evals.needle import Needle
from moorage.runtime.evals.runner import run
from moorage.runtime.evals.tasks import Suite
from moorage.runtime.evals.variants import Variant
from moorage.runtime.packaged import DEPLOY

MODEL = DEPLOY / "models" / "moorage-ref"
CONFIG = LocalConfig(None, MODEL, ("scheduler.max_step_tokens=128",))
FULL = Variant("full", None, ("memory.preset=full",))


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(CONFIG.load(FULL.overrides), 640)
    yield made
    made.close()


def prefilled(
    engine: LocalEngine, prompt: list[int], question: int, *, keep: bool = True
) -> tuple[list[int], int]:
    """The answer, and how many tokens of the document were prefilled before it."""
    seen: list[int] = []
    tokens = list(engine.generate(prompt, 6, progress=seen.append, question_tokens=question, keep=keep))
    return tokens, len(seen)


def test_a_kept_document_is_not_prefilled_again_and_answers_are_those_of_a_fresh_one(
    engine: LocalEngine,
) -> None:
    coder = LocalCoder(engine.tokenizer)
    document = text_haystack().tokens(coder, 512, seed=1)
    questions = [coder.encode(text) for text in (" What is the", " In short, this", " The")]
    kept = [prefilled(engine, document + asked, len(asked)) for asked in questions]
    fresh = [prefilled(engine, document + asked, len(asked), keep=False) for asked in questions]
    assert [tokens for tokens, _ in kept] == [tokens for tokens, _ in fresh]
    # Four chunks and the last token; then what a block boundary leaves; a fresh prompt has no token alone.
    assert kept[0][1] == 5
    assert kept[1][1] == kept[2][1] == 1
    assert [chunks for _, chunks in fresh] == [4, 4, 4]


def test_an_engine_with_a_quantizer_serves_what_it_was_made_for() -> None:
    packed = ("long_context.kv_type=NUQ3", f"kv_store.quantizer={MODEL / 'quantizer.safetensors'}")
    config = CONFIG.load((*FULL.overrides, *packed))
    made = LocalEngine(config, 640)
    assert made.serves(config, made.memory)
    assert not made.serves(CONFIG.load(FULL.overrides), made.memory)
    made.close()


def test_another_document_and_scores_begin_anew(engine: LocalEngine) -> None:
    coder = LocalCoder(engine.tokenizer)
    first, second = (text_haystack().tokens(coder, 256, seed=seed) for seed in (2, 3))
    expected = [prefilled(engine, document, 0, keep=False)[0] for document in (first, second)]
    scores = engine.score(first)
    assert [prefilled(engine, document, 0)[0] for document in (first, second)] == expected
    assert engine.score(first) == scores
    assert prefilled(engine, first, 0)[0] == expected[0]


def test_a_question_that_passes_through_steps_is_read_as_the_last_tokens_of_a_prompt() -> None:
    """Where the last tokens of a prompt select single keys for themselves."""
    small = ("memory.dense_until=512", "memory.prefill_blocks=1", "long_context.local_windows_len=64")
    room = ("memory.exc_last_alone=24", "long_context.max_seq_len=2K", "kv_store.dram=16MiB")
    engine = LocalEngine(LocalConfig(DEPLOY / "million.yaml", None, (*small, *room)).load(), 1600)
    coder = LocalCoder(engine.tokenizer)
    document = text_haystack().tokens(coder, 1500, seed=4)
    asked = document[600:616]  # The text goes on behind these words, where only single keys are sure to look.
    prompt = document + asked
    try:
        as_prompt, by_steps = (prefilled(engine, prompt, count, keep=False) for count in (0, len(asked)))
        in_blocks = engine.memory.replace(last_tokens_alone=0)
        other = list(engine.generate(prompt, 6, in_blocks))
    finally:
        engine.close()
    assert as_prompt[0] == by_steps[0] != other


def test_several_questions_are_answered_after_one_text() -> None:
    tasks = (
        Needle(text_haystack(), (600,), 3, needles=3, name="needle-3", one_text=True),
        KeyValues((600,), 3, one_text=True),
    )
    targets = LocalTargets(CONFIG, [FULL], 640)
    try:
        summary = run(Suite("shared", tasks), targets)
    finally:
        targets.close()
    assert [row.samples for row in summary.rows] == [3, 3]
    assert sum(row.value for row in summary.rows) > 1
