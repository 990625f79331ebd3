"""Targets in this process: one engine at a time, kept as long as the next choice can be made on its store."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moorage.runtime.config.load import build_config
from moorage.runtime.config.names import shown_key
from moorage.runtime.config.resolve import kv_layout
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.config.source import Source, read_source
from moorage.runtime.evals.attended import attended_keys, same_keys, stored_keys
from moorage.runtime.evals.local_coder import LocalCoder
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.evals.targets import CHAT_ANSWER_TOKENS, CHAT_TOKENS, Answer, beyond_reach
from moorage.runtime.evals.variants import Variant, check_names
from moorage.runtime.planning.session_limit import session_limit
from moorage.runtime.planning.trained_length import Reach, reach, trained_length
from moorage.runtime.text.decoder import text_after
from moorage.workers.hf_config import read_model_spec
from moorage.workers.spec import MemorySpec


class LocalConfig:
    """A cluster file, a model directory, or both; read again for every choice with its overrides."""

    def __init__(self, file: Path | None, model: Path | None, overrides: Sequence[str] = ()) -> None:
        self._file, self._model, self._overrides = file, model, tuple(overrides)

    def load(self, overrides: Sequence[str] = ()) -> ClusterConfig:
        """The configuration under further overrides. Raises InvalidConfig as `load_cluster_config` does."""
        given = [*self._overrides, *overrides]
        source = read_source(self._file, given, os.environ) if self._file else Source(Path("--model"), {})
        if self._file is None:
            source.put_overrides(given)
        if self._model is not None:
            source.put("model", "path", str(self._model), f"--model {self._model}")
        return build_config(source)


class LocalTargets:
    """The model of a configuration under several variants, without a server or Ray."""

    def __init__(
        self,
        config: LocalConfig,
        variants: Sequence[Variant] = (),
        room: int | None = None,
        trained: int | None = None,
        chat: bool = False,
    ) -> None:
        """`room` is the most tokens of a prompt and its answer, by default the configuration's max_seq_len.

        `trained` is the length that `{scale}` is relative to, by default the model's. Raises InvalidConfig or
        InvalidModel for what can't be run, before any weight is loaded.
        """
        base = config.load()
        self._config, self._chat = config, chat
        self._spec = read_model_spec(base.model.path)
        self._trained = trained or base.memory.pretraining_length or trained_length(self._spec)
        self._variants = {v.name: v for v in variants} or {base.memory.preset: Variant(base.memory.preset)}
        check_names(variants)
        self._room = room or session_limit(base, self._spec).max_seq_len
        self._room += CHAT_TOKENS + CHAT_ANSWER_TOKENS if chat else 0
        self._engine: LocalEngine | None = None
        self._resolved: dict[tuple[str, int | None], tuple[ClusterConfig, MemorySpec]] = {}
        self.model = base.model.path.name
        self.labels = tuple(self._variants)
        for label in self.labels:
            self._resolve(label, self._room)

    def settings(self, label: str) -> dict[str, Any]:
        """Every axis of the choice and of the store."""
        variant = self._variants[label]
        config, memory = self._resolve(label, self._trained)
        return {
            "preset": variant.preset,
            "overrides": list(variant.overrides),
            "dtype": config.model.dtype,
            "weights": config.model.weights.value,
            "memory": {shown_key(name): value for name, value in memory.settings().items()}
            | {"rope": asdict(memory.positions.rope or self._spec.rope)},
            "store": asdict(kv_layout(config, self._spec)),
            **({"chat": True} if self._chat else {}),
        }

    def at(self, label: str, length: int | None) -> LocalTarget:
        """The engine under one variant; loads the model when the store or the device's room must differ."""
        config, memory = self._resolve(label, length)
        if self._engine is None or not self._engine.serves(config, memory):
            self.close()
            self._engine = LocalEngine(config, self._room, memory=memory)
        return LocalTarget(self._engine, memory, self._chat)

    def remarks(self, lengths: Sequence[int]) -> list[str]:
        """Choices whose positions do not reach a length, and choices that attend the same keys."""
        attended: dict[str, list[Hashable]] = {}
        reaches: dict[str, list[Reach]] = {}
        for label in self.labels:
            resolved = [self._resolve(label, length) for length in lengths]
            attended[label] = [
                self._attended(config, memory, length)
                for (config, memory), length in zip(resolved, lengths, strict=True)
            ]
            reaches[label] = [reach(memory, self._spec) for _, memory in resolved]
        return [*beyond_reach(reaches, lengths), *same_keys(attended, lengths)]

    def _attended(self, config: ClusterConfig, memory: MemorySpec, length: int) -> Hashable:
        """Which keys a choice attends, and as which numbers it reads them."""
        layout = kv_layout(config, self._spec)
        return stored_keys(layout), config.kv_store.quantizer, attended_keys(memory, layout, length)

    def close(self) -> None:
        """Gives the engine's memory back."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _resolve(self, label: str, length: int | None) -> tuple[ClusterConfig, MemorySpec]:
        if (label, length) not in self._resolved:
            variant = self._variants[label]
            config = self._config.load(variant.overrides_at(length, self._trained))
            self._resolved[label, length] = config, resolve_memory(config, variant.preset, self._spec)
        return self._resolved[label, length]


class LocalTarget(LocalCoder):
    """An engine under one choice of memory."""

    def __init__(self, engine: LocalEngine, memory: MemorySpec, chat: bool = False) -> None:
        super().__init__(engine.tokenizer)
        self._engine, self._memory, self._chat = engine, memory, chat
        self.room = engine.max_tokens - (CHAT_TOKENS + CHAT_ANSWER_TOKENS if chat else 0)

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        session: str | None = None,
        question_tokens: int = 0,
    ) -> Answer:
        """Continues a prompt greedily. A session's document stays until another prompt comes that does not begin so.

        A chat's template stands round the question, and a verified answer is full attention's: both are prefilled.
        """
        if self._chat or self._memory.verify:
            question_tokens = 0
        if self._chat:
            messages = [{"role": "user", "content": self.decode(prompt)}]
            prompt = self._engine.tokenizer.encode_chat(messages)
            asked = max(max_new_tokens, CHAT_ANSWER_TOKENS)
            max_new_tokens = max(max_new_tokens, min(asked, self._engine.max_tokens - len(prompt)))
        start_s = time.monotonic()
        tokens = list(
            self._engine.generate(
                prompt,
                max_new_tokens,
                self._memory,
                question_tokens=question_tokens,
                keep=session is not None,
            )
        )
        seconds, recalls = time.monotonic() - start_s, self._engine.recalls
        recall = sum(recalls) / len(recalls) if recalls else None
        text = text_after(self._engine.tokenizer, prompt, tokens)
        ended = bool(tokens) and tokens[-1] in self._engine.eos_token_ids
        budget = self._memory.budget_tokens(self._engine.layout.block_size)
        return Answer(text, seconds, recall, budget, not ended)

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of all tokens but the first."""
        return self._engine.score(tokens, self._memory)
