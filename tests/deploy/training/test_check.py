"""The measurement of a checkpoint: prompts that hold the answer, and a loss with a known value."""

from __future__ import annotations

from random import Random

import pytest
import torch

from deploy.training.check import TASKS, Checker, loss_of
from deploy.training.model import Llama, Shape
from deploy.training.prepare import Prepared, Text
from deploy.training.tokenizer import BOS
from moorage.runtime.evals.haystack import garbage_haystack

SHAPE = Shape(420, 32, 1, 2, 1, 16, 48, 2048)


def drawn() -> Llama:
    model = Llama(SHAPE)
    model.draw(0)
    return model.eval()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_prompt_holds_the_answer_and_fits_with_it(prepared: Prepared, task: str, seed: int) -> None:
    checker = Checker(drawn(), prepared.tokenizer)
    problem = TASKS[task][0](Random(seed))
    haystack = garbage_haystack() if TASKS[task][1] else None
    ids = checker.prompt(problem, haystack, 6000, Random(seed))
    text = prepared.tokenizer.decode(ids)
    assert ids[0] == prepared.tokenizer.token_to_id(BOS)
    assert text.endswith(problem.question)
    for statement in problem.statements:
        assert statement in text
    assert any(answer.strip() in text for answer in problem.answers)
    longest = max(len(checker.encode(answer)) for answer in problem.answers)
    if haystack:
        assert len(ids) == 6000 - longest
    else:
        assert len(ids) <= 6000 - longest


def test_too_short_a_prompt_says_what_is_needed(prepared: Prepared) -> None:
    checker = Checker(drawn(), prepared.tokenizer)
    with pytest.raises(ValueError, match="--length 20: at least"):
        checker.accuracy("needle, garbage", 20, 1)


def test_an_untrained_model_knows_nothing(prepared: Prepared) -> None:
    assert Checker(drawn(), prepared.tokenizer).accuracy("pass key, garbage", 300, 5) == 0


def test_an_answer_counts_when_each_token_is_the_likeliest(prepared: Prepared) -> None:
    """A model without layers that always says "7"."""
    model = Llama(Shape(420, 32, 0, 2, 1, 16, 48, 2048)).eval()
    seven = prepared.tokenizer.encode("7").ids
    torch.nn.init.zeros_(model.embed_tokens.weight)
    model.embed_tokens.weight.data[:, 0] = 1.0
    model.embed_tokens.weight.data[seven[0], 0] = 2.0
    checker = Checker(model, prepared.tokenizer)
    assert checker.answers([5, 6], "777")
    assert not checker.answers([5, 6], "778")
    assert not checker.answers([5, 6], "877")


@pytest.mark.parametrize(("num_ids", "num_tokens"), [(2, 64), (64, 64), (65, 64), (200, 64)])
def test_the_loss_of_an_ignorant_model_is_that_of_guessing(num_ids: int, num_tokens: int) -> None:
    model = Llama(SHAPE).eval()
    torch.nn.init.zeros_(model.embed_tokens.weight)
    ids = torch.randint(420, (num_ids,), generator=torch.Generator().manual_seed(0))
    text = Text(ids.numpy().astype("uint16"), torch.arange(num_ids).numpy())
    assert loss_of(model, text, num_tokens) == pytest.approx(torch.tensor(420.0).log().item(), rel=1e-5)
