"""The files that tests write are those of llama.cpp: it computes from them what transformers computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.gguf_files import convert
from tests.tiny_models import build_tiny_checkpoint, random_prompt
from tests.workers.gguf.test_models import CHANGES, MODELS

llama_cpp = pytest.importorskip("llama_cpp", reason="compares with llama-cpp-python, which is not installed")
pytestmark = pytest.mark.slow

NUM_TOKENS = 60
LESS: Mapping[str, dict[str, Any]] = {
    "olmoe": {"num_key_value_heads": 4},
    "smollm3": {"attention_bias": False},
    "cohere": {"use_qk_norm": False},
    "phi3_window": {"sliding_window": 100},
    "gpt_oss": {"rope": {"rope_type": "yarn", "rope_theta": 1.5e5, "factor": 32.0, "truncate": True} | {
        "original_max_position_embeddings": 128
    }},
}  # fmt: skip
"""What llama.cpp computes otherwise or not at all in models as small as these: key-value heads of OLMoE, biases of
SmolLM3, norms of Command-R's heads below 64 layers, windows of Phi-3, limits of YaRN that are not rounded."""
WITHOUT = ("cohere_biased",)
"""llama.cpp has no biases of Command-R."""
KEYS = {"phi3": {"phi3.rope.scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(512))}}


@pytest.mark.parametrize(
    ("family", "architecture"), [model for model in MODELS if model[0] not in WITHOUT], ids=str
)
def test_llama_cpp_computes_what_transformers_computes(
    tmp_path: Path, family: str, architecture: str
) -> None:
    tiny = build_tiny_checkpoint(family, tmp_path, **CHANGES.get(family, {}), **LESS.get(family, {}))
    keys = {"tokenizer.ggml.model": "none", **KEYS.get(family, {})}
    file = convert(tiny, tmp_path / "model.gguf", architecture, keys=keys)
    model = llama_cpp.Llama(str(file), n_ctx=128, logits_all=True, verbose=False, n_threads=1, swa_full=True)
    prompt = random_prompt(tiny.spec, NUM_TOKENS)
    model.eval(prompt.tolist())
    theirs = torch.from_numpy(np.array(model.scores[:NUM_TOKENS])).log_softmax(-1)
    # Its cache of keys and values is float16.
    torch.testing.assert_close(theirs, tiny.logits(prompt).log_softmax(-1), rtol=0, atol=0.02)
