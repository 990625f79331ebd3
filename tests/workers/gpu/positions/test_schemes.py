"""Every position scheme through the engine, against the pair-by-pair reference and against transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.rope import session_view
from moorage.workers.gpu.positions.reference import attend
from moorage.workers.spec import ContinueSession, MemorySpec, Positions, RopeSpec, SamplingSpec, Segment
from tests.engine_driver import Driver, memory, spans
from tests.tiny_models import TinyModel, build_tiny_checkpoint

BLOCK = 16
LENGTH = 120
SPLITS = [(LENGTH,), (40, 7), (1, 16, 33)]
DCA = memory(scheme=Positions.DCA, pretraining_length=40, dca_chunk=32)
YARN = RopeSpec("yarn", 10000.0, 64, 160, original_max_position_embeddings=40, factor=4.0)
SCHEMES: dict[str, MemorySpec] = {
    "clamped-1": memory(scheme=Positions.CLAMPED, window=1),
    "clamped-block": memory(scheme=Positions.CLAMPED, window=16),
    "clamped-20": memory(scheme=Positions.CLAMPED, window=20),
    "clamped-45": memory(scheme=Positions.CLAMPED, window=45),
    "dca": DCA,
    "dca-chunk-is-block": DCA.replace(dca_chunk=16, pretraining_length=17),
    "dca-long-successive": DCA.replace(pretraining_length=200, dca_chunk=48),
    "dca-small-window": DCA.replace(window=5),
    "dca-linear": DCA.replace(rope=RopeSpec("linear", 10000.0, 64, 40, factor=2.0)),
    "dca-dynamic": DCA.replace(rope=RopeSpec("dynamic", 10000.0, 64, 40, factor=2.0, fixed_length=128)),
    "dca-yarn": DCA.replace(rope=YARN),
    "dca-partial": DCA.replace(rope=RopeSpec("default", 10000.0, 32, 40)),
    "dca-mscale": DCA.replace(mscale=0.1, mscale_length=16),
    "stream": memory(scheme=Positions.ROLLING, topk=0, sinks=16, window=24),
    "stream-no-sinks": memory(scheme=Positions.ROLLING, topk=0, window=17),
    "stream-two-sink-blocks": memory(scheme=Positions.ROLLING, topk=0, sinks=17, window=31),
    "infinite": memory(scheme=Positions.CLAMPED, topk=0, sinks=16, window=24),
    "window-alone": memory(topk=0, window=33),
    "partial": memory(rope=RopeSpec("default", 10000.0, 16, 40)),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def prompt_of(model: TinyModel, length: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(2, model.spec.vocab_size, length).tolist()
    return found


def logprobs_of(logits: torch.Tensor, prompt: list[int]) -> torch.Tensor:
    """[len(prompt) - 1] log-probabilities of the prompt's tokens, given logits [len(prompt), vocab]."""
    rows = torch.log_softmax(logits[:-1].float(), dim=-1)
    return rows.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]


