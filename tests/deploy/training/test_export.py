"""The exported model, as transformers and the engine of the project read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.training.check import exported_model
from deploy.training.export import draw_losses, export
from deploy.training.model import Llama, Shape
from deploy.training.prepare import Prepared
from deploy.training.recipe import Rates, Recipe, Stage
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.rope import cos_sin, rope_view, rotate
from moorage.workers.hf_config import read_model_spec

SHAPE = Shape(420, 64, 3, 4, 2, 16, 96, 256)
MESSAGES = [
    {"role": "user", "content": " Where is the door? "},
    {"role": "assistant", "content": "There."},
    {"role": "user", "content": "Code 4071?"},
]


@pytest.fixture(scope="module")
def exported(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Llama, Path]:
    """A model with wide weights, so that a wrong rotation or mask shows, already rounded to fp16."""
    folder = tmp_path_factory.mktemp("exported")
    model = Llama(SHAPE)
    model.draw(2)
    for name, weight in model.named_parameters():
        spread = 5.0 if weight.ndim == 2 and "embed" not in name else 1.0
        weight.data = (weight.data * spread).half().float()
    export(model, prepared.tokenizer, folder)
    return model.eval(), folder


def ids_of(num_tokens: int) -> torch.Tensor:
    return torch.randint(4, SHAPE.vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(1))


def ours(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(ids[None]))[0]


def test_transformers_computes_the_same_logits(exported: tuple[Llama, Path]) -> None:
    model, folder = exported
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = ids_of(200)
    with torch.inference_mode():
        logits = theirs(input_ids=ids[None]).logits[0]
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, ours(model, ids), rtol=0, atol=1e-4)


def test_the_engine_computes_the_same_logits(exported: tuple[Llama, Path]) -> None:
    model, folder = exported
    spec = read_model_spec(folder)
    assert spec.max_position_embeddings == SHAPE.max_tokens
    decoder = Decoder.load(folder, spec, "float32", "cpu")
    ids = ids_of(150)
    torch.testing.assert_close(engine_logits(decoder, ids), ours(model, ids), rtol=0, atol=1e-3)


def engine_logits(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """With the plain causal attention of torch, rotated by the engine's own tables."""
    spec = decoder.spec
    cos, sin = cos_sin(rope_view(spec.rope, len(ids)), torch.arange(len(ids)))

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        del layer
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        k, v = (part.repeat_interleave(spec.group_size, dim=0) for part in (rotate(k, cos, sin), v))
        q = rotate(q, cos, sin)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1)

    return decoder.logits(decoder.forward(ids, attend))


def test_the_measurement_reads_it_back(exported: tuple[Llama, Path]) -> None:
    model, folder = exported
    again, tokenizer = exported_model(folder)
    ids = ids_of(100)
    assert torch.equal(ours(again, ids), ours(model, ids))
    assert tokenizer.encode("Code 4071?").ids == TextTokenizer.load(folder).encode("Code 4071?")


def test_both_tokenizers_render_and_encode_a_chat_alike(exported: tuple[Llama, Path]) -> None:
    _, folder = exported
    mine, theirs = TextTokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    text = mine.render_chat(MESSAGES)
    assert text == "<s><user>Where is the door?<bot>There.</s><user>Code 4071?<bot>"
    assert text == theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = mine.encode(text, add_special_tokens=False)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert mine.decode(ids, skip_special_tokens=False) == text
    assert [ids[0], ids[1], ids[-1]] == [0, 2, 3]


def test_digits_stand_alone(prepared: Prepared) -> None:
    tokens = prepared.tokenizer.encode("It is 40718, not a4b2.").tokens
    assert [token for token in tokens if any(map(str.isdigit, token))] == list("4071842")


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    recipe = Recipe(0, SHAPE, 64, Rates(1, 1, 0, 1, 0.5, 1), (Stage(32, 40, {}), Stage(64, 40, {})))
    draw_losses([8.0 - 0.05 * step for step in range(60)], recipe, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
