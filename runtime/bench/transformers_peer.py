"""The embedded model in transformers, with its dynamic cache filled by made-up keys and values."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from moorage.runtime.bench.measure import installed
from moorage.runtime.bench.pilot import PILOT
from moorage.workers.spec import ModelSpec

ABSENT = "transformers is not installed, so its rows are missing: pip install transformers"
COPIES = 3
"""The cache, the concatenation that replaces it at each step, and the rotated keys of one layer's attention."""


def fits(spec: ModelSpec, context_tokens: int) -> bool:
    """Whether transformers is there and its float32 cache of `context_tokens` fits the free memory."""
    token_bytes = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 4
    room = psutil.virtual_memory().available // 2
    return installed("transformers") and COPIES * context_tokens * token_bytes < room


class CachedModel:
    """The model and a cache of some length."""

    def __init__(self, model: Any, cache: Any) -> None:
        self._model, self._cache = model, cache

    @classmethod
    def of_pilot(cls, context_tokens: int) -> CachedModel:
        """Keys and values of unit variance in every layer."""
        from transformers import AutoModelForCausalLM, DynamicCache
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any = AutoModelForCausalLM.from_pretrained(PILOT, dtype=torch.float32)
        config, cache = model.config, DynamicCache()
        generator = torch.Generator().manual_seed(context_tokens)
        shape = (1, config.num_key_value_heads, context_tokens, config.head_dim)
        for layer in range(config.num_hidden_layers):
            keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
            cache.update(keys, values, layer)
        return cls(model.eval(), cache)

    def decode(self) -> None:
        """One token; the cache grows by it."""
        self._forward(1)

    def prefill(self, num_tokens: int) -> None:
        """`num_tokens` more tokens; the cache is cropped to its length again."""
        self._forward(num_tokens)
        self._cache.crop(-num_tokens)

    def _forward(self, num_tokens: int) -> None:
        ids = torch.randint(2, self._model.config.vocab_size, (1, num_tokens))
        with torch.inference_mode():
            self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
