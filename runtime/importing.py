"""Configurations of ktransformers, InfLLM and LMDeploy as a `cluster.yaml`, with what could not be carried over.

Every key of the given file ends up in the result or in a note that says why not.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moorage.runtime.config import build_config
from moorage.runtime.config_source import Source
from moorage.workers.errors import InvalidConfig

Values = Mapping[str, Any]
INFLLM_TYPES = {
    "inf-llm": "inf-llm",
    "infinite-lm": "infinite-lm",
    "stream-llm": "stream-llm",
    "origin": "full",
}
"""Its model.type -> our preset."""
ANCHOR_TYPES = ("BLOCK_MEAN", "QUEST")
KV_TYPES = ("FP16", "FP32")


@dataclass(slots=True)
class Imported:
    """A configuration in sections, and what did not fit into it."""

    system: str
    """ktransformers, InfLLM or LMDeploy."""
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """One line for each key that was left out or changed: the key, and why."""

    def put(self, target: str, value: Any) -> None:
        """Sets `section.key`."""
        section, key = target.split(".")
        self.sections.setdefault(section, {})[key] = value


Special = Callable[[Any, Imported], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the keys of one system become ours."""

    same: Mapping[str, str]
    """Key -> section.key that takes its value."""
    dropped: Mapping[str, str]
    """Key -> why it is not carried over."""
    special: Mapping[str, Special] = field(default_factory=dict)

    def apply(self, values: Values, into: Imported, prefix: str = "") -> None:
        """Carries every key of `values` over; unknown ones become notes too."""
        for key, value in values.items():
            if value is None:
                continue
            if key in self.special:
                self.special[key](value, into)
            elif key in self.same:
                into.put(self.same[key], value)
            else:
                why = self.dropped.get(key, "no such setting here")
                into.notes.append(f"{prefix}{key}: {_shown(value)}: {why}")


def import_config(path: Path) -> Imported:
    """Reads a ktransformers `config.yaml`, an InfLLM YAML, or LMDeploy engine arguments (mapping or command line).

    Raises InvalidConfig when the file is none of them.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path}: can't be read ({error}); give a text file") from None
    values = _command_line(text) if text.lstrip().startswith("lmdeploy ") else _mapping(path, text)
    model = values.get("model")
    if isinstance(values.get("long_context"), dict):
        found = _ktransformers(values)
    elif isinstance(model, dict) and ("type" in model or "n_local" in model):
        found = _infllm(values, model)
    elif values.keys() & _LMDEPLOY_KEYS:
        found = _lmdeploy(values)
    else:
        raise _unknown(path)
    _check(found)
    return found


def _check(found: Imported) -> None:
    """Notes what the result still lacks to be valid."""
    if "path" not in found.sections.get("model", {}):
        found.notes.append("model.path: not named in this file; set it")
    values: dict[str, Any] = {"model": {"path": "."}} | found.sections
    values["model"] = {"path": "."} | values["model"]
    try:
        build_config(Source(Path("result"), values))
    except InvalidConfig as error:
        found.notes.append(f"still to mend: {error}")


def _unknown(path: Path) -> InvalidConfig:
    return InvalidConfig(
        f"{path}: neither a ktransformers config.yaml (long_context:), nor an InfLLM YAML (model: with a type), "
        "nor LMDeploy engine arguments (session_len, cache_max_entry_count, ...)"
    )


def _mapping(path: Path, text: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{path}: not YAML ({' '.join(str(error).split())}); mend the file") from None
    if not isinstance(values, dict):
        raise InvalidConfig(f"{path}: holds no mapping of keys; give a configuration file")
    return values


def _command_line(text: str) -> dict[str, Any]:
    """`lmdeploy serve api_server MODEL --session-len N ...` as a mapping."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    words = words[words.index("lmdeploy") + 1 :] if "lmdeploy" in words else words
    values: dict[str, Any] = {}
    positional: list[str] = []
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        values[name.replace("-", "_")] = yaml.safe_load(value)
    if positional and positional[-1] not in ("lmdeploy", "serve", "api_server", "chat"):
        values["model_path"] = positional[-1]
    return values


def _ktransformers(values: Values) -> Imported:
    found = Imported("ktransformers")
    found.put("memory.preset", "ktransformers")
    _KTRANSFORMERS.apply(values["long_context"], found, "long_context.")
    for name, section in values.items():
        if name == "ext" and isinstance(section, dict) and "cpu_infer" in section:
            found.put("long_context.threads_num", section["cpu_infer"])
        elif name not in ("long_context", "ext"):
            found.notes.append(f"{name}: concerns other parts of ktransformers, not its long context")
    return found


def _infllm(values: Values, model: Values) -> Imported:
    found = Imported("InfLLM")
    kind = str(model.get("type", "inf-llm"))
    if kind not in INFLLM_TYPES:
        raise InvalidConfig(f"model.type: {kind} is not one of {', '.join(INFLLM_TYPES)}; mend the file")
    found.put("memory.preset", INFLLM_TYPES[kind])
    _INFLLM.apply({key: value for key, value in model.items() if key != "type"}, found, "model.")
    _INFLLM.apply({key: value for key, value in values.items() if key != "model"}, found)
    return found


