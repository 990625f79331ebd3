"""Qwen2 and Qwen2.5: a Llama whose queries, keys and values have biases. Long-context ones name dual chunks."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Claim, Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import UNUSED_WINDOW, check_keys
from moorage.workers.hf_layers import read_layer_types, read_window, with_windows
from moorage.workers.spec import DualChunkSpec, ModelSpec

MSCALE = 0.1
"""Growth of attention beyond the original length of a checkpoint with dual chunks."""
YARN_CLAIM = Claim(131072, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768})
"""What the cards of Qwen2, Qwen2.5 and Qwen3 say of prompts beyond 32K tokens."""
_SPARSE_PREFILL = (
    "sparse_attention_config",
    "sparse_attention_enabled",
    "sparse_attention_last_q",
    "sparse_attention_threshold",
)
"""Keys of an approximation of the prompt's attention, which is computed exactly here."""
_THETA = {"rope_theta": 1000000.0}


def qwen_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    """`spec` with what Qwen2 and Qwen3 have in common: a sliding window that few models use, and dual chunks."""
    spec = replace(spec, dual_chunk=_dual_chunk(config))
    if not config.flag("use_sliding_window"):
        return spec
    slides = read_layer_types(config) or _after_full_layers(config)
    return with_windows(spec, config, slides, read_window(config, 4096))


def _after_full_layers(config: Fields) -> tuple[bool, ...]:
    """The layers from `max_window_layers` on slide."""
    num_full_layers = config.get("max_window_layers")
    if not isinstance(num_full_layers, int):
        num_full_layers = 28
    return tuple(layer >= num_full_layers for layer in range(config.positive_int("num_hidden_layers")))


def _dual_chunk(config: Fields) -> DualChunkSpec | None:
    """Qwen2.5-1M's key. Its chunk_size is the largest position, so the paper's c is one more."""
    values = config.child("dual_chunk_attention_config")
    if values is None:
        return None
    largest, local = values.positive_int("chunk_size", 8192), values.positive_int("local_size", 1024)
    if 2 * local > largest:
        # The last `local` keys would lie in more than two chunks, and only two keep their distances.
        raise values.wrong("local_size", f"at most half of chunk_size {largest}")
    original = values.get("original_max_position_embeddings") or None
    if original is not None:
        original = values.positive_int("original_max_position_embeddings")
    check_keys(values, _SPARSE_PREFILL, "Qwen")
    return DualChunkSpec(largest + 1, largest - local, original, 0.0 if original is None else MSCALE)


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    return replace(qwen_keys(spec, config), qkv_bias=True)


FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    tensors=TENSORS,
    own_keys=_own_keys,
    ignored=UNUSED_WINDOW,
    published={
        "qwen2.5-7b": PublishedModel(28, 3584, 18944, 28, 4, 152064, 32768, _THETA, YARN_CLAIM),
        "qwen2.5-14b": PublishedModel(48, 5120, 13824, 40, 8, 152064, 32768, _THETA, YARN_CLAIM),
        "qwen2.5-32b": PublishedModel(64, 5120, 27648, 40, 8, 152064, 32768, _THETA, YARN_CLAIM),
        "qwen2.5-72b": PublishedModel(80, 8192, 29568, 64, 8, 152064, 32768, _THETA, YARN_CLAIM),
    },
)
