"""Loading: shards, types, and one-line refusals that name the file and the tensor."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.parameters import DecoderWeights
from moorage.workers.gpu.model.weights import load_weights, resolve_dtype
from moorage.workers.spec import WeightKind
from tests.tiny_models import FAMILIES, TinyModel, build_tiny_checkpoint

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return build_tiny_checkpoint("llama2", tmp_path)


def load(tiny: TinyModel, dtype: torch.dtype = torch.float32) -> DecoderWeights:
    return load_weights(tiny.directory, tiny.spec, dtype, CPU)


def refusal(tiny: TinyModel) -> str:
    with pytest.raises(InvalidModel) as caught:
        load(tiny)
    message = str(caught.value)
    assert "\n" not in message
    return message


def flat(weights: DecoderWeights) -> list[torch.Tensor]:
    return list(weights.tensors())


def rewrite(tiny: TinyModel, change: Callable[[Tensors], object]) -> Path:
    file = tiny.directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_parameters(tmp_path: Path, family: str) -> None:
    tiny = build_tiny_checkpoint(family, tmp_path)
    num_parameters = sum(weight.numel() for weight in tiny.hf_model.parameters())

    def num_bytes(dtype: torch.dtype) -> int:
        return load_weights(tiny.directory, tiny.spec, dtype, CPU, kept=WeightKind.FLOAT).num_bytes

    assert num_bytes(torch.float32) == 4 * num_parameters
    norms = sum(weight.numel() for name, weight in tiny.hf_model.named_parameters() if "norm" in name)
    assert num_bytes(torch.bfloat16) == 2 * num_parameters + 2 * norms


def test_many_shards_equal_one_file(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("shards")
    tiny.hf_model.save_pretrained(directory, max_shard_size="200KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 3
    sharded = load(dataclasses.replace(tiny, directory=directory))
    assert all(torch.equal(a, b) for a, b in zip(flat(load(tiny)), flat(sharded), strict=True))


def test_progress_counts_every_byte(tiny: TinyModel) -> None:
    seen: list[tuple[int, int]] = []
    load_weights(
        tiny.directory, tiny.spec, torch.float16, CPU, lambda done, total: seen.append((done, total))
    )
    num_bytes = load(tiny).num_bytes
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (num_bytes, num_bytes), "the file is of float32"


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    tiny = build_tiny_checkpoint("llama3", tmp_path)
    rewrite(tiny, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(173, 128)}))
    weights = load(tiny)
    assert weights.lm_head is weights.embed


def test_harmless_old_tensors_are_skipped(tiny: TinyModel) -> None:
    rewrite(
        tiny, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    )
    load(tiny)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", torch.float16), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_dtype(tiny: TinyModel, name: str, dtype: torch.dtype) -> None:
    spec = dataclasses.replace(tiny.spec, dtype="float16")
    assert resolve_dtype(name, spec) == dtype
    weights = load(tiny, dtype)
    assert weights.dtype == dtype
    assert {tensor.dtype for tensor in flat(weights) if tensor.dim() > 1} == {dtype}
    assert weights.norm.weight.dtype == torch.float32


def test_unknown_dtype(tiny: TinyModel) -> None:
    with pytest.raises(InvalidModel, match=r"model\.dtype is 'int8'; use auto, float32"):
        resolve_dtype("int8", tiny.spec)


def test_missing_tensor(tiny: TinyModel) -> None:
    rewrite(tiny, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    message = refusal(tiny)
    assert "tensor model.layers.1.mlp.up_proj.weight is missing" in message
    assert str(tiny.directory) in message


def test_wrong_shape(tiny: TinyModel) -> None:
    file = rewrite(tiny, lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    message = refusal(tiny)
    assert f"{file}: tensor model.norm.weight has shape [7]" in message
    assert "[128]" in message


def test_tensor_without_a_place(tiny: TinyModel) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    file = rewrite(tiny, lambda tensors: tensors.update({name: torch.ones(128)}))
    assert f"{file}: tensor {name} has no place in a llama model" in refusal(tiny)


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_weights_must_be_plain_floats(tiny: TinyModel, dtype: torch.dtype, name: str) -> None:
    file = rewrite(tiny, lambda tensors: tensors.update({"model.norm.weight": torch.ones(128).to(dtype)}))
    expected = (
        f"{file}: tensor model.norm.weight has type {name}; use the checkpoint with plain float weights"
    )
    assert expected in refusal(tiny)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.999])
def test_truncated_file(tiny: TinyModel, kept: float) -> None:
    file = tiny.directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert f"{file}: not a complete safetensors file" in refusal(tiny)


def test_only_pickled_weights(tiny: TinyModel) -> None:
    (tiny.directory / "model.safetensors").rename(tiny.directory / "pytorch_model.bin")
    message = refusal(tiny)
    assert "pytorch_model.bin" in message
    assert "safetensors" in message


def test_no_weights(tiny: TinyModel) -> None:
    (tiny.directory / "model.safetensors").unlink()
    assert "no model*.safetensors file; download the weights" in refusal(tiny)
    (tiny.directory / "model-q4.gguf").write_bytes(b"GGUF")
    assert "model-q4.gguf: not a complete GGUF file (the version ends beyond the file)" in refusal(tiny)


def test_index_with_a_missing_shard(tiny: TinyModel) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tiny.directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors: missing" in refusal(tiny)


@pytest.mark.parametrize("weight_map", [{}, {"a": "../other.safetensors"}, {"a": 3}, None])
def test_bad_index(tiny: TinyModel, weight_map: object) -> None:
    (tiny.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map must map tensors to files of this folder" in refusal(tiny)


PEAK = """
import re, sys
from pathlib import Path
import torch
from moorage.workers.gpu.model import checkpoint
from moorage.workers.gpu.model.weights import load_weights
from moorage.workers.hf_config import read_model_spec

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

checkpoint.MAPPED_BYTES = 2**24
directory, before = Path(sys.argv[1]), peak()
weights = load_weights(directory, read_model_spec(directory), torch.bfloat16, torch.device("cpu"))
print((peak() - before) / weights.num_bytes)
"""


@pytest.mark.parametrize("shard_size", ["1GB", "20MB"])
def test_memory_never_holds_the_model_twice(tmp_path: Path, shard_size: str) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=8
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard_size == "20MB")
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.4
