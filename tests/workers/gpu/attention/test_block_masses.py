"""Inspected sessions report the attention mass on each block as transformers' own weights give it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moorage.workers.gpu.attention.recall_probe import RecallProbe
from moorage.workers.spec import MemorySpec, Positions, Segment, SegmentResult
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint, random_prompt

BLOCK, LENGTH, STEPS = 16, 200, 6
AXES = memory(topk=3, sinks=16, window=32, inspect=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def steps_of(model: TinyModel, ids: list[int], axes: MemorySpec) -> list[SegmentResult]:
    """Results of `STEPS` decode steps after a prompt, each of which is given its token."""
    driver = Driver(model.directory, model.spec, block_size=BLOCK)
    prefill = Segment(1, 0, tuple(ids[:LENGTH]), sample=False)
    found = driver.step(opens=(driver.open(1, ids[:LENGTH], axes),), segments=(prefill,))
    for place in range(LENGTH, LENGTH + STEPS):
        found += driver.step(segments=(Segment(1, place, (ids[place],), sample=False),))
    return found


def masses_of(model: TinyModel, ids: list[int]) -> list[np.ndarray]:  # type: ignore[type-arg]
    """Of each layer the mass on each block, as the last token attends, by transformers."""
    with torch.inference_mode():
        output = model.hf_model(torch.tensor([ids]), output_attentions=True, use_cache=False)
    weights = [layer[0, :, -1].double().mean(dim=0).numpy() for layer in output.attentions]
    return [np.add.reduceat(layer, range(0, len(ids), BLOCK)) for layer in weights]


@pytest.mark.parametrize("topk", [1, None], ids=["selected", "full"])
def test_reports_are_the_exact_masses_of_successive_layers(llama: TinyModel, topk: int | None) -> None:
    ids = random_prompt(llama.spec, LENGTH + STEPS).tolist()
    # Under a selection only the first layer sees what full attention would give it.
    layers = range(llama.spec.num_layers) if topk is None else range(1)
    prompt, *steps = steps_of(llama, ids, AXES.replace(topk=topk))
    assert prompt.block_masses == b""
    matched = []
    for place, step in enumerate(steps, start=LENGTH):
        reported, exact = np.frombuffer(step.block_masses, "<f4"), masses_of(llama, ids[: place + 1])
        assert len(reported) == place // BLOCK + 1
        assert reported.sum() == pytest.approx(1, abs=1e-5)
        matched += [layer for layer in layers if np.allclose(reported, exact[layer], atol=1e-5)]
    assert set(matched) == set(layers)
    assert len(matched) == STEPS if topk is None else len(matched) >= STEPS // llama.spec.num_layers


def test_recall_is_reported_beside_and_is_what_the_selection_holds(llama: TinyModel) -> None:
    ids = random_prompt(llama.spec, LENGTH + STEPS).tolist()
    driver = Driver(llama.directory, llama.spec, block_size=BLOCK)
    probe = RecallProbe(driver.worker.engine.exact, BLOCK)
    driver.worker.engine.observe(probe)
    prefill = Segment(1, 0, tuple(ids[:LENGTH]), sample=False)
    driver.step(opens=(driver.open(1, ids[:LENGTH], AXES.replace(topk=1)),), segments=(prefill,))
    for place in range(LENGTH, LENGTH + STEPS):
        probe.samples.clear()
        (result,) = driver.step(segments=(Segment(1, place, (ids[place],), sample=False),))
        assert result.recall is not None
        assert any(np.allclose(result.recall_by_head, each.recall, atol=1e-5) for each in probe.samples)
        assert result.recall < 1


def test_blocks_that_two_variants_of_a_query_meet_count_once(llama: TinyModel) -> None:
    ids = random_prompt(llama.spec, LENGTH + STEPS).tolist()
    axes = AXES.replace(scheme=Positions.CLAMPED)
    for place, step in enumerate(steps_of(llama, ids, axes)[1:], start=LENGTH):
        reported = np.frombuffer(step.block_masses, "<f4")
        assert len(reported) == place // BLOCK + 1
        assert reported.sum() == pytest.approx(1, abs=1e-5)


def test_nothing_is_reported_unasked(llama: TinyModel) -> None:
    ids = random_prompt(llama.spec, LENGTH + STEPS).tolist()
    assert all(step.block_masses == b"" for step in steps_of(llama, ids, AXES.replace(inspect=False)))
