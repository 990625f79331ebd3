"""transformers with PyTorch's scaled dot product attention and a dynamic cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, GgufConfig
from transformers.utils import logging

from moorage.runtime.bench.peers.peer import PeerSpec


class TransformersPeer:
    """One model and its cache. transformers itself dequantises a GGUF file."""

    def __init__(self, spec: PeerSpec) -> None:
        self.part_s: dict[str, float] = {}
        torch.set_num_threads(spec.threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        directory, file = (spec.model, None) if spec.model.is_dir() else (spec.model.parent, spec.model.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32 if spec.dtype == "float32" else torch.bfloat16,
            attn_implementation="sdpa",
            **(
                {}
                if file is None
                else {"gguf_file": file, "quantization_config": GgufConfig(dequantize=True)}
            ),
        )
        self._model = model.eval()
        self._cache = DynamicCache()

    def open(self, max_tokens: int) -> None:  # noqa: ARG002  # the cache grows
        """An empty cache."""
        self._cache = DynamicCache()

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Prefills in one call, which attends without a mask: that is the fastest way of transformers."""
        return self._forward(token_ids)

    def fill(self, num_tokens: int) -> None:
        """Keys and values of unit variance in every layer."""
        config = self._model.config
        generator, dtype = torch.Generator().manual_seed(num_tokens), self._model.dtype
        heads = config.num_key_value_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (1, heads, num_tokens, dim)
        for layer in range(config.num_hidden_layers):
            keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
            self._cache.update(keys, values, layer)

    def decode(self, token_id: int, mode: str) -> int:  # noqa: ARG002  # there is one way
        """One token."""
        return self._forward([token_id])

    def close(self) -> None:
        """Lets go of the cache."""
        self._cache = DynamicCache()

    def _forward(self, token_ids: Sequence[int]) -> int:
        ids = torch.tensor([list(token_ids)])
        with torch.inference_mode():
            out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())
