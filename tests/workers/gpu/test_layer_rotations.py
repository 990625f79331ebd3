"""Stored layers without rotation, or with a rotary embedding of their own, beside layers that rotate as usual."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from moorage.workers.hf_config import read_model_spec
from moorage.workers.spec import AnchorSpace, AnchorType, LayerSpec, ModelSpec, Positions, RopeSpec
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint, draw_wide, random_prompt

SELECTING = {"topk": 2, "sinks": 8, "window": 24}
SCHEMES: dict[str, dict[str, Any]] = {
    "clamped": {"scheme": Positions.CLAMPED, "window": 24},
    "dca": {"scheme": Positions.DCA, "pretraining_length": 60, "dca_chunk": 48, "mscale": 0.1},
    "dynamic": {"rope": RopeSpec("dynamic", 10000.0, 64, 50, factor=2.0)},
}


@pytest.fixture(scope="module")
def smollm3(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Layers 1 and 3 of four do not rotate. Tensors have Llama's names."""
    directory = tmp_path_factory.mktemp("smollm3")
    config = SmolLM3Config(
        vocab_size=173,
        hidden_size=128,
        intermediate_size=144,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        no_rope_layers=[1, 0, 1, 0],
        max_position_embeddings=4096,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="eager",
    )
    model = SmolLM3ForCausalLM(config).eval()
    draw_wide(model, torch.Generator().manual_seed(0))
    model.save_pretrained(directory)
    saved = json.loads((directory / "config.json").read_text())
    llama = {key: value for key, value in saved.items() if "layer" not in key or key == "num_hidden_layers"}
    llama |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (directory / "config.json").write_text(json.dumps(llama))
    layers = tuple(LayerSpec(rotates=rotates) for rotates in (True, False) * 2)
    return TinyModel(directory, model, replace(read_model_spec(directory), layers=layers))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def driver_of(model: TinyModel, *layers: LayerSpec, **settings: Any) -> Driver:
    """With the layers that are given, or the model's own."""
    spec: ModelSpec = replace(model.spec, layers=layers) if layers else model.spec
    return Driver(model.directory, spec, **settings)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("chunks", [(100,), (33, 1, 20)], ids=str)
def test_layers_without_rotation_equal_transformers(
    smollm3: TinyModel, in_place: bool, chunks: Sequence[int]
) -> None:
    prompt = random_prompt(smollm3.spec, 100)
    driver = driver_of(smollm3, in_place=in_place)
    found = driver.prompt_logprobs(prompt.tolist(), memory(), chunks)
    rows = torch.log_softmax(smollm3.logits(prompt)[:-1], dim=-1)
    torch.testing.assert_close(found, rows.gather(1, prompt[1:, None])[:, 0], atol=2e-4, rtol=0)
    generated = [each.token_id for each in driver.generate(prompt.tolist(), memory(), chunks, num_tokens=12)]
    assert generated == smollm3.greedy(prompt, 12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("in_place", [True, False])
def test_positions_of_a_session_do_not_reach_layers_that_do_not_follow_them(
    llama: TinyModel, scheme: str, in_place: bool
) -> None:
    prompt = random_prompt(llama.spec, 150).tolist()
    for own in (LayerSpec(rotates=False), LayerSpec(rope=llama.spec.rope)):
        driver = driver_of(llama, *(own,) * llama.spec.num_layers, in_place=in_place)
        plain = driver.generate(prompt, memory(), (70,))
        changed = driver.generate(prompt, memory(**SCHEMES[scheme]), (70,))
        assert [each.token_id for each in changed] == [each.token_id for each in plain]
        assert [each.logprob for each in changed] == pytest.approx([each.logprob for each in plain], abs=1e-4)


@pytest.mark.parametrize(
    ("space", "anchors"),
    [(AnchorSpace.PLAIN, AnchorType.QUEST), (AnchorSpace.ROTATED, AnchorType.DYNAMIC)],
)
@pytest.mark.parametrize("scheme", [{}, *SCHEMES.values()], ids=["rope", *SCHEMES])
def test_every_backend_selects_and_attends_alike(
    llama: TinyModel, scheme: dict[str, Any], space: AnchorSpace, anchors: AnchorType
) -> None:
    layers = LayerSpec(rotates=False), LayerSpec(), LayerSpec(rope=replace(llama.spec.rope, theta=1e6))
    prompt, axes = random_prompt(llama.spec, 140).tolist(), memory(**(SELECTING | scheme), recall_every=1)
    found = []
    for backend in ({}, {"in_place": False}, {"attend_on": "cpu", "in_place": False}, {"score_on": "device"}):
        settings: dict[str, Any] = {"anchor_type": anchors, "anchor_space": space, **backend}
        found.append(driver_of(llama, *layers, **settings).generate(prompt, axes, (90,), 5))
    for other in found[1:]:
        assert [each.token_id for each in other] == [each.token_id for each in found[0]]
        assert [each.logprob for each in other] == pytest.approx(
            [each.logprob for each in found[0]], abs=1e-4
        )
        assert [each.recall for each in other] == pytest.approx([each.recall for each in found[0]], abs=1e-4)


def test_anchors_of_unrotated_layers_are_made_of_keys_as_stored(llama: TinyModel) -> None:
    """As in a store whose anchors are those of plain keys."""
    layers = LayerSpec(rotates=False), LayerSpec(), LayerSpec(rotates=False)
    prompt, made = random_prompt(llama.spec, 64).tolist(), []
    for space in AnchorSpace:
        driver = driver_of(llama, *layers, anchor_space=space, num_shards=1)
        driver.generate(prompt, keep=True)
        pages = driver.stores[0].shard.session(1).table.pages[:4]
        made.append(driver.stores[0].arena.anchors[:, pages].copy())
    plain, rotated = made
    assert (plain[[0, 2]] == rotated[[0, 2]]).all()
    assert (plain[1] != rotated[1]).any()
