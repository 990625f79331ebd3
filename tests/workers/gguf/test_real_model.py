"""SmolLM2's GGUF file computes what transformers computes of the same file, dequantised, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moorage.runtime.config.load import build_config
from moorage.runtime.config.source import read_source
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.hf_config import read_model_spec
from tests.real_model import smollm2
from tests.workers.gpu.model.test_decoder import logits_of

pytestmark = pytest.mark.slow

NUM_TOKENS = 24
QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colours.",
    "How many days has a week?",
    "Write a haiku about the sea.",
    "What does a compiler do?",
    "Translate 'good morning' into French.",
    "Who wrote Romeo and Juliet?",
    "What is 7 times 8?",
    "Give a synonym of happy.",
    "Why is the sky blue?",
    "List the planets of the solar system.",
    "What is the boiling point of water?",
    "Explain photosynthesis in one sentence.",
    "Which animal is called king of the jungle?",
    "Write a Python function that adds two numbers.",
    "What colour do blue and yellow make?",
    "Which is the largest ocean?",
    "When did the first people land on the moon?",
    "Summarise the story of Cinderella.",
    "What is the opposite of cold?",
)


@pytest.fixture(scope="module")
def file() -> Path:
    return smollm2()


@pytest.fixture(scope="module")
def oracle(file: Path) -> LlamaForCausalLM:
    """transformers' model with the blocks that the package gguf dequantises to float32."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = stored[names.get_name(name, (".weight",))]
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
            if "q_proj" in name or "k_proj" in name:
                pairs = values.view(-1, config.head_dim // 2, 2, config.hidden_size)
                values = pairs.transpose(1, 2).reshape(values.shape)
            parameter.copy_(values)
    return model


@pytest.fixture(scope="module")
def engine(file: Path) -> Iterator[LocalEngine]:
    """Moorage's whole engine, with float weights and exact attention."""
    changes = (
        "model.dtype=float32",
        "model.weights=float",
        "memory.preset=full",
        "gpu_workers.device=cpu",
        "kv_store.dram=256MiB",
    )
    engine = LocalEngine(build_config(read_source(file, changes, {})), 512)
    yield engine
    engine.close()


def test_logits(file: Path, oracle: LlamaForCausalLM) -> None:
    spec = read_model_spec(file)
    decoder = Decoder.load(file, spec, "float32", "cpu")
    prompt = torch.randint(spec.vocab_size, (300,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = oracle(input_ids=prompt[None]).logits[0]
    assert theirs.std() > 1
    torch.testing.assert_close(logits_of(decoder, prompt), theirs, rtol=0, atol=1e-3)


def test_greedy_tokens(engine: LocalEngine, oracle: LlamaForCausalLM) -> None:
    for question in QUESTIONS:
        prompt = engine.tokenizer.encode_chat([{"role": "user", "content": question}])
        ours = list(engine.generate(prompt, NUM_TOKENS))
        with torch.inference_mode():
            theirs = oracle.generate(
                torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=2
            )
        assert ours == theirs[0, len(prompt) :].tolist(), question


def test_it_answers_a_question(engine: LocalEngine) -> None:
    prompt = engine.tokenizer.encode_chat([{"role": "user", "content": QUESTIONS[0]}])
    assert "Paris" in engine.tokenizer.decode(list(engine.generate(prompt, NUM_TOKENS)))
