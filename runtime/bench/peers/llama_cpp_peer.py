"""llama.cpp by the C functions of llama-cpp-python, with flash attention, on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from moorage.runtime.bench.peers.peer import PeerSpec
from moorage.workers.errors import InvalidModel, ResourceExhausted

BATCH_TOKENS = 2048
"""Tokens of one call; llama.cpp computes them in pieces of its own default, 512."""
FILL_TOKENS = 2048
"""Tokens that are really prefilled to fill a cache; their keys and values come again at later positions."""
_FLASH_ATTENTION_ON = 1


class LlamaCppPeer:
    """One context of llama.cpp, made anew for each length, since it allocates its whole cache at once."""

    def __init__(self, spec: PeerSpec) -> None:
        self.part_s: dict[str, float] = {}
        self._spec = spec
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(spec.model).encode(), params)
        if not self._model:
            raise InvalidModel(f"{spec.model}: llama.cpp does not load it; give a GGUF file that it knows")
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._context: Any = None

    def open(self, max_tokens: int) -> None:
        """A new context; two sequences share its cells, the second for `fill`."""
        self._free_context()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(max_tokens, BATCH_TOKENS)
        params.n_batch = BATCH_TOKENS
        params.n_seq_max, params.kv_unified = 2, True
        params.n_threads = params.n_threads_batch = self._spec.threads
        params.flash_attn_type = _FLASH_ATTENTION_ON
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ResourceExhausted(
                f"llama.cpp has no memory for {max_tokens} tokens of {self._spec.model}; ask for shorter --lengths"
            )

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Prefills in batches."""
        for start in range(0, len(token_ids), BATCH_TOKENS):
            self._process(token_ids[start : start + BATCH_TOKENS])
        return self._likeliest()

    def fill(self, num_tokens: int) -> None:
        """Repeats the cache of a short prompt at later positions: llama.cpp rotates the copied keys anew."""
        once = min(FILL_TOKENS, num_tokens)
        self._process([1 + index % (self._vocab_size - 1) for index in range(once)])
        whole, rest = self._state(once), self._state(num_tokens % once)
        for start in range(once, num_tokens, once):
            self._restore(whole if start + once <= num_tokens else rest, start)

    def _state(self, num_tokens: int) -> ctypes.Array[ctypes.c_uint8]:
        """What the first tokens of the sequence hold, taken by way of the second sequence."""
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_cp(memory, 0, 1, 0, num_tokens)
        size = llama_cpp.llama_state_seq_get_size(self._context, 1)
        state: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self._context, state, len(state), 1)
        llama_cpp.llama_memory_seq_rm(memory, 1, -1, -1)
        return state

    def _restore(self, state: ctypes.Array[ctypes.c_uint8], start: int) -> None:
        """Appends a state to the sequence, from position `start` on."""
        memory = llama_cpp.llama_get_memory(self._context)
        if not llama_cpp.llama_state_seq_set_data(self._context, state, len(state), 1):
            raise ResourceExhausted(f"llama.cpp has no room after {start} tokens; ask for shorter --lengths")
        llama_cpp.llama_memory_seq_add(memory, 1, 0, -1, start)
        llama_cpp.llama_memory_seq_cp(memory, 1, 0, -1, -1)
        llama_cpp.llama_memory_seq_rm(memory, 1, -1, -1)

    def decode(self, token_id: int, mode: str) -> int:  # noqa: ARG002  # there is one way
        """One token."""
        self._process([token_id])
        return self._likeliest()

    def close(self) -> None:
        """Frees the context and the model."""
        self._free_context()
        llama_cpp.llama_model_free(self._model)

    def _process(self, token_ids: Sequence[int]) -> None:
        tokens = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        code = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(token_ids)))
        if code != 0:
            raise ResourceExhausted(f"llama.cpp ended with code {code} on {len(token_ids)} tokens")
        llama_cpp.llama_synchronize(self._context)

    def _likeliest(self) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def _free_context(self) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None
