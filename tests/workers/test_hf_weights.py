"""The weights of a model directory, checked by their headers, and directories that disagree with themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.allocation import random_weights
from moorage.workers.gpu.model.naming import slots
from moorage.workers.gpu.model.weights import load_weights
from moorage.workers.hf_config import read_model_spec
from moorage.workers.hf_tensors import checkpoint_tensors, tensor_shapes
from moorage.workers.hf_weights import check_weights
from tests.tiny_models import FAMILIES, TinyModel, build_tiny_checkpoint, random_prompt

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return build_tiny_checkpoint("llama2", tmp_path / "model")


@pytest.fixture
def tied(tmp_path: Path) -> TinyModel:
    """A checkpoint whose config.json ties the embeddings."""
    return build_tiny_checkpoint("llama3", tmp_path / "tied")


def rewrite(directory: Path, change: Callable[[Tensors], object]) -> Path:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def refusal(directory: Path) -> str:
    with pytest.raises(InvalidModel) as caught:
        check_weights(directory, read_model_spec(directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt_oss_mxfp4"])
def test_names_and_shapes_are_those_that_the_decoder_takes(tmp_path: Path, family: str) -> None:
    tiny = build_tiny_checkpoint(family, tmp_path)
    found = check_weights(tmp_path, tiny.spec)
    filled = slots(tiny.spec, random_weights(tiny.spec, CPU), checkpoint_tensors(tiny.spec, found))
    expected = {name: slot.shape for name, slot in filled.items()}
    assert tensor_shapes(tiny.spec, found) == expected
    assert {name: header.shape for name, header in found.items()} == expected


def test_a_missing_tensor_and_a_wrong_shape_are_named(tiny: TinyModel) -> None:
    file = rewrite(tiny.directory, lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    assert f"{file}: tensor model.norm.weight has shape [7]" in refusal(tiny.directory)
    rewrite(tiny.directory, lambda tensors: tensors.pop("model.norm.weight"))
    assert "tensor model.norm.weight is missing" in refusal(tiny.directory)


def test_what_a_model_sees_with_has_no_place_among_text_alone(tmp_path: Path, tiny: TinyModel) -> None:
    seen = {"vision_tower.vision_model.post_layernorm.weight": torch.ones(8)}
    seeing = build_tiny_checkpoint("gemma3_vision", tmp_path / "seeing")
    assert load_file(seeing.directory / "model.safetensors").keys() >= seen.keys()
    assert check_weights(seeing.directory, seeing.spec).keys().isdisjoint(seen)
    rewrite(tiny.directory, lambda tensors: tensors.update(seen))
    assert f"tensor {next(iter(seen))} has no place in a llama model" in refusal(tiny.directory)


def test_headers_are_checked_without_torch(tiny: TinyModel) -> None:
    code = (
        "import sys; from pathlib import Path; from moorage.workers.hf_weights import check_weights; "
        "from moorage.workers.hf_config import read_model_spec; d = Path(sys.argv[1]); "
        "check_weights(d, read_model_spec(d)); assert not {'torch', 'safetensors', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tiny.directory], check=True)


def test_one_file_beside_an_index_of_shards_is_refused(tiny: TinyModel) -> None:
    """transformers reads model.safetensors, other readers the index."""
    shutil.copy(tiny.directory / "model.safetensors", tiny.directory / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(tensor_shapes(tiny.spec), "model-00001-of-00001.safetensors")
    index = tiny.directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "holds model.safetensors beside model.safetensors.index.json" in refusal(tiny.directory)
    index.unlink()
    assert "holds model.safetensors beside model-00001-of-00001.safetensors" in refusal(tiny.directory)
    (tiny.directory / "model-00001-of-00001.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "model.safetensors")}))
    assert check_weights(tiny.directory, tiny.spec), "an index of that one file is no second set"


def test_a_tensor_in_two_files_is_refused(tiny: TinyModel) -> None:
    first = tiny.directory / "model.safetensors"
    first.rename(tiny.directory / "model-00001-of-00002.safetensors")
    save_file({"model.norm.weight": torch.ones(128)}, tiny.directory / "model-00002-of-00002.safetensors")
    assert "tensor model.norm.weight stands in model-00001-of-00002.safetensors too" in refusal(
        tiny.directory
    )


@pytest.mark.parametrize("differs", [True, False])
def test_an_output_matrix_of_its_own_is_kept_as_transformers_keeps_it(tied: TinyModel, differs: bool) -> None:
    def add_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if differs:
            tensors["lm_head.weight"][5, 7] += 0.5

    rewrite(tied.directory, add_head)
    spec = read_model_spec(tied.directory)
    oracle = AutoModelForCausalLM.from_pretrained(tied.directory)
    assert (oracle.lm_head.weight is not oracle.model.embed_tokens.weight) == differs
    assert spec.tie_word_embeddings == (not differs)
    weights = load_weights(tied.directory, spec, torch.float32, CPU)
    assert torch.equal(weights.lm_head, oracle.lm_head.weight)
    assert torch.equal(weights.embed, oracle.model.embed_tokens.weight)
    assert bool(spec.notes) == differs
    if differs:
        assert "tie_word_embeddings true, but lm_head.weight differs" in spec.notes[0]


def test_an_output_matrix_is_found_by_the_names_of_its_checkpoint(tmp_path: Path) -> None:
    tied = build_tiny_checkpoint("gemma3_vision", tmp_path)
    embed, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({head: tensors[embed].clone()}))
    assert read_model_spec(tmp_path) == tied.spec
    assert head not in check_weights(tmp_path, tied.spec)
    rewrite(tmp_path, lambda tensors: tensors.update({head: 2 * tensors[embed]}))
    spec = read_model_spec(tmp_path)
    assert not spec.tie_word_embeddings
    assert f"{head} differs" in spec.notes[1]
    weights = load_weights(tmp_path, spec, torch.float32, CPU)
    assert torch.equal(weights.lm_head, 2 * weights.embed)


def test_a_tied_checkpoint_without_an_output_matrix_stays_tied(tied: TinyModel) -> None:
    spec = read_model_spec(tied.directory)
    assert spec.tie_word_embeddings
    assert spec == replace(spec, notes=())


def test_a_window_as_long_as_the_positions_changes_nothing_within_them(tmp_path: Path) -> None:
    """As of Ministral-8B: within the window every key is attended, beyond it no more than the window."""
    windowed = build_tiny_checkpoint(
        "mistral", tmp_path / "windowed", sliding_window=64, max_position_embeddings=64
    )
    whole = build_tiny_checkpoint("mistral", tmp_path / "whole", max_position_embeddings=64)
    prompt = random_prompt(whole.spec, 80)
    torch.testing.assert_close(windowed.logits(prompt)[:64], whole.logits(prompt)[:64])
    assert (windowed.logits(prompt)[64:] - whole.logits(prompt)[64:]).abs().amax() > 0.1
    assert windowed.spec.window_layers == tuple(range(windowed.spec.num_layers))
    assert whole.spec.window_layers == ()


@pytest.mark.parametrize("where", ["top", "rope_parameters"])
def test_partial_rotation_is_refused_since_transformers_ignores_it(tiny: TinyModel, where: str) -> None:
    prompt, file = random_prompt(tiny.spec, 20), tiny.directory / "config.json"
    config = json.loads(file.read_text())
    (config if where == "top" else config[where])["partial_rotary_factor"] = 0.5
    file.write_text(json.dumps(config))
    oracle = AutoModelForCausalLM.from_pretrained(tiny.directory).eval()
    with torch.inference_mode():
        torch.testing.assert_close(oracle(prompt[None]).logits[0], tiny.logits(prompt))
    with pytest.raises(InvalidModel, match="partial_rotary_factor makes 16 of 32 channels rotate"):
        read_model_spec(tiny.directory)


def test_architecture_and_model_type_of_two_models_are_refused(tiny: TinyModel) -> None:
    """transformers then builds what model_type says: for granite another model."""
    file = tiny.directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "granite"}))
    assert type(AutoModelForCausalLM.from_pretrained(tiny.directory)).__name__ == "GraniteForCausalLM"
    with pytest.raises(InvalidModel, match="architectures says LlamaForCausalLM and model_type 'granite'"):
        read_model_spec(tiny.directory)


@pytest.mark.parametrize("family", ["llama2", "internlm2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named_while_they_load(
    tmp_path: Path, family: str, value: float
) -> None:
    tiny = build_tiny_checkpoint(family, tmp_path)
    name = next(
        name for name in tensor_shapes(tiny.spec) if name.startswith("model.layers.1") and "norm" not in name
    )

    def damage(tensors: Tensors) -> None:
        tensors[name][3, 4] = value
        tensors[name][-1, -1] = value

    file = rewrite(tmp_path, damage)
    with pytest.raises(InvalidModel, match="download the weights again") as caught:
        load_weights(tmp_path, tiny.spec, torch.bfloat16, CPU)
    assert f"{file}: tensor {name} holds NaN or infinity in 2 elements" in str(caught.value)


def test_weights_beyond_the_range_of_the_chosen_type_say_which_type_to_take(tiny: TinyModel) -> None:
    def enlarge(tensors: Tensors) -> None:
        tensors["lm_head.weight"][1, 2] = 1e6

    rewrite(tiny.directory, enlarge)
    with pytest.raises(
        InvalidModel, match=r"lm_head\.weight has values up to 1e\+06, too large for float16; set model"
    ):
        load_weights(tiny.directory, tiny.spec, torch.float16, CPU)
    load_weights(tiny.directory, tiny.spec, torch.bfloat16, CPU)


def test_a_sum_that_overflows_is_no_damage(tiny: TinyModel) -> None:
    rewrite(tiny.directory, lambda tensors: tensors["model.embed_tokens.weight"].fill_(60000.0))
    load_weights(tiny.directory, tiny.spec, torch.float16, CPU)
