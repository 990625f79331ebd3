"""The last tokens of a prompt select single keys for themselves, as generated tokens do."""

from __future__ import annotations

import pytest
import torch

from moorage.workers.spec import AnchorSpace, AnchorType, OpenSession, SamplingSpec, Segment
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

KEYS = memory(topk_keys=12, prefill_blocks=2, execution_block=32, sinks=16, window=24)
ALONE = KEYS.replace(last_tokens_alone=10)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture
def driver(llama: TinyModel) -> Driver:
    codes, space = AnchorType.KEY_CODES, AnchorSpace.ROTATED
    return Driver(llama.directory, llama.spec, block_size=16, anchor_type=codes, anchor_space=space)


def test_they_say_what_generated_tokens_would_say(llama: TinyModel, driver: Driver) -> None:
    prompt = prompt_of(llama, 300)
    opening = OpenSession(1, 320, 290, KEYS, SamplingSpec())
    want: list[float] = []
    for start, end in [(0, 290), *((place, place + 1) for place in range(290, 300))]:
        segment = Segment(1, start, tuple(prompt[start:end]), sample=False, prompt_logprobs=True)
        (result,) = driver.step(opens=(opening,) if start == 0 else (), segments=(segment,))
        want += result.prompt_logprobs
    driver.step(drops=(1,))
    got = driver.prompt_logprobs(prompt, ALONE, (300,))
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, driver.prompt_logprobs(prompt, KEYS, (300,)), atol=1e-2)


def test_where_chunks_end_does_not_matter(llama: TinyModel, driver: Driver) -> None:
    prompt = prompt_of(llama, 300)
    want = driver.prompt_logprobs(prompt, ALONE, (300,))
    for chunks in ((256, 36, 3, 5), (64, 96, 32)):
        got = driver.prompt_logprobs(prompt, ALONE, chunks)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_an_answer_begins_with_what_the_last_of_them_says(llama: TinyModel, driver: Driver) -> None:
    prompt = prompt_of(llama, 300)
    (whole,) = driver.distributions(prompt, ALONE, (300,)).values()
    parts = driver.distributions(prompt, ALONE, (256, 44))
    torch.testing.assert_close(parts[300], whole, atol=1e-4, rtol=1e-4)
    first, second = driver.generate(prompt, ALONE, num_tokens=2)
    assert first.token_id == int(whole.argmax())
    assert second.num_selected_keys == first.num_selected_keys == 12


def test_a_prompt_of_other_sessions_is_read_beside_them(llama: TinyModel, driver: Driver) -> None:
    """One step of three sessions: the passes of a prompt's last tokens leave the others as they are."""
    prompts = [prompt_of(llama, 300), prompt_of(llama, 200), prompt_of(llama, 40)]
    want = [driver.generate(prompt, ALONE, num_tokens=1)[0] for prompt in prompts]
    opens = tuple(driver.open(number, prompt, ALONE) for number, prompt in enumerate(prompts, 1))
    segments = tuple(
        Segment(number, 0, tuple(prompt), sample=True) for number, prompt in enumerate(prompts, 1)
    )
    got = {result.session_id: result for result in driver.step(opens=opens, segments=segments)}
    assert [got[number].token_id for number in (1, 2, 3)] == [result.token_id for result in want]
    driver.step(drops=(1, 2, 3))
