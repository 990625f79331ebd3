"""The mass that the probe measures is the share that transformers' own weights give the attended keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.workers.gpu.attention.attended import Attended
from moorage.workers.gpu.attention.mass_probe import MassProbe
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.spec import HeadSelectMode, Segment
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint, random_prompt

BLOCK, SINKS, WINDOW, LENGTH = 16, 16, 32, 200
SOURCE = range(50, 90)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def weights_of(model: TinyModel, ids: list[int]) -> np.ndarray:  # type: ignore[type-arg]
    """[Hq, T] of the first layer's last query, by transformers."""
    with torch.inference_mode():
        output = model.hf_model(torch.tensor([ids]), output_attentions=True, use_cache=False)
    weights: np.ndarray = output.attentions[0][0, :, -1].double().numpy()  # type: ignore[type-arg]
    return weights


@pytest.mark.parametrize("mode", [HeadSelectMode.SHARED, HeadSelectMode.SEPARATE])
def test_mass_is_the_sum_of_the_exact_weights_of_the_attended_keys(
    llama: TinyModel, mode: HeadSelectMode
) -> None:
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
    engine = driver.worker.engine
    probe, chosen = MassProbe(engine.exact, BLOCK), []

    def observe(step: DecodeStep, layer: int, attended: Attended) -> None:
        probe(step, layer, attended)
        if layer == 0:
            chosen.append(attended.selected[step.row])

    engine.observe(observe)
    probe.source = SOURCE
    ids = random_prompt(llama.spec, LENGTH + 2).tolist()
    axes = memory(topk=3, sinks=SINKS, window=WINDOW, head_select_mode=mode)
    prefill = Segment(1, 0, tuple(ids[:LENGTH]), sample=False)
    driver.step(opens=(driver.open(1, ids[:LENGTH], axes),), segments=(prefill,))
    driver.step(segments=(Segment(1, LENGTH, (ids[LENGTH],), sample=False),))
    assert not probe.samples
    probe.enabled = True
    driver.step(segments=(Segment(1, LENGTH + 1, (ids[LENGTH + 1],), sample=False),))

    assert [sample.layer for sample in probe.samples] == list(range(llama.spec.num_layers))
    first, weights, selected = probe.samples[0], weights_of(llama, ids), chosen[-1]
    near = (LENGTH + 1 - WINDOW + 1) // BLOCK * BLOCK
    per_selection = llama.spec.num_heads // len(selected)
    for head, mass in enumerate(first.mass):
        keys = np.zeros(LENGTH + 2, bool)
        keys[:SINKS] = keys[near:] = True
        for block in selected[head // per_selection]:
            keys[block * BLOCK : (block + 1) * BLOCK] = True
        assert mass == pytest.approx(weights[head, keys].sum(), abs=1e-5)
        assert first.num_keys == keys.sum()
    assert first.source == pytest.approx(weights[:, 48:96].sum(axis=1), abs=1e-5)


def test_full_attention_holds_all_of_it(llama: TinyModel) -> None:
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
    probe = MassProbe(driver.worker.engine.exact, BLOCK)
    probe.enabled = True
    driver.worker.engine.observe(probe)
    driver.generate(random_prompt(llama.spec, LENGTH).tolist(), num_tokens=3)
    assert len(probe.samples) == 2 * llama.spec.num_layers
    for sample in probe.samples:
        assert sample.mass == pytest.approx(np.ones(llama.spec.num_heads), abs=1e-5)
        assert sample.num_keys == LENGTH + sample.step + 1
        assert sample.source is None
