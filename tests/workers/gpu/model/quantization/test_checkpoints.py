"""Quantised checkpoints from files to logits, against the same checkpoint with the same values as floats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moorage.kernels.quantized_linear import QuantizedMatrix
from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.quantized import ReorderedMatrix, StackedMatrix
from moorage.workers.gpu.model.weight_plan import plan_weights, planned_bytes
from moorage.workers.hf_config import read_model_spec
from moorage.workers.hf_weights import check_weights
from moorage.workers.spec import WeightKind
from tests.engine_driver import Driver, memory
from tests.tiny_models import build_tiny_checkpoint
from tests.workers.gpu.model.quantization.packers import PACKERS, Packer

CASES = [
    *((packer, "llama2") for packer in PACKERS),
    *(
        (packer, family)
        for family in ("qwen2", "internlm2", "qwen3_moe")
        for packer in ("awq", "gptq-act-order")
    ),
    ("fp8", "mixtral"),
]
WEIGHTS = "model.safetensors"


def sizes(family: str) -> dict[str, int]:
    """Widths that groups of 32 divide."""
    return {"moe_intermediate_size": 64} if family == "qwen3_moe" else {"intermediate_size": 160}


def is_quantized(name: str, tensor: Tensor) -> bool:
    """The linear layers of attention and feed-forward parts."""
    return tensor.dim() == 2 and ".layers." in name and "gate.weight" not in name


def publish(directory: Path, packer: Packer, floats: Path) -> Path:
    """Quantises the checkpoint in `directory`; `floats` becomes the same with plain weights of the same values."""
    shutil.copytree(directory, floats)
    tensors, plain = {}, {}
    for name, tensor in load_file(directory / WEIGHTS).items():
        if not is_quantized(name, tensor):
            tensors[name] = plain[name] = tensor
            continue
        written = packer.write(tensor)
        module = name.removesuffix("weight")
        tensors |= {f"{module}{end}": part.contiguous() for end, part in written.stored.items()}
        plain[name] = written.weight
    save_file(tensors, directory / WEIGHTS)
    save_file(plain, floats / WEIGHTS)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = packer.config
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(("packer", "family"), CASES)
def test_logits_equal_those_of_the_same_values_as_floats(tmp_path: Path, packer: str, family: str) -> None:
    build_tiny_checkpoint(family, tmp_path / "model", **sizes(family))
    directory = publish(tmp_path / "model", PACKERS[packer], tmp_path / "floats")
    prompt = list(range(2, 90))
    spec = read_model_spec(directory)
    want = Driver(tmp_path / "floats", read_model_spec(tmp_path / "floats")).prompt_logprobs(
        prompt, memory(), (40,)
    )
    kept = Driver(directory, spec)
    matrices = [
        part
        for layer in kept.worker.decoder.weights.layers
        for part in (layer.qkv.parts if isinstance(layer.qkv, StackedMatrix) else (layer.qkv,))
    ]
    assert all(isinstance(matrix, QuantizedMatrix | ReorderedMatrix) for matrix in matrices)
    torch.testing.assert_close(kept.prompt_logprobs(prompt, memory(), (40,)), want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("packer", PACKERS)
def test_weights_may_be_floats_again(tmp_path: Path, packer: str) -> None:
    build_tiny_checkpoint("llama2", tmp_path / "model", **sizes("llama2"))
    directory = publish(tmp_path / "model", PACKERS[packer], tmp_path / "floats")
    got = Decoder.load(directory, read_model_spec(directory), "float32", "cpu", weights=WeightKind.FLOAT)
    want = Decoder.load(tmp_path / "floats", read_model_spec(tmp_path / "floats"), "float32", "cpu")
    for ours, theirs in zip(got.weights.tensors(), want.weights.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("packer", "family"), CASES)
def test_sizes_are_those_of_what_is_loaded(tmp_path: Path, packer: str, family: str) -> None:
    build_tiny_checkpoint(family, tmp_path / "model", **sizes(family))
    directory = publish(tmp_path / "model", PACKERS[packer], tmp_path / "floats")
    spec = read_model_spec(directory)
    for kept in (WeightKind.AUTO, WeightKind.FLOAT):
        loaded = Decoder.load(directory, spec, "float32", "cpu", weights=kept).weights
        assert planned_bytes(spec, plan_weights(spec, kept), 4) == loaded.num_bytes


Change = Callable[[dict[str, Tensor]], object]


def drop_scales(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.mlp.down_proj.scales"]


def drop_weight(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.mlp.down_proj.qweight"]


def shorten(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.qzeros"
    tensors[name] = tensors[name][:1].contiguous()


def retype(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.qweight"
    tensors[name] = tensors[name].float()


def spoil(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.2.mlp.up_proj.scales"][0, 3] = float("inf")


def add(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.channel_scale"] = torch.ones(4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_scales, "tensor model.layers.1.mlp.down_proj.scales is missing"),
        (drop_weight, "tensor model.layers.1.mlp.down_proj.weight is missing"),
        (shorten, "tensor model.layers.0.self_attn.q_proj.qzeros has shape [1, 16] where config.json"),
        (retype, "tensor model.layers.0.self_attn.q_proj.qweight has type F32"),
        (spoil, "tensor model.layers.2.mlp.up_proj."),
        (add, "channel_scale has no place"),
    ],
)
def test_damaged_checkpoints_are_refused_in_one_line(tmp_path: Path, change: Change, words: str) -> None:
    build_tiny_checkpoint("llama2", tmp_path / "model", **sizes("llama2"))
    directory = publish(tmp_path / "model", PACKERS["awq"], tmp_path / "floats")
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, directory / WEIGHTS)
    with pytest.raises(InvalidModel) as caught:
        Decoder.load(directory, read_model_spec(directory), "float32", "cpu")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_size_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    build_tiny_checkpoint("llama2", tmp_path / "model", **sizes("llama2"))
    packer = PACKERS["awq"]
    wrong = Packer({**packer.config, "group_size": 16}, packer.write)
    directory = publish(tmp_path / "model", wrong, tmp_path / "floats")
    with pytest.raises(InvalidModel, match="qzeros has shape"):
        check_weights(directory, read_model_spec(directory))