def reference_logprobs(
    model: TinyModel, prompt: list[int], axes: MemorySpec, length: int | None = None
) -> torch.Tensor:
    """Log-probabilities of `prompt` with the reference's attention, viewed at `length` tokens."""
    view = session_view(model.spec.rope, axes, length or len(prompt))
    decoder = Decoder.load(model.directory, model.spec, "float32", "cpu")

    def attention(_layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(axes, BLOCK, view, q, k, v).float()

    return logprobs_of(decoder.logits(decoder.forward(torch.tensor(prompt), attention)), prompt)


def decoded_logprobs(driver: Driver, prompt: list[int], start: int, axes: MemorySpec) -> torch.Tensor:
    """Log-probabilities of tokens after `start`, each fed to a decode step after a prompt of `start` tokens."""
    opens = (driver.open(7, prompt[:start], axes, len(prompt)),)
    driver.step(opens=opens, segments=(Segment(7, 0, tuple(prompt[:start]), sample=False),))
    found: list[float] = []
    for place in range(start, len(prompt)):
        segment = Segment(7, place, (prompt[place],), sample=False, prompt_logprobs=True)
        found += driver.step(segments=(segment,))[0].prompt_logprobs
    driver.step(drops=(7,))
    return torch.tensor(found)


@pytest.mark.parametrize("name", SCHEMES)
def test_prefill_decode_and_a_second_turn_equal_the_reference(llama: TinyModel, name: str) -> None:
    axes = SCHEMES[name]
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
    prompt = prompt_of(llama, LENGTH)
    want = reference_logprobs(llama, prompt, axes)
    for chunks in SPLITS:
        got = driver.prompt_logprobs(prompt, axes, chunks)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    if not axes.positions.mscale:
        got = decoded_logprobs(driver, prompt, LENGTH - 25, axes)
        torch.testing.assert_close(got, want[-len(got) :], atol=1e-4, rtol=1e-4)
    keep = 70
    driver.step(opens=(driver.open(3, prompt, axes, 1),), segments=(Segment(3, 0, tuple(prompt), False),))
    opens: tuple[ContinueSession, ...] = (ContinueSession(3, keep, LENGTH + 1, LENGTH, axes, SamplingSpec()),)
    found: list[float] = []
    for start, end in spans(LENGTH, (11, 48), keep):
        segment = Segment(3, start, tuple(prompt[start:end]), sample=False, prompt_logprobs=True)
        found += driver.step(opens=opens, segments=(segment,))[0].prompt_logprobs
        opens = ()
    torch.testing.assert_close(torch.tensor(found), want[-len(found) :], atol=1e-4, rtol=1e-4)


def test_one_stored_cache_serves_every_scheme(llama: TinyModel) -> None:
    """The first layer's keys do not depend on the scheme; a turn under another one reads them as they lie."""
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
    prompt = prompt_of(llama, LENGTH)
    driver.step(opens=(driver.open(3, prompt, memory(), 1),), segments=(Segment(3, 0, tuple(prompt), False),))
    for axes in (DCA, SCHEMES["stream"], SCHEMES["infinite"], SCHEMES["clamped-20"]):
        opening = ContinueSession(3, 0, LENGTH + 1, LENGTH, axes, SamplingSpec())
        segment = Segment(3, 0, tuple(prompt), sample=False, prompt_logprobs=True)
        (result,) = driver.step(opens=(opening,), segments=(segment,))
        want = reference_logprobs(llama, prompt, axes)
        torch.testing.assert_close(torch.tensor(result.prompt_logprobs), want, atol=1e-4, rtol=1e-4)


HF_SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
HF_OVERRIDES: dict[str, RopeSpec] = {
    "default": RopeSpec("default", 10000.0, 64, 64),
    "linear": RopeSpec("linear", 10000.0, 64, 64, factor=4.0),
    "dynamic": RopeSpec("dynamic", 10000.0, 64, 64, factor=2.0),
    "yarn": RopeSpec("yarn", 10000.0, 64, 64, original_max_position_embeddings=64, factor=4.0),
}


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """The same weights with other rotary embeddings and a trained length of 64."""
    return {
        name: build_tiny_checkpoint(
            "llama3",
            tmp_path_factory.mktemp(name),
            rope={**scaling, "rope_theta": 10000.0},
            max_position_embeddings=64,
        )
        for name, scaling in HF_SCALINGS.items()
    }


@pytest.mark.parametrize("name", HF_SCALINGS)
def test_a_sessions_own_rotary_embedding_equals_transformers(
    llama: TinyModel, oracles: dict[str, TinyModel], name: str
) -> None:
    """Of a prompt of thrice the trained length, in any chunking; at its end one token is generated."""
    axes = memory(rope=HF_OVERRIDES[name])
    prompt = prompt_of(llama, 200)
    logits = oracles[name].logits(torch.tensor(prompt))
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
    for chunks in ((200,), (64,), (37, 1, 50)):
        got = driver.prompt_logprobs(prompt, axes, chunks)
        torch.testing.assert_close(got, logprobs_of(logits, prompt), atol=1e-4, rtol=1e-4)
    (result,) = driver.generate(prompt, axes, (48,), 1)
    assert result.token_id == int(logits[-1].argmax())


@pytest.mark.parametrize("rebase_every", [1, 16])
def test_decode_under_dynamic_ntk_stays_near_a_forward_from_scratch(
    llama: TinyModel, oracles: dict[str, TinyModel], rebase_every: int
) -> None:
    """Keys are viewed at the current length; only hidden states of earlier tokens remember a shorter one.

    The difference per token must be far less than that of rotations frozen at the prompt's length.
    """
    start, end = 150, 200
    prompt = prompt_of(llama, end)
    rope = HF_OVERRIDES["dynamic"]
    exact = torch.stack(
        [
            torch.log_softmax(oracles["dynamic"].logits(torch.tensor(prompt[:count]))[-1], -1)[prompt[count]]
            for count in range(start + 1, end)
        ]
    )

    def difference(axes: MemorySpec) -> float:
        driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
        got = decoded_logprobs(driver, prompt, start, axes)
        return float((got - exact).abs().mean())

    followed = difference(memory(rope=rope, rebase_every=rebase_every))
    frozen = difference(memory(rope=replace(rope, fixed_length=start)))
    print(f"rebase_every {rebase_every}: {followed:.5f}, frozen {frozen:.5f}")
    assert followed < frozen


def test_a_neighbour_in_the_batch_changes_no_length(llama: TinyModel) -> None:
    """Dynamic NTK takes the session's own length, never the batch's."""
    axes = memory(rope=HF_OVERRIDES["dynamic"])
    short, long = prompt_of(llama, 90), prompt_of(llama, 190, seed=1)
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
    alone = driver.prompt_logprobs(short, axes, (90,))
    opens = (driver.open(1, short, axes), driver.open(2, long, axes))
    segments = tuple(
        Segment(i, 0, tuple(p), sample=False, prompt_logprobs=True) for i, p in ((1, short), (2, long))
    )
    together = driver.step(opens=opens, segments=segments)
    torch.testing.assert_close(torch.tensor(together[0].prompt_logprobs), alone, atol=1e-5, rtol=1e-5)


def test_fixed_length_replaces_the_sequences(llama: TinyModel, tmp_path: Path) -> None:
    """`session_len` of LMDeploy: the base is that of the full session from the first token on."""
    del tmp_path
    prompt = prompt_of(llama, 100)
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
    fixed = memory(rope=replace(HF_OVERRIDES["dynamic"], fixed_length=400))
    want = reference_logprobs(llama, prompt, memory(rope=HF_OVERRIDES["dynamic"]), length=400)
    torch.testing.assert_close(driver.prompt_logprobs(prompt, fixed, (64,)), want, atol=1e-4, rtol=1e-4)
    got = decoded_logprobs(driver, prompt, 80, fixed)
    torch.testing.assert_close(got, want[-len(got) :], atol=1e-4, rtol=1e-4)
