"""Numbers that a stored type can't hold fail their own session, which names the layer and the cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moorage.workers.errors import NotFinite
from moorage.workers.spec import KvType, Segment, StepPlan
from tests.engine_driver import FULL, Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint

VALUES = "model.layers.1.self_attn.v_proj.weight"
OVERFLOW = "layer 1: a key or value is larger than 65504, .* set long_context.kv_type to FP32"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Its second layer has values beyond fp16, which the output projection scales back."""
    model = build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("wide"))
    change_weights(model.directory, {VALUES: 2.0**18, VALUES.replace("v_proj", "o_proj"): 2.0**-18})
    return model


def change_weights(directory: Path, factors: dict[str, float | None]) -> None:
    """Multiplies tensors by their factors; None makes them so large that products with them are infinite."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name, factor in factors.items():
        scaled = (
            weights[name] / weights[name].abs().max() * 3e38 if factor is None else weights[name] * factor
        )
        weights[name] = scaled
    save_file(weights, path, metadata={"format": "pt"})


def prompt_of(model: TinyModel, length: int) -> list[int]:
    found: list[int] = np.random.default_rng(0).integers(2, model.spec.vocab_size, length).tolist()
    return found


def errors_of(driver: Driver, prompt: list[int], *, scored: bool) -> list[Exception | None]:
    segment = Segment(1, 0, tuple(prompt), sample=not scored, prompt_logprobs=scored)
    result = driver.worker.step(StepPlan(1, opens=(driver.open(1, prompt),), segments=(segment,)))
    return [each.error for each in result.segments]


@pytest.mark.parametrize("scored", [False, True])
def test_values_beyond_fp16_storage_name_the_layer_and_the_cure(wide: TinyModel, scored: bool) -> None:
    prompt = prompt_of(wide, 40)
    (error,) = errors_of(Driver(wide.directory, wide.spec, kv_type=KvType.FP16), prompt, scored=scored)
    with pytest.raises(NotFinite, match=OVERFLOW):
        raise error or AssertionError("no error")
    assert errors_of(Driver(wide.directory, wide.spec, kv_type=KvType.FP32), prompt, scored=scored) == [None]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_generated_token_that_overflows_fails_alone(tmp_path: Path, in_place: bool) -> None:
    """The first layer's values depend on the token alone: small ones are prefilled, a large one is generated."""
    model = build_tiny_checkpoint("llama3", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    hidden = weights["model.embed_tokens.weight"].float()
    normed = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + model.spec.rms_norm_eps)
    layer = "model.layers.0."
    values = (normed * weights[layer + "input_layernorm.weight"]) @ weights[
        layer + "self_attn.v_proj.weight"
    ].T
    peaks = values.abs().amax(-1)
    large, small = int(peaks.argmax()), peaks.argsort()[:30].tolist()
    change_weights(tmp_path, {layer + "self_attn.v_proj.weight": 65504 / float(peaks.max()) * 1.01})
    driver = Driver(tmp_path, model.spec, kv_type=KvType.FP16, in_place=in_place)
    opens = tuple(driver.open(i, small, memory(topk=0, sinks=0, window=8)) for i in (1, 2))
    driver.step(opens=opens, segments=[Segment(i, 0, tuple(small), sample=True) for i in (1, 2)])
    tokens = (Segment(1, 30, (large,), sample=True), Segment(2, 30, (small[0],), sample=True))
    first, second = sorted(
        driver.worker.step(StepPlan(9, segments=tokens)).segments, key=lambda r: r.session_id
    )
    assert isinstance(first.error, NotFinite)
    assert "layer 0: " in str(first.error)
    assert second.error is None
    assert second.token_id is not None


@pytest.mark.parametrize("kv_type", [KvType.FP16, KvType.FP32, KvType.NUQ3])
@pytest.mark.parametrize("scored", [False, True])
def test_what_the_model_itself_computes_beyond_all_numbers_has_another_cure(
    tmp_path: Path, kv_type: KvType, scored: bool
) -> None:
    model = build_tiny_checkpoint("llama3", tmp_path)
    change_weights(tmp_path, {VALUES: None})
    (error,) = errors_of(Driver(tmp_path, model.spec, kv_type=kv_type), prompt_of(model, 20), scored=scored)
    assert isinstance(error, NotFinite)
    assert str(error) == (
        "layer 1: the model computes a key or value that is not a finite number; "
        "set model.dtype to float32, or check the weights"
    )


@pytest.mark.parametrize("scored", [False, True])
def test_logits_that_are_no_numbers_fail_a_request_and_a_score(tmp_path: Path, scored: bool) -> None:
    model = build_tiny_checkpoint("llama3", tmp_path)
    change_weights(tmp_path, {"model.norm.weight": None})
    driver = Driver(tmp_path, model.spec, kv_type=KvType.FP32)
    (error,) = errors_of(driver, prompt_of(model, 20), scored=scored)
    assert str(error) == "the model's logits are not finite numbers; check the weights"
    driver.step(drops=(1,), opens=(driver.open(2, [3, 4], FULL),))