def _lmdeploy(values: Values) -> Imported:
    found = Imported("LMDeploy")
    found.put("memory.preset", "lmdeploy")
    _LMDEPLOY.apply(values, found)
    return found


def _available(target: str, values: tuple[str, ...], instead: str) -> Special:
    """Carries a value over when this version has it; else a note says what is taken instead."""

    def carry(value: Any, into: Imported) -> None:
        if value in values:
            into.put(target, value)
        else:
            into.notes.append(f"{target}: {value}: not available in this version; {instead} is taken")

    return carry


def _preselect_block_count(value: Any, into: Imported) -> None:
    if value:
        into.put("long_context.preselect_block_count", value)
    else:
        into.put("long_context.preselect_block", False)


def _rope_scaling_factor(value: Any, into: Imported) -> None:
    """0 is LMDeploy's word for the checkpoint's own positions."""
    if value:
        into.put("memory.rope_scaling_factor", value)
    else:
        into.put("memory.preset", "full")


def _only(key: str, usual: object, why: str) -> Special:
    """A key that needs a note only when it differs from its usual value."""

    def carry(value: Any, into: Imported) -> None:
        if value != usual:
            into.notes.append(f"{key}: {value}: {why}")

    return carry


def _dtype(value: Any, into: Imported) -> None:
    into.put("model.dtype", {"half": "float16"}.get(value, value))


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return text if len(text) <= 40 else text[:37] + "..."


_KTRANSFORMERS = Rules(
    same={
        name: f"long_context.{name}"
        for name in (
            "chunk_size", "max_seq_len", "block_size", "local_windows_len", "second_select_num", "dense_layer_num",
            "anchor_num", "preselect_block", "layer_step", "token_step",
        )
    },
    dropped={"threads_num": "ktransformers ignores it; its threads are ext.cpu_infer"},
    special={
        "anchor_type": _available("long_context.anchor_type", ANCHOR_TYPES, "the preset's"),
        "kv_type": _available("long_context.kv_type", KV_TYPES, "FP16"),
        "head_select_mode": _available("long_context.head_select_mode", ("SHARED", "SEPARATE"), "SHARED"),
        "preselect_block_count": _preselect_block_count,
    },
)  # fmt: skip
_INFLLM = Rules(
    same={
        "path": "model.path",
        "block_size": "long_context.block_size",
        "n_init": "memory.n_init",
        "n_local": "long_context.local_windows_len",
        "chunk_size": "long_context.chunk_size",
        "topk": "memory.topk",
        "max_cached_block": "memory.max_cached_block",
        "exc_block_size": "memory.exc_block_size",
        "base": "memory.base",
        "distance_scale": "memory.distance_scale",
        "max_len": "long_context.max_seq_len",
    },
    dropped={
        "repr_topk": "representatives are those of long_context.anchor_type and anchor_num",
        "score_decay": "cache_strategy lru-s is not available in this version",
        "fattn": "kernels are chosen by the device",
        "async_global_stream": "blocks are read as they are needed",
        "pin_memory": "decided by the device",
        "faiss": "anchors are scored by the KV actors",
        "perhead": "use long_context.head_select_mode SEPARATE for a choice per KV head",
        "tokenizer_path": "the tokenizer is read from model.path",
        "conv_type": "the prompt's form is the client's",
        "truncation": "prompts are never cut",
        "verbose": "nothing to carry over",
    },
    special={"cache_strategy": _available("memory.cache_strategy", ("lru", "fifo"), "lru")},
)
_LMDEPLOY = Rules(
    same={
        "model_path": "model.path",
        "max_batch_size": "server.max_running",
        "max_prefill_token_num": "long_context.chunk_size",
        "session_len": "long_context.max_seq_len",
    },
    dropped={
        "cache_max_entry_count": "the cache lies in DRAM; set kv_store.dram",
        "cache_block_seq_len": "blocks are also the unit of choice; set long_context.block_size",
        "enable_prefix_caching": "a conversation's cache is kept, prefixes of others are not shared",
        "model_format": "plain safetensors only",
        "backend": "there is one engine",
        "server_port": "set server.grpc",
        "server_name": "set server.grpc",
        "use_logn_attn": "attention has no such scale; TurboMind ignores it too",
    },
    special={
        "rope_scaling_factor": _rope_scaling_factor,
        "tp": _only("tp", 1, "one GPU worker runs in this version"),
        "quant_policy": _only("quant_policy", 0, "storage is FP16 or FP32 in this version; FP16 is taken"),
        "dtype": _dtype,
    },
)
_LMDEPLOY_KEYS = (_LMDEPLOY.same.keys() | _LMDEPLOY.dropped.keys() | _LMDEPLOY.special.keys()) - {"dtype"}
